"""The feed-forward of two linears as one op, so that the gradient of what lies between takes one pass."""

from __future__ import annotations

from typing import Any

from .. import _kernels as k
from ..tensors import Tensor
from . import raw
from .layers import act_code, linear, weight_gradients, y_rows
from .op import Cost, op

Array = k.Array
Needs = list[bool] | None


@op("x", "up", "down", "up_bias", "down_bias", "residual")
def mlp(
    x: Array,
    up: Array,
    down: Array,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    residual: Array | None = None,
    act: str = "gelu",
    needs: Needs = None,
) -> Any:
    """residual + act(x @ up.T + up_bias) @ down.T + down_bias.

    x (..., K), up (F, K), down (N, F), up_bias (F), down_bias (N), residual and result (..., N). `act` as in linear.
    The forward keeps the activation's slope, by which the backward's product with `down` multiplies as it is written.
    """
    hidden, slope = k.linear(
        x, up, up_bias, None, act_code(act), False, bool(needs and (needs[0] or needs[1] or needs[3]))
    )
    y, _ = k.linear(hidden, down, down_bias, residual, 0, False, False)
    return y, (x, hidden, slope, up, down)


@mlp.backward
def _(saved: Any, dy: Array, dx: Any, dup: Any, ddown: Any, dup_bias: Any, ddown_bias: Any, dresidual: Any) -> None:
    x, hidden, slope, up, down = saved
    if dy.dtype != x.dtype:
        dy = raw.cast(dy, x.dtype)
    rows, (width, inner) = y_rows(dy.shape), up.shape
    weight_gradients(hidden, dy, rows, ddown, ddown_bias)
    if dx is not None or dup is not None or dup_bias is not None:
        dz = k.empty_like(hidden)  # read as soon as it is written
        k.gemm(dy, down, dz, rows, width, down.shape[0], factor=slope)
        if dx is not None:
            array, add_to = dx.target()
            k.gemm(dz, up, array, rows, inner, width, accumulate=add_to)
        weight_gradients(x, dz, rows, dup, dup_bias)
    if dresidual is not None:
        dresidual.take(dy)


@mlp.cost
def _(x: Any, up: Any, down: Any, up_bias: Any = None, down_bias: Any = None, residual: Any = None,
      act: str = "gelu") -> Cost:  # fmt: skip
    assert linear.cost_fn is not None
    first = linear.cost_fn(x, up, up_bias, None, act)
    hidden = Tensor(k.empty((*x.shape[:-1], up.shape[0]), x.dtype))
    second = linear.cost_fn(hidden, down, down_bias, residual)
    return Cost(first.flops + second.flops, first.bytes + second.bytes)


@mlp.composed
def _(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    residual: Tensor | None = None,
    act: str = "gelu",
) -> Tensor:
    assert linear.composed_fn is not None
    y: Tensor = linear.composed_fn(linear.composed_fn(x, up, up_bias, None, act), down, down_bias, residual)
    return y

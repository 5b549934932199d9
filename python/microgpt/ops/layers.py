"""Fused ops of layers: linear, embedding, norms, activations, rotary positions, softmax, dropout.

Rows are whatever stands before the last axis: an (T, D) tensor of packed tokens as a rule.
"""

from __future__ import annotations

import math
from typing import Any

from .. import _kernels as k
from ..autograd import Slot
from ..errors import ConfigError, nearest
from ..qtensor import QTensor
from ..tensors import Tensor, full, wide
from . import basic, quantized, raw
from .op import Cost, check_float, check_int32, check_wide, elements_bytes, item_bytes, op, refuse

Array = k.Array
Needs = list[bool] | None


def act_code(name: str) -> int:
    """The kernel's number of an activation. Raises ConfigError naming the nearest."""
    try:
        return raw.ACT_CODE[name]
    except (KeyError, TypeError):
        known = ", ".join(raw.ACTS)
        raise ConfigError(f"unknown activation {name!r}{nearest(name, raw.ACTS)}; known: {known}") from None


# -- linear ------------------------------------------------------------------------------------------------------------
@op("x", "weight", "bias", "residual")
def linear(
    x: Array,
    weight: Array | QTensor,
    bias: Array | None = None,
    residual: Array | None = None,
    act: str = "none",
    wide_out: bool = False,
    rows: quantized.Rows | None = None,
    needs: Needs = None,
) -> Any:
    """residual + act(x @ weight.T + bias) in one pass over the output.

    x (..., K), weight (N, K), bias (N), residual and result (..., N). `act`: none, gelu, gelu_tanh, relu, relu2, silu.
    `wide_out`: the result of bfloat16 is float32, as it was summed (for logits).
    A weight may be a QTensor, which takes no gradient; `rows` are then x as shared_rows() made it once for several.
    """
    code = act_code(act) if act != "none" else 0
    if isinstance(weight, QTensor):
        y, slope = quantized.linear(x, weight, bias, residual, code, wide_out, needs, rows)
    else:
        keep = any(needs[:3]) if needs and code else False
        y, slope = k.linear(x, weight, bias, residual, code, wide_out, keep)
    return y, (x, weight, slope)


def y_rows(shape: tuple[int, ...]) -> int:
    """Product of the sizes before the last axis."""
    return math.prod(shape[:-1])


def weight_gradients(x: Array, dy: Array, rows: int, dweight: Any, dbias: Any) -> None:
    """Of y = x weight^T + bias, where they are wanted."""
    n = dy.shape[-1]
    if dweight is not None:
        array, add_to = dweight.target()
        k.gemm(dy, x, array, n, x.shape[-1], rows, trans_a=True, accumulate=add_to)
    if dbias is not None:
        array, add_to = dbias.target()
        k.reduce(dy, array, 1, rows, n, 0, accumulate=add_to)


@linear.backward
def _(saved: Any, dy: Array, dx: Any, dweight: Any, dbias: Any, dresidual: Any) -> None:
    x, weight, slope = saved
    n, inner = weight.shape
    rows = y_rows(dy.shape)
    if dy.dtype != x.dtype:
        dy = raw.cast(dy, x.dtype)
    dz = dy
    if slope is not None and (dx is not None or dweight is not None or dbias is not None):
        dz = dy if dresidual is None else k.empty_like(dy)  # dy may be overwritten unless the residual takes it
        k.binary(dy, slope, dz, raw.BINARY_CODE["mul"])
    if dx is not None and isinstance(weight, QTensor):
        quantized.give_inputs(dz, weight, rows, dx)
    elif dx is not None:
        array, add_to = dx.target()  # products and sums write bfloat16 or float32, whichever the slot has
        k.gemm(dz, weight, array, rows, inner, n, accumulate=add_to)
    weight_gradients(x, dz, rows, dweight, dbias)
    if dresidual is not None:
        dresidual.take(dy)


@linear.cost
def _(x: Any, weight: Any, bias: Any = None, residual: Any = None, act: str = "none", wide_out: bool = False,
      rows: Any = None) -> Cost:  # fmt: skip
    n, inner = weight.shape
    rows = y_rows(x.shape)
    width = item_bytes(wide(x.dtype) if wide_out else x.dtype)
    return Cost(2 * rows * n * inner, elements_bytes(x, weight, bias, residual) + rows * n * width)


@linear.composed
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    act: str = "none",
    wide_out: bool = False,
    rows: quantized.Rows | None = None,
) -> Tensor:
    y = x.reshape(y_rows(x.shape), x.shape[-1]) @ weight.permute(1, 0)
    y = y.reshape(*x.shape[:-1], weight.shape[0])
    if bias is not None:
        y = y + bias
    y = composed_act(y, act)
    return y if residual is None else residual + y


# -- embedding ---------------------------------------------------------------------------------------------------------
@op("table")
def embedding(table: Array | QTensor, ids: Array, needs: Needs = None) -> Any:
    """Rows of table (V, D) at ids (T) int32 -> (T, D). The table may be a QTensor."""
    check_int32("embedding", ids=ids)
    if isinstance(table, QTensor):
        return table.rows(ids), None
    check_float("embedding", table=table)
    if table.ndim != 2:
        refuse("embedding", "table", "two axes (vocabulary, width)", table.shape)
    y = k.empty((*ids.shape, table.shape[1]), table.dtype)
    k.embedding(table, ids, y, table.shape[1])
    return y, (ids, table.shape[1])


@embedding.backward
def _(saved: Any, dy: Array, dtable: Any) -> None:
    ids, width = saved
    array, add_to = dtable.target(wide(dy.dtype))
    k.embedding_backward(dy, ids, array, width, accumulate=add_to)
    dtable.settle(array)


@embedding.cost
def _(table: Any, ids: Any) -> Cost:
    width = item_bytes(table.dtype)
    return Cost(0, 2 * ids.size * table.shape[1] * width + 4 * ids.size)


@embedding.composed
def _(table: Tensor, ids: Any) -> Tensor:
    numbers = (ids.data if isinstance(ids, Tensor) else ids).numpy().reshape(-1)
    rows = [table[int(i) : int(i) + 1] for i in numbers]
    return basic.concat(rows, 0).reshape(*ids.shape, table.shape[1])


# -- norms -------------------------------------------------------------------------------------------------------------
def _norm_backward(saved: Any, dy: Array, dx: Slot | None, dweight: Slot | None, dbias: Slot | None) -> None:
    x, weight, mean, rstd = saved
    outputs: dict[str, Any] = {}
    slots = {"dx": dx, "dweight": dweight, "dbias": dbias}
    for name, slot in slots.items():
        if slot is not None:
            dtype = x.dtype if name == "dx" else wide(x.dtype)
            outputs[name], outputs[f"accumulate_{name}"] = slot.target(dtype)
    k.norm_backward(dy, x, rstd, x.shape[-1], weight=weight, mean=mean, **outputs)
    for name, slot in slots.items():
        if slot is not None:
            slot.settle(outputs[name])


@op("x", "weight", "bias")
def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5, needs: Needs = None
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis (Ba et al. 2016, arXiv:1607.06450)."""
    y, mean, rstd = k.normalize(x, weight, bias, eps, True)
    return y, (x, weight, mean, rstd)


@layer_norm.backward
def _(saved: Any, dy: Array, dx: Any, dweight: Any, dbias: Any) -> None:
    _norm_backward(saved, dy, dx, dweight, dbias)


@layer_norm.composed
def _(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdims=True)
    y = centred * basic.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@op("x", "weight")
def rms_norm(x: Array, weight: Array | None = None, eps: float = 1e-6, needs: Needs = None) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    y, mean, rstd = k.normalize(x, weight, None, eps, False)
    return y, (x, weight, mean, rstd)


@rms_norm.backward
def _(saved: Any, dy: Array, dx: Any, dweight: Any) -> None:
    _norm_backward(saved, dy, dx, dweight, None)


@rms_norm.composed
def _(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    y = x * basic.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight


@layer_norm.cost
def _(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Cost:
    return Cost(8 * x.size, 2 * elements_bytes(x) + elements_bytes(weight, bias))


@rms_norm.cost
def _(x: Any, weight: Any = None, eps: float = 1e-6) -> Cost:
    return Cost(5 * x.size, 2 * elements_bytes(x) + elements_bytes(weight))


# -- activations -------------------------------------------------------------------------------------------------------
@op("x")
def activation(x: Array, act: str = "gelu", needs: Needs = None) -> Any:
    """act(x): gelu (erf), gelu_tanh, relu, relu2 (squared), silu or none."""
    check_float("activation", x=x)
    code = act_code(act)
    y = k.empty_like(x)
    k.act(x, y, code)
    return y, (x, code)


@activation.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    x, code = saved
    array, add_to = dx.target(x.dtype)
    k.act_backward(x, dy, array, code, accumulate=add_to)
    dx.settle(array)


@activation.cost
def _(x: Any, act: str = "gelu") -> Cost:
    return Cost({"none": 0, "relu": 1, "relu2": 2}.get(act, 12) * x.size, 2 * elements_bytes(x))


def composed_act(x: Tensor, act: str) -> Tensor:
    """The activations in plain ops; also the composed twin of `activation`."""
    if act == "none":
        return x
    if act == "relu":
        return basic.maximum(x, full((), 0.0, x.dtype))
    if act == "relu2":
        return basic.square(basic.maximum(x, full((), 0.0, x.dtype)))
    if act == "silu":
        return x * basic.sigmoid(x)
    if act == "gelu":  # Hendrycks & Gimpel 2016, arXiv:1606.08415
        return x * 0.5 * (basic.erf(x * 0.5**0.5) + 1.0)
    act_code(act)
    inner = (x + x * x * x * 0.044715) * (2.0 / 3.141592653589793) ** 0.5
    return x * 0.5 * (inner.tanh() + 1.0)


activation.composed(lambda x, act="gelu": composed_act(x, act))


@op("gate", "up")
def glu(gate: Array, up: Array, act: str = "silu", needs: Needs = None) -> Any:
    """act(gate) * up: SwiGLU for silu, GeGLU for gelu (Shazeer 2020, arXiv:2002.05202)."""
    check_float("glu", gate=gate, up=up)
    if gate.shape != up.shape:
        refuse("glu", "up", gate.shape, up.shape)
    code = act_code(act)
    y = k.empty_like(gate)
    k.glu(gate, up, y, code)
    return y, (gate, up, code)


@glu.backward
def _(saved: Any, dy: Array, dgate: Any, dup: Any) -> None:
    gate, up, code = saved
    outputs: dict[str, Any] = {}
    slots = {"dgate": dgate, "dup": dup}
    for name, slot in slots.items():
        if slot is not None:
            outputs[name], outputs[f"accumulate_{name}"] = slot.target(gate.dtype)
    k.glu_backward(gate, up, dy, code, **outputs)
    for name, slot in slots.items():
        if slot is not None:
            slot.settle(outputs[name])


@glu.cost
def _(gate: Any, up: Any, act: str = "silu") -> Cost:
    return Cost(13 * gate.size, elements_bytes(gate, up, gate))


glu.composed(lambda gate, up, act="silu": composed_act(gate, act) * up)


# -- rotary positions --------------------------------------------------------------------------------------------------
@op("x")
def rope(
    x: Array,
    positions: Array,
    cos: Array,
    sin: Array,
    interleaved: bool = False,
    needs: Needs = None,
) -> Any:
    """Rotate x (T, H, K) by the angles of cos, sin (P, half) at positions (T) int32; 2 * half <= K, the rest is copied.

    Su et al. 2021, arXiv:2104.09864. `interleaved` pairs components (2i, 2i+1) instead of (i, i + half). Beside
    bfloat16 x the tables are float32.
    """
    check_float("rope", x=x)
    check_wide("rope", x, cos=cos, sin=sin)
    check_int32("rope", positions=positions)
    if x.ndim != 3:
        refuse("rope", "x", "three axes (tokens, heads, head width)", x.shape)
    tokens, heads, width = x.shape
    if positions.size != tokens:
        refuse("rope", "positions", f"{tokens} tokens", positions.size)
    if cos.ndim != 2 or cos.shape != sin.shape:
        refuse("rope", "sin", cos.shape, sin.shape)
    half = cos.shape[1]
    if half < 1 or 2 * half > width:
        refuse("rope", "cos", f"at most {width // 2} angles", half)
    y = k.empty_like(x)
    k.rope(x, positions, cos, sin, y, heads, width, half, interleaved)
    return y, (positions, cos, sin, interleaved)


@rope.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    positions, cos, sin, interleaved = saved
    array, add_to = dx.target(dy.dtype)
    k.rope(dy, positions, cos, sin, array, dy.shape[1], dy.shape[2], cos.shape[1], interleaved,
           inverse=True, accumulate=add_to)  # fmt: skip
    dx.settle(array)


@rope.cost
def _(x: Any, positions: Any, cos: Any, sin: Any, interleaved: bool = False) -> Cost:
    return Cost(3 * x.size, 2 * elements_bytes(x) + elements_bytes(positions))


@rope.composed
def _(x: Tensor, positions: Any, cos: Any, sin: Any, interleaved: bool = False) -> Tensor:
    tokens, heads, width = x.shape
    half = cos.shape[1]
    c = embedding(Tensor(_data(cos)), positions).reshape(tokens, 1, half)
    s = embedding(Tensor(_data(sin)), positions).reshape(tokens, 1, half)
    if interleaved:
        pairs = x[:, :, : 2 * half].reshape(tokens, heads, half, 2).permute(3, 0, 1, 2)
        a, b = pairs[0], pairs[1]
    else:
        a, b = x[:, :, :half], x[:, :, half : 2 * half]
    first, second = a * c - b * s, b * c + a * s
    if interleaved:
        parts = [first.reshape(tokens, heads, half, 1), second.reshape(tokens, heads, half, 1)]
        rotated = basic.concat(parts, 3).reshape(tokens, heads, 2 * half)
    else:
        rotated = basic.concat([first, second], 2)
    return rotated if width == 2 * half else basic.concat([rotated, x[:, :, 2 * half :]], 2)


def _data(value: Any) -> Array:
    data: Array = value.data if isinstance(value, Tensor) else value
    return data


# -- softmax, dropout --------------------------------------------------------------------------------------------------
@op("x")
def softmax(x: Array, scale: float = 1.0, needs: Needs = None) -> Any:
    """exp(scale * x) / sum over the last axis."""
    check_float("softmax", x=x)
    if not x.ndim or x.shape[-1] < 1:
        refuse("softmax", "x", "a last axis of at least 1", x.shape)
    y = k.empty_like(x)
    k.softmax(x, y, x.shape[-1], scale)
    return y, (y, scale)


@softmax.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    y, scale = saved
    array, add_to = dx.target(y.dtype)
    k.softmax_backward(y, dy, array, y.shape[-1], scale, accumulate=add_to)
    dx.settle(array)


@softmax.cost
def _(x: Any, scale: float = 1.0) -> Cost:
    return Cost(12 * x.size, 2 * elements_bytes(x))


@softmax.composed
def composed_softmax(x: Tensor, scale: float = 1.0) -> Tensor:
    """softmax in plain ops."""
    scaled = x * scale
    e = (scaled - scaled.detach().max(-1, keepdims=True)).exp()
    return e / e.sum(-1, keepdims=True)


@op("x")
def dropout(x: Array, p: float, step: Array, seed: int, stream: int = 0, needs: Needs = None) -> Any:
    """Zero each element with probability p and scale the rest by 1 / (1 - p) (Srivastava et al. 2014).

    The mask is a pure function of (seed, stream, step[0], element): `step` is an int64 buffer of one number that
    changes from step to step, `stream` tells layers apart. So there is no state, and the backward draws it again.
    """
    check_float("dropout", x=x)
    if not 0.0 <= p <= 1.0:
        refuse("dropout", "p", "a probability in [0, 1]", p)
    y = k.empty_like(x)
    k.dropout(x, y, step, p, seed, stream)
    return y, (p, step, seed, stream)


@dropout.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    p, step, seed, stream = saved
    array, add_to = dx.target(dy.dtype)
    k.dropout(dy, array, step, p, seed, stream, accumulate=add_to)
    dx.settle(array)


@dropout.cost
def _(x: Any, p: float, step: Any, seed: int, stream: int = 0) -> Cost:
    return Cost(3 * x.size, 2 * elements_bytes(x))


@dropout.composed
def _(x: Tensor, p: float, step: Any, seed: int, stream: int = 0) -> Tensor:
    ones = full(x.shape, 1.0, x.dtype)
    mask = k.empty_like(ones.data)
    k.dropout(ones.data, mask, _data(step), p, seed, stream)  # the mask itself is the kernel's: it is the definition
    return x * Tensor(mask)

"""Ops that walk packed sequences with a state: selective scan, causal convolution, linear recurrence.

Sequence s owns the rows q_start[s] .. q_start[s+1]-1 of (T, ...), and may own none. `state`, where given, is an array
whose row s is where sequence s begins; it is overwritten with where the sequence ends, so that what follows can be
computed later, with the same bits. A state takes part in no gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from .. import _kernels as k
from ..tensors import Tensor, full, wide
from . import basic, raw
from .layers import act_code, composed_act
from .op import Cost, check_float, check_int32, check_state, elements_bytes, op, refuse

Array = k.Array
Needs = list[bool] | None


def _check_rows(name: str, q_start: Array, **rows: Array | None) -> tuple[int, int]:
    """(T, C), the shape of all `rows` that are there; the first is."""
    check_int32(name, q_start=q_start)
    (first, x), *others = ((key, each) for key, each in rows.items() if each is not None)
    shape = x.shape
    if len(shape) != 2 or shape[1] < 1:
        refuse(name, first, "two axes (tokens, channels >= 1)", shape)
    for other, each in others:
        if each.shape != shape:
            refuse(name, other, shape, each.shape)
    if q_start.ndim != 1 or q_start.size < 1:
        refuse(name, "q_start", "one axis (sequences + 1)", q_start.shape)
    return shape[0], shape[1]


def _data(value: Any) -> Array:
    array: Array = value.data if isinstance(value, Tensor) else value
    return array


def _starts(q_start: Any) -> list[int]:
    return [int(each) for each in _data(q_start).numpy()]


def _into(slots: Sequence[Any], dtypes: Sequence[str], write: Callable[..., None]) -> None:
    """Calls `write` with the arrays of the slots and with bits that say which of them are added to."""
    targets: list[Array | None] = []
    accumulate = 0
    for i, (slot, dtype) in enumerate(zip(slots, dtypes, strict=True)):
        array, add_to = (None, False) if slot is None else slot.target(dtype)
        targets.append(array)
        accumulate |= add_to << i
    write(*targets, accumulate)
    for slot, array in zip(slots, targets, strict=True):
        if slot is not None:
            slot.settle(array)


def _softplus(x: Tensor) -> Tensor:
    y: Tensor = basic.maximum(x, full((1,), 0.0, x.dtype)) + (1.0 + (basic.minimum(x, -x)).exp()).log()
    return y


# -- selective scan ----------------------------------------------------------------------------------------------------
@op("u", "delta", "a", "b", "c", "skip", "z", "delta_bias")
def selective_scan(
    u: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    skip: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    *,
    q_start: Array,
    softplus: bool = False,
    state: Array | None = None,
    needs: Needs = None,
) -> Any:
    """The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752), with its discretisation, skip and gate.

    d = delta + delta_bias, softplus(d) if `softplus`; h = exp(d a) h + d b u; y = (h . c + skip u) silu(z).
    u, delta, z and the result (T, C), a (C, N), b and c (T, N), skip and delta_bias (C), state (S, N, C) float32
    beside bfloat16; a, skip and delta_bias may be float32 beside bfloat16, which a = -exp(..) needs. Each (channel,
    state) is one chain over time. For the backward the state of every 32nd row is kept, N / 32 float32 numbers for each
    of u; twice N / 64 more while it runs. Raises ShapeError and DTypeError; UsageError for a state beside a gradient.
    """
    name = "selective_scan"
    check_float(name, u=u, delta=delta, b=b, c=c, z=z)
    a, skip, delta_bias = (
        _widened(name, u, key, x) for key, x in (("a", a), ("skip", skip), ("delta_bias", delta_bias))
    )
    tokens, channels = _check_rows(name, q_start, u=u, delta=delta, z=z)
    if a.ndim != 2 or a.shape[0] != channels or a.shape[1] < 1:
        refuse(name, "a", f"({channels}, states >= 1)", a.shape)
    states = a.shape[1]
    for key, x in (("b", b), ("c", c)):
        if x.shape != (tokens, states):
            refuse(name, key, (tokens, states), x.shape)
    for key, x in (("skip", skip), ("delta_bias", delta_bias)):
        if x is not None and x.shape != (channels,):
            refuse(name, key, (channels,), x.shape)
    seqs = q_start.size - 1
    check_state(name, state, u, (seqs, states, channels), needs)
    saved = k.empty((tokens // k.SCAN_STRIDE + seqs, states, channels), a.dtype) if needs and any(needs) else None
    y = k.empty_like(u)
    k.selective_scan(u, delta, a, b, c, y, q_start, states, skip, z, delta_bias, softplus, state, saved)
    return y, (u, delta, a, b, c, y, q_start, states, skip, z, delta_bias, softplus, saved)


def _widened(name: str, like: Array, key: str, x: Array | None) -> Any:
    """A parameter as float32 (float64 beside float64)."""
    if x is None or x.dtype == wide(like.dtype):
        return x
    check_float(name, u=like, **{key: x})
    return raw.cast(x, wide(like.dtype))


@selective_scan.backward
def _(saved: Any, dy: Array, *slots: Any) -> None:
    u, _, a, *_ = saved
    kinds = (u.dtype, u.dtype, a.dtype, a.dtype, a.dtype, a.dtype, u.dtype, a.dtype)
    _into(slots, kinds, lambda *out: k.selective_scan_backward(*[*saved, dy, *out]))


@selective_scan.cost
def _(u: Any, delta: Any, a: Any, b: Any, c: Any, skip: Any = None, z: Any = None, delta_bias: Any = None, *,
      q_start: Any, softplus: bool = False, state: Any = None) -> Cost:  # fmt: skip
    # An update is d a, its exponential (counted as one operation), d u b, a multiply-add for h and one for y.
    moved = elements_bytes(u, u, delta, a, b, c, skip, z, delta_bias) + 2 * elements_bytes(state)
    return Cost(7 * u.size * a.shape[1], moved)


@selective_scan.composed
def _(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor | None = None,
      z: Tensor | None = None, delta_bias: Tensor | None = None, *, q_start: Any, softplus: bool = False,
      state: Any = None) -> Tensor:  # fmt: skip
    channels, states = a.shape
    d = delta if delta_bias is None else delta + delta_bias
    if softplus:
        d = _softplus(d)
    rows = []
    for first, last in _pairs(_starts(q_start)):
        h = full((channels, states), 0.0, u.dtype)
        for t in range(first, last):
            step = d[t].reshape(channels, 1)
            h = (step * a).exp() * h + step * u[t].reshape(channels, 1) * b[t].reshape(1, states)
            rows.append((h * c[t].reshape(1, states)).sum(1).reshape(1, channels))
    y = basic.concat(rows, 0)
    if skip is not None:
        y = y + skip * u
    return y if z is None else y * composed_act(z, "silu")


def _pairs(starts: Sequence[int]) -> list[tuple[int, int]]:
    return [(first, last) for first, last in itertools.pairwise(starts) if last > first]


# -- causal convolution ------------------------------------------------------------------------------------------------
@op("x", "weight", "bias")
def causal_conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    q_start: Array,
    act: str = "none",
    state: Array | None = None,
    needs: Needs = None,
) -> Any:
    """act(bias + sum over k of weight[:, k] x[t - K + 1 + k]): each channel convolved with its own K taps, causally.

    x and the result (T, C), weight (C, K), bias (C), state (S, K - 1, C), float32 beside bfloat16: the last K - 1 rows
    of x, oldest first. `act`: none or silu. Rows before a sequence's first are zero, or the state's. Raises ShapeError
    and DTypeError; UsageError for another activation, and for a state beside a gradient.
    """
    name = "causal_conv1d"
    check_float(name, x=x, weight=weight, bias=bias)
    _, channels = _check_rows(name, q_start, x=x)
    if weight.ndim != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        refuse(name, "weight", f"({channels}, taps >= 1)", weight.shape)
    if bias is not None and bias.shape != (channels,):
        refuse(name, "bias", (channels,), bias.shape)
    taps = weight.shape[1]
    code = act_code(act)
    check_state(name, state, x, (q_start.size - 1, taps - 1, channels), needs)
    y = k.empty_like(x)
    k.causal_conv1d(x, weight, y, q_start, taps, bias, code, state)
    return y, (x, weight, q_start, taps, bias, code)


@causal_conv1d.backward
def _(saved: Any, dy: Array, dx: Any, dweight: Any, dbias: Any) -> None:
    x, weight, q_start, taps, bias, code = saved
    options: dict[str, Any] = {}
    for name, slot, dtype in (
        ("dx", dx, x.dtype),
        ("dweight", dweight, wide(x.dtype)),
        ("dbias", dbias, wide(x.dtype)),
    ):
        if slot is not None:
            options[name], options[f"accumulate_{name}"] = slot.target(dtype)
    k.causal_conv1d_backward(x, weight, dy, q_start, taps, bias, code, **options)
    for name, slot in (("dx", dx), ("dweight", dweight), ("dbias", dbias)):
        if slot is not None:
            slot.settle(options[name])


@causal_conv1d.cost
def _(x: Any, weight: Any, bias: Any = None, *, q_start: Any, act: str = "none", state: Any = None) -> Cost:
    return Cost(2 * x.size * weight.shape[1], elements_bytes(x, x, weight, bias) + 2 * elements_bytes(state))


@causal_conv1d.composed
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, q_start: Any, act: str = "none", state: Any = None
) -> Tensor:
    channels, taps = weight.shape
    parts = []
    for first, last in _pairs(_starts(q_start)):
        padded = (
            x[first:last] if taps == 1 else basic.concat([full((taps - 1, channels), 0.0, x.dtype), x[first:last]], 0)
        )
        y = padded[: last - first] * weight[:, 0]
        for tap in range(1, taps):
            y = y + padded[tap : tap + last - first] * weight[:, tap]
        parts.append(y)
    y = basic.concat(parts, 0)
    return composed_act(y if bias is None else y + bias, act)


# -- linear recurrence -------------------------------------------------------------------------------------------------
@op("x", "a")
def linear_recurrence(x: Array, a: Array, *, q_start: Array, state: Array | None = None, needs: Needs = None) -> Any:
    """h[t] = a[t] h[t-1] + x[t], element by element: the recurrence of RG-LRU (De et al. 2024, arXiv:2402.19427).

    x, a and the result (T, C), state (S, C), float32 beside bfloat16; one chain over time, which begins at zero or at
    the state. In bfloat16 the chain is float32 and rounded where it is stored. Raises ShapeError and DTypeError;
    UsageError for a state beside a gradient.
    """
    name = "linear_recurrence"
    check_float(name, x=x, a=a)
    _, channels = _check_rows(name, q_start, x=x, a=a)
    check_state(name, state, x, (q_start.size - 1, channels), needs)
    h = k.empty_like(x)
    k.linear_recurrence(x, a, h, q_start, channels, state)
    return h, (a, h, q_start, channels)


@linear_recurrence.backward
def _(saved: Any, dh: Array, dx: Any, da: Any) -> None:
    a, h, q_start, channels = saved
    x_array, add_x = (None, False) if dx is None else dx.target(a.dtype)
    a_array, add_a = (None, False) if da is None else da.target(a.dtype)
    k.linear_recurrence_backward(a, h, dh, q_start, channels, x_array, add_x, a_array, add_a)
    for slot, array in ((dx, x_array), (da, a_array)):
        if slot is not None:
            slot.settle(array)


@linear_recurrence.cost
def _(x: Any, a: Any, *, q_start: Any, state: Any = None) -> Cost:
    return Cost(2 * x.size, elements_bytes(x, x, a) + 2 * elements_bytes(state))


@linear_recurrence.composed
def _(x: Tensor, a: Tensor, *, q_start: Any, state: Any = None) -> Tensor:
    rows = []
    for first, last in _pairs(_starts(q_start)):
        h = x[first : first + 1]
        rows.append(h)
        for t in range(first + 1, last):
            h = a[t : t + 1] * h + x[t : t + 1]
            rows.append(h)
    return basic.concat(rows, 0)


# -- RG-LRU ------------------------------------------------------------------------------------------------------------
@op("x", "input_gate", "recurrent_gate", "param")
def rg_lru(
    x: Array,
    input_gate: Array,
    recurrent_gate: Array,
    param: Array,
    *,
    positions: Array,
    q_start: Array,
    state: Array | None = None,
    needs: Needs = None,
) -> Any:
    """The real-gated linear recurrent unit of Griffin (De et al. 2024, arXiv:2402.19427), from its gates on.

    a = exp(-8 sigmoid(recurrent_gate) softplus(param)), x' = sigmoid(input_gate) x; h = a h + sqrt(1 - a^2) x', and
    h = x' where `positions` (T) int32 is 0. x, gates and the result (T, C), param (C), which may be float32 beside
    bfloat16, state (S, C), float32 beside bfloat16. The slope of the square root is at most 1,000. Raises ShapeError
    and DTypeError; UsageError for a state beside a gradient.
    """
    name = "rg_lru"
    check_float(name, x=x, input_gate=input_gate, recurrent_gate=recurrent_gate)
    param = _widened(name, x, "param", param)
    tokens, channels = _check_rows(name, q_start, x=x, input_gate=input_gate, recurrent_gate=recurrent_gate)
    check_int32(name, positions=positions)
    if param.shape != (channels,):
        refuse(name, "param", (channels,), param.shape)
    if positions.shape != (tokens,):
        refuse(name, "positions", (tokens,), positions.shape)
    check_state(name, state, x, (q_start.size - 1, channels), needs)
    h = k.empty_like(x)
    k.rg_lru(x, input_gate, recurrent_gate, param, positions, h, q_start, state)
    return h, (x, input_gate, recurrent_gate, param, positions, h, q_start)


@rg_lru.backward
def _(saved: Any, dh: Array, *slots: Any) -> None:
    x, _, _, param, *_ = saved
    _into(slots, (x.dtype, x.dtype, x.dtype, param.dtype), lambda *out: k.rg_lru_backward(*[*saved, dh, *out]))


@rg_lru.cost
def _(x: Any, input_gate: Any, recurrent_gate: Any, param: Any, *, positions: Any, q_start: Any,
      state: Any = None) -> Cost:  # fmt: skip
    return Cost(16 * x.size, elements_bytes(x, x, input_gate, recurrent_gate, param) + 2 * elements_bytes(state))


@rg_lru.composed
def _(x: Tensor, input_gate: Tensor, recurrent_gate: Tensor, param: Tensor, *, positions: Any, q_start: Any,
      state: Any = None) -> Tensor:  # fmt: skip
    begins = Tensor((_data(positions).numpy()[:, None] == 0).astype(x.dtype))
    log_a = -8.0 * basic.sigmoid(recurrent_gate) * _softplus(param)
    scale = (1.0 - (2.0 * log_a).exp()).sqrt() * (1.0 - begins) + begins
    h: Tensor = linear_recurrence(
        basic.sigmoid(input_gate) * x * scale, log_a.exp() * (1.0 - begins), q_start=_data(q_start)
    )
    return h

"""Mamba-2's state-space duality over packed sequences."""

from __future__ import annotations

import itertools
import math
from typing import Any

from .. import _kernels as k
from ..errors import DTypeError
from ..tensors import Tensor, as_array, full, wide
from . import basic, raw
from .op import Cost, check, check_float, check_int32, check_state, elements_bytes, op, refuse

Array = k.Array
Needs = list[bool] | None
CHUNK = 64  # kStateChunk in csrc/core/args_state.h
HEADS = 4  # kSsdHeads


@op("x", "dt", "a", "b", "c", "skip", "dt_bias")
def ssd(
    x: Array,
    dt: Array,
    a: Array,
    b: Array,
    c: Array,
    skip: Array | None = None,
    dt_bias: Array | None = None,
    q_start: Array | None = None,
    softplus: bool = False,
    limits: tuple[float, float] = (0.0, math.inf),
    state: Array | None = None,
    needs: Needs = None,
) -> Any:
    """y_t = S_t c_t + skip x_t where S_t = exp(d_t a) S_(t-1) + d_t x_t b_t^T, head by head (arXiv:2405.21060).

    x (T, H, P), dt (T, H), a, skip, dt_bias (H), b, c (T, G, N); H is a multiple of G -> (T, H, P). d is dt, with
    `softplus` softplus(dt + dt_bias), then clamped to `limits`. Sequence s owns rows q_start[s]..q_start[s+1]-1 and
    starts from state[s] of `state` (S, H, P, N), which becomes its last state; without, from zero. a, skip and dt_bias
    may be float32 beside bfloat16. For the backward a state is kept for every 64 tokens, P N / 64 numbers a token and
    head. A `state` is not differentiated: ShapeError of argument `state` where a gradient is wanted.
    """
    name = "ssd"
    check_float(name, x=x, dt=dt, b=b, c=c)
    if x.ndim != 3 or 0 in x.shape[1:]:
        refuse(name, "x", "three axes (tokens, heads, width), none of the last two empty", x.shape)
    tokens, heads, width = x.shape
    check(dt.shape == (tokens, heads), name, "dt", (tokens, heads), dt.shape)
    if b.ndim != 3 or b.shape[0] != tokens or 0 in b.shape[1:]:
        refuse(name, "b", f"({tokens}, groups, state width)", b.shape)
    groups, inner = b.shape[1:]
    check(heads % groups == 0, name, "b", f"a number of groups that divides {heads}", groups)
    check(c.shape == b.shape, name, "c", b.shape, c.shape)
    small: dict[str, Any] = {"a": a, "skip": skip, "dt_bias": dt_bias}
    for label, value in small.items():
        small[label] = _wide(name, label, value, x, heads)
    low, high = limits
    check(low <= high, name, "limits", "the lower one first", limits)
    sequences = starts(name, q_start)
    check_state(name, state, x, (sequences, heads, width, inner), needs)
    settings: dict[str, Any] = {
        "q_start": q_start,
        "heads": heads,
        "groups": groups,
        "state_dim": inner,
        "skip": small["skip"],
        "dt_bias": small["dt_bias"],
        "softplus": softplus,
        "dt_min": low,
        "dt_max": high,
    }
    y = k.empty_like(x)
    chunks = k.empty((tokens // CHUNK + sequences, heads, width, inner), wide(x.dtype)) if needs else None
    k.ssd(x, dt, small["a"], b, c, y, state=state, chunks=chunks, **settings)
    return y, (x, dt, small["a"], b, c, chunks, settings)


def _wide(name: str, label: str, value: Array | None, x: Array, heads: int) -> Array | None:
    """A number for each head, in the type that sums have."""
    if value is None:
        return None
    check(value.shape == (heads,), name, label, (heads,), value.shape)
    if value.dtype == wide(x.dtype):
        return value
    if value.dtype != x.dtype:
        raise DTypeError(f"{name}: `{label}` expected {x.dtype} or {wide(x.dtype)}, got {value.dtype}")
    return raw.cast(value, wide(x.dtype))


def starts(name: str, q_start: Array | None) -> int:
    """The number of sequences."""
    if q_start is None:
        raise TypeError(f"{name}: missing argument `q_start`")
    check_int32(name, q_start=q_start)
    check(q_start.size > 0, name, "q_start", "at least one number", q_start.shape)
    count: int = q_start.size - 1
    return count


def give_sum(slot: Any, parts: Array, shape: tuple[int, ...]) -> None:
    """Give the sum of parts over their first axis."""
    if slot is None:
        return
    count = parts.shape[0]
    if count == 1:
        slot.take(parts.view(shape))
        return
    total = k.empty(shape, parts.dtype)
    k.reduce(parts, total, 1, count, math.prod(shape), 0)
    slot.take(total)


@ssd.backward
def _(saved: Any, dy: Array, dx: Any, ddt: Any, da: Any, db: Any, dc: Any, dskip: Any, dbias: Any) -> None:
    x, dt, a, b, c, chunks, settings = saved
    heads, groups, sequences = settings["heads"], settings["groups"], settings["q_start"].size - 1
    sums = wide(x.dtype)
    outputs: dict[str, Any] = {}
    slots = (("dx", dx, x), ("ddt", ddt, dt))
    for name, slot, like in slots:
        outputs[name], outputs[f"accumulate_{name}"] = (
            (k.empty_like(like), False) if slot is None else slot.target(x.dtype)
        )
    blocks = -(-(heads // groups) // HEADS)
    parts: dict[str, Any] = {name: k.empty((blocks, *b.shape), sums) for name in ("part_db", "part_dc")}
    parts["part_da"] = k.empty((sequences, heads), sums)
    for name, value in (("skip", settings["skip"]), ("bias", settings["dt_bias"])):
        if value is not None:
            parts[f"part_d{name}"] = k.empty((sequences, heads), sums)
    k.ssd_backward(x, dt, a, b, c, dy, chunks, **outputs, **parts, **settings)
    for name, slot, _like in slots:
        if slot is not None:
            slot.settle(outputs[name])
    give_sum(db, parts["part_db"], b.shape)
    give_sum(dc, parts["part_dc"], b.shape)
    give_sum(da, parts["part_da"], (heads,))
    if settings["skip"] is not None:
        give_sum(dskip, parts["part_dskip"], (heads,))
    if settings["dt_bias"] is not None:
        give_sum(dbias, parts["part_dbias"], (heads,))


@ssd.cost
def _(x: Any, dt: Any, a: Any, b: Any, c: Any, skip: Any = None, dt_bias: Any = None, q_start: Any = None,
      softplus: bool = False, limits: Any = None, state: Any = None) -> Cost:  # fmt: skip
    # As the recurrence has it: S <- e S + d x b^T and S c.
    tokens, heads, width = x.shape
    return Cost(5 * tokens * heads * width * b.shape[2], elements_bytes(x, x, dt, b, c))


@ssd.composed
def _(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor | None = None,
      dt_bias: Tensor | None = None, q_start: Any = None, softplus: bool = False,
      limits: tuple[float, float] = (0.0, math.inf), state: Any = None) -> Tensor:  # fmt: skip
    heads, width, groups, inner = *x.shape[1:], *b.shape[1:]
    d = dt if dt_bias is None else dt + dt_bias
    if softplus:  # log(1 + e^d), of a number that stays small
        size = basic.maximum(d, -d)
        d = basic.maximum(d, full((), 0.0, x.dtype)) + ((-size).exp() + 1.0).log()
    d = basic.maximum(d, full((), limits[0], x.dtype))
    if limits[1] != math.inf:
        d = basic.minimum(d, full((), limits[1], x.dtype))
    ones = full((1, heads // groups, 1), 1.0, x.dtype)
    edges = [int(at) for at in as_array(q_start).numpy()]
    rows = []
    for begin, end in itertools.pairwise(edges):
        kept = full((heads, width, inner), 0.0, x.dtype)
        for t in range(begin, end):
            of_b, of_c = (((each[t].reshape(groups, 1, inner)) * ones).reshape(heads, 1, inner) for each in (b, c))
            kept = kept * (d[t] * a).exp().reshape(heads, 1, 1) + (
                (x[t] * d[t].reshape(heads, 1)).reshape(heads, width, 1) * of_b
            )
            y = (kept * of_c).sum(2)
            rows.append((y if skip is None else y + x[t] * skip.reshape(heads, 1)).reshape(1, heads, width))
    made: Tensor = basic.concat(rows, 0)
    return made

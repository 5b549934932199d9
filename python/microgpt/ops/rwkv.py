"""RWKV-7's time mixing over packed sequences."""

from __future__ import annotations

import itertools
from typing import Any

from .. import _kernels as k
from ..errors import DTypeError
from ..tensors import Tensor, as_array, full, wide
from . import basic, raw
from .op import Cost, check, check_float, check_state, elements_bytes, op, refuse
from .ssd import starts

Array = k.Array
Needs = list[bool] | None
STRIDE = 32  # kRwkvStride in csrc/core/args_state.h


@op("r", "w", "keys", "values", "a", "b")
def rwkv7(
    r: Array,
    w: Array,
    keys: Array,
    values: Array,
    a: Array,
    b: Array,
    q_start: Array,
    state: Array | None = None,
    needs: Needs = None,
) -> Any:
    """y_t = S_t^T r_t where S_t = (diag(w_t) + b_t a_t^T) S_(t-1) + k_t v_t^T, head by head (arXiv:2503.14456).

    r, w (decays, between 0 and 1), keys, a, b (T, H, K), values (T, H, V) -> (T, H, V). Sequence s owns rows
    q_start[s]..q_start[s+1]-1 and starts from state[s] of `state` (S, H, K, V), which becomes its last state; without,
    from zero. Tokens follow each other one by one: pieces of a sequence give the bits of the whole. w may be float32
    beside bfloat16. For the backward a state is kept for every 32 tokens, K V / 32 numbers a token and head. A `state`
    is not differentiated: UsageError where a gradient is wanted.
    """
    name = "rwkv7"
    check_float(name, r=r, keys=keys, values=values, a=a, b=b)
    if r.ndim != 3 or 0 in r.shape[1:]:
        refuse(name, "r", "three axes (tokens, heads, width), none of the last two empty", r.shape)
    for label, value in (("w", w), ("keys", keys), ("a", a), ("b", b)):
        check(value.shape == r.shape, name, label, r.shape, value.shape)
    tokens, heads, k_dim = r.shape
    if values.ndim != 3 or values.shape[:2] != (tokens, heads) or 0 in values.shape[2:]:
        refuse(name, "values", f"({tokens}, {heads}, width)", values.shape)
    sums = wide(r.dtype)
    if w.dtype not in (r.dtype, sums):
        raise DTypeError(f"{name}: `w` expected {r.dtype} or {sums}, got {w.dtype}")
    w = w if w.dtype == sums else raw.cast(w, sums)
    sequences = starts(name, q_start)
    shape = (heads, k_dim, values.shape[2])
    check_state(name, state, r, (sequences, *shape), needs)
    settings: dict[str, Any] = {"q_start": q_start, "heads": heads, "k_dim": k_dim, "v_dim": values.shape[2]}
    y = k.empty_like(values)
    kept = k.empty((tokens // STRIDE + sequences, *shape), sums) if needs else None
    k.rwkv7(r, w, keys, values, a, b, y, state=state, kept=kept, **settings)
    return y, (r, w, keys, values, a, b, kept, settings)


@rwkv7.backward
def _(saved: Any, dy: Array, *slots: Any) -> None:
    r, w, keys, values, a, b, kept, settings = saved
    inputs = (r, w, keys, values, a, b)
    outputs: dict[str, Any] = {}
    for name, slot, like in zip("rwkvab", slots, inputs, strict=True):
        outputs[f"d{name}"], outputs[f"accumulate_d{name}"] = (
            (k.empty_like(like), False) if slot is None else slot.target(like.dtype)
        )
    k.rwkv7_backward(r, w, keys, values, a, b, dy, kept, **outputs, **settings)
    for name, slot in zip("rwkvab", slots, strict=True):
        if slot is not None:
            slot.settle(outputs[f"d{name}"])


@rwkv7.cost
def _(r: Any, w: Any, keys: Any, values: Any, a: Any, b: Any, q_start: Any, state: Any = None) -> Cost:
    # S^T a; w S + b (S^T a)^T + k v^T; S^T r.
    return Cost(9 * r.size * values.shape[2], elements_bytes(r, w, keys, values, values, a, b))


@rwkv7.composed
def _(r: Tensor, w: Tensor, keys: Tensor, values: Tensor, a: Tensor, b: Tensor, q_start: Any,
      state: Any = None) -> Tensor:  # fmt: skip
    heads, k_dim, v_dim = *r.shape[1:], values.shape[2]
    edges = [int(at) for at in as_array(q_start).numpy()]
    rows = []
    for begin, end in itertools.pairwise(edges):
        kept = full((heads, k_dim, v_dim), 0.0, r.dtype)
        for t in range(begin, end):
            of_r, of_w, of_k, of_a, of_b = (each[t].reshape(heads, k_dim, 1) for each in (r, w, keys, a, b))
            seen = (kept * of_a).sum(1, keepdims=True)
            kept = kept * of_w + of_b * seen + of_k * values[t].reshape(heads, 1, v_dim)
            rows.append((kept * of_r).sum(1).reshape(1, heads, v_dim))
    made: Tensor = basic.concat(rows, 0)
    return made

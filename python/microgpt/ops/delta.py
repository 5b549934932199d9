"""The gated delta rule over packed sequences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from .. import _kernels as k
from ..errors import DTypeError
from ..tensors import Tensor, as_array, full, wide
from . import basic, raw
from .op import Cost, check, check_float, check_state, elements_bytes, op, refuse
from .ssd import CHUNK, starts

Array = k.Array
Needs = list[bool] | None
EPS = 1e-6  # kDeltaEps in csrc/core/args_state.h


@op("q", "keys", "values", "g", "beta")
def gated_delta(
    q: Array,
    keys: Array,
    values: Array,
    g: Array,
    beta: Array,
    q_start: Array,
    scale: float | None = None,
    normalize: bool = False,
    state: Array | None = None,
    needs: Needs = None,
) -> Any:
    """o_t = S_t^T q_t where S_t = e^g S' + beta k (v - e^g S'^T k)^T, S' the state before (arXiv:2412.06464).

    q, keys (T, G, K), values (T, H, V), g (the logarithm of a decay) and beta (T, H); H is a multiple of G, and head h
    has key head h / (H / G) -> (T, H, V). q is multiplied by `scale` (1/sqrt(K) by default); with `normalize` q and
    keys are divided by sqrt(|.|^2 + 1e-6) before. Sequence s owns rows q_start[s]..q_start[s+1]-1 and starts from
    state[s] of `state` (S, H, K, V), which becomes its last state; without, from zero. g and beta may be float32 beside
    bfloat16. For the backward a state is kept for every 64 tokens, K V / 64 numbers a token and head. A `state` is not
    differentiated: UsageError where a gradient is wanted.
    """
    name = "gated_delta"
    check_float(name, q=q, keys=keys, values=values)
    if q.ndim != 3 or 0 in q.shape[1:]:
        refuse(name, "q", "three axes (tokens, heads, width), none of the last two empty", q.shape)
    tokens, key_heads, k_dim = q.shape
    check(keys.shape == q.shape, name, "keys", q.shape, keys.shape)
    if values.ndim != 3 or values.shape[0] != tokens or 0 in values.shape[1:]:
        refuse(name, "values", f"({tokens}, heads, width)", values.shape)
    heads, v_dim = values.shape[1:]
    check(heads % key_heads == 0, name, "values", f"a multiple of {key_heads} heads", heads)
    sums = wide(q.dtype)
    times = []
    for label, value in (("g", g), ("beta", beta)):
        check(value.shape == (tokens, heads), name, label, (tokens, heads), value.shape)
        if value.dtype not in (q.dtype, sums):
            raise DTypeError(f"{name}: `{label}` expected {q.dtype} or {sums}, got {value.dtype}")
        times.append(value if value.dtype == sums else raw.cast(value, sums))
    scale = 1.0 / math.sqrt(k_dim) if scale is None else scale
    check(0 < scale < math.inf, name, "scale", "a positive number", scale)
    sequences = starts(name, q_start)
    shape = (heads, k_dim, v_dim)
    check_state(name, state, q, (sequences, *shape), needs)
    settings: dict[str, Any] = {
        "q_start": q_start,
        "heads": heads,
        "key_heads": key_heads,
        "k_dim": k_dim,
        "v_dim": v_dim,
        "scale": scale,
        "normalize": normalize,
    }
    o = k.empty_like(values)
    chunks = k.empty((tokens // CHUNK + sequences, *shape), sums) if needs else None
    decays, rates = times
    k.gated_delta(q, keys, values, decays, rates, o, state=state, chunks=chunks, **settings)
    return o, (q, keys, values, *times, chunks, settings)


@gated_delta.backward
def _(saved: Any, dy: Array, dq: Any, dk: Any, dv: Any, dg: Any, dbeta: Any) -> None:
    q, keys, values, g, beta, chunks, settings = saved
    outputs: dict[str, Any] = {}
    slots = (("dq", dq, q), ("dk", dk, keys), ("dv", dv, values), ("dg", dg, g), ("dbeta", dbeta, beta))
    for name, slot, like in slots:
        outputs[name], outputs[f"accumulate_{name}"] = (
            (k.empty_like(like), False) if slot is None else slot.target(like.dtype)
        )
    k.gated_delta_backward(q, keys, values, g, beta, dy, chunks, **outputs, **settings)
    for name, slot, _like in slots:
        if slot is not None:
            slot.settle(outputs[name])


@gated_delta.cost
def _(q: Any, keys: Any, values: Any, g: Any, beta: Any, q_start: Any, scale: Any = None, normalize: bool = False,
      state: Any = None) -> Cost:  # fmt: skip
    # As the recurrence has it: S^T k, e^g S + k x^T, S^T q.
    tokens, heads, width = values.shape
    return Cost(7 * tokens * heads * q.shape[2] * width, elements_bytes(q, keys, values, values, g, beta))


@gated_delta.composed
def _(q: Tensor, keys: Tensor, values: Tensor, g: Tensor, beta: Tensor, q_start: Any, scale: float | None = None,
      normalize: bool = False, state: Any = None) -> Tensor:  # fmt: skip
    key_heads, k_dim, heads, v_dim = *q.shape[1:], *values.shape[1:]
    if normalize:
        q, keys = (each / ((each * each).sum(2, keepdims=True) + EPS).sqrt() for each in (q, keys))
    q = q * (1.0 / math.sqrt(k_dim) if scale is None else scale)
    ones = full((1, heads // key_heads, 1), 1.0, q.dtype)
    edges = [int(at) for at in np.asarray(as_array(q_start).numpy())]
    rows = []
    for begin, end in itertools.pairwise(edges):
        kept = full((heads, k_dim, v_dim), 0.0, q.dtype)
        for t in range(begin, end):
            of_q, of_k = ((each[t].reshape(key_heads, 1, k_dim) * ones).reshape(heads, k_dim, 1) for each in (q, keys))
            kept = kept * g[t].exp().reshape(heads, 1, 1)
            x = (values[t] - (kept * of_k).sum(1)) * beta[t].reshape(heads, 1)
            kept = kept + of_k * x.reshape(heads, 1, v_dim)
            rows.append((kept * of_q).sum(1).reshape(1, heads, v_dim))
    made: Tensor = basic.concat(rows, 0)
    return made

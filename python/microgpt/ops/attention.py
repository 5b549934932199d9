"""Scaled dot-product attention over packed sequences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _kernels as k
from ..errors import UsageError
from ..kvrows import KVRows
from ..tensors import Tensor, wide
from . import basic
from .layers import composed_softmax
from .op import Cost, check, check_float, check_int32, check_wide, elements_bytes, item_bytes, op

Array = k.Array
Needs = list[bool] | None


def _settings(
    name: str, q: Array, widths: tuple[int, int, int, int], sequences: tuple[Array, Array, Array], scale: float | None,
    causal: bool, window: int | None, soft_cap: float | None, alibi: Array | None,
) -> dict[str, Any]:  # fmt: skip
    """The kernel's arguments beside arrays of tokens, checked. `widths`: H, G, K, Kv; `sequences`: q_start, k_start,
    k_len."""
    q_start, k_start, k_len = sequences
    check_wide(name, q, alibi=alibi)
    check_int32(name, q_start=q_start, k_start=k_start, k_len=k_len)
    for label, array in (("q_start", q_start), ("k_start", k_start), ("k_len", k_len)):
        check(array is not None, name, label, "an Array", None)
    check(q_start.size == k_len.size + 1, name, "q_start", k_len.size + 1, q_start.size)
    check(k_start.size == k_len.size, name, "k_start", k_len.size, k_start.size)
    if window is not None:
        check(isinstance(window, (int, np.integer)), name, "window", "a whole number", window)
        check(0 < window < 2**62, name, "window", "at least 1", window)
    if scale is not None or soft_cap is not None:
        for label, number in (("scale", scale), ("soft_cap", soft_cap)):
            finite = isinstance(number, (int, float, np.number)) and math.isfinite(number)
            check(number is None or finite, name, label, "a finite number", number)
    heads, kv_heads, k_dim, v_dim = widths
    if alibi is not None:
        check(alibi.shape == (heads,), name, "alibi", (heads,), alibi.shape)
    check(k_dim > 0 and v_dim > 0, name, "q", "a width of at least 1", k_dim if k_dim == 0 else v_dim)
    return {
        "q_start": q_start,
        "k_start": k_start,
        "k_len": k_len,
        "heads": heads,
        "kv_heads": kv_heads,
        "k_dim": k_dim,
        "v_dim": v_dim,
        "scale": 1.0 / math.sqrt(k_dim) if scale is None else scale,
        "causal": causal,
        "window": -1 if window is None else window,
        "soft_cap": soft_cap or 0.0,
        "alibi": alibi,
    }


@op("q", "keys", "values")
def attention(
    q: Array,
    keys: Any,
    values: Any,
    q_start: Array,
    k_start: Array,
    k_len: Array,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi: Array | None = None,
    needs: Needs = None,
) -> Any:
    """softmax(scale * q k^T + mask) v for each packed sequence, tiled with online softmax (arXiv:2205.14135).

    q (T, H, K), k (keys, G, K), v (keys, G, Kv); H is a multiple of G -> (T, H, Kv). Sequence s owns the queries
    q_start[s]..q_start[s+1]-1 and the keys k_start[s]..k_start[s]+k_len[s]-1; its last query stands at its last key.
    `scale` defaults to 1/sqrt(K). `window` keeps keys nearer than that many positions. `soft_cap` bounds scores by
    cap * tanh(score / cap) (Gemma 2). `alibi` (H) are slopes of the distance (Press et al. 2022, arXiv:2108.12409).
    Keys and values may be KVRows, cached in a type of their own; then there is no gradient (UsageError). Nor is there
    where sequences share keys.
    """
    cached = isinstance(keys, KVRows)
    if cached is not isinstance(values, KVRows) or (cached and keys.dtype != values.dtype):
        raise UsageError("attention: keys and values must be cached in one type, or neither")
    check_float("attention", q=q, **({} if cached else {"k": keys, "v": values}))
    check(q.ndim == 3, "attention", "q", "three axes (tokens, heads, width)", q.shape)
    check(keys.ndim == 3 and keys.shape[2] == q.shape[2], "attention", "k", f"(keys, heads, {q.shape[2]})", keys.shape)
    check(
        values.ndim == 3 and values.shape[:2] == keys.shape[:2],
        "attention",
        "v",
        (*keys.shape[:2], "width"),
        values.shape,
    )
    heads, kv_heads = q.shape[1], keys.shape[1]
    check(kv_heads > 0 and heads % kv_heads == 0, "attention", "k", f"a number of heads that divides {heads}", kv_heads)
    widths = (heads, kv_heads, q.shape[2], values.shape[2])
    settings = _settings("attention", q, widths, (q_start, k_start, k_len), scale, causal, window, soft_cap, alibi)
    o = k.empty((q.shape[0], heads, values.shape[2]), q.dtype)
    lse = k.empty((heads, q.shape[0]), wide(q.dtype)) if needs else None
    if isinstance(keys, KVRows) and isinstance(values, KVRows):
        scales: dict[str, Any] = {"k_scales": keys.scales, "v_scales": values.scales}
        k.attention(q, keys.data, values.data, o, lse=lse, **scales, **settings)
    else:
        k.attention(q, keys, values, o, lse=lse, **settings)
    return o, (q, keys, values, o, lse, settings)


@attention.backward
def _(saved: Any, dy: Array, dq: Any, dk: Any, dv: Any) -> None:
    q, keys, values, o, lse, settings = saved
    if isinstance(keys, KVRows):
        raise UsageError("attention: no gradient goes through cached keys and values")
    # The kernel computes the three together; a gradient that nobody asked for goes to a scratch array.
    outputs: dict[str, Any] = {}
    slots = (("dq", dq, q), ("dk", dk, keys), ("dv", dv, values))
    for name, slot, like in slots:
        array, add_to = (k.empty_like(like), False) if slot is None else slot.target(q.dtype)
        outputs[name] = array
        outputs[f"accumulate_{name}"] = add_to
    k.attention_backward(q, keys, values, o, lse, dy, **outputs, **settings)
    for name, slot, _like in slots:
        if slot is not None:
            slot.settle(outputs[name])


@attention.cost
def _(q: Any, keys: Any, values: Any, q_start: Any, k_start: Any, k_len: Any, scale: Any = None, causal: bool = True,
      window: int | None = None, soft_cap: Any = None, alibi: Any = None) -> Cost:  # fmt: skip
    rows, heads, width = q.shape
    item = item_bytes(q.dtype)
    flops = _flops(rows, keys.shape[0], heads, width + values.shape[2], causal, window)
    return Cost(flops, elements_bytes(q, keys, values) + rows * heads * values.shape[2] * item)


def _flops(rows: int, keys: int, heads: int, widths: int, causal: bool, window: int | None) -> int:
    """Of one sequence that fills the arrays: an upper bound that needs no look at the data. `widths`: K + Kv."""
    seen = min(keys, window or keys)
    pairs = rows * seen // (2 if causal and window is None and rows == keys else 1)
    return 2 * heads * pairs * widths


@attention.composed
def _(q: Tensor, keys: Tensor, values: Tensor, q_start: Any, k_start: Any, k_len: Any, scale: float | None = None,
      causal: bool = True, window: int | None = None, soft_cap: float | None = None,
      alibi: Any = None) -> Tensor:  # fmt: skip
    starts, kstarts, klens = (_numbers(each) for each in (q_start, k_start, k_len))
    heads, kv_heads = q.shape[1], keys.shape[1]
    scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else scale
    outputs = []
    for s in range(len(klens)):
        rows, length = starts[s + 1] - starts[s], klens[s]
        if rows == 0:
            continue
        distance = np.arange(length)[None, :] - (length - rows + np.arange(rows))[:, None]  # key minus query position
        hidden = np.zeros(distance.shape, bool)
        if causal:
            hidden |= distance > 0
        if window is not None:
            hidden |= np.abs(distance) >= window
        mask = Tensor(np.where(hidden, -np.inf, 0.0).astype(q.dtype))
        per_head = []
        for h in range(heads):
            g = h // (heads // kv_heads)
            keys_h = keys[kstarts[s] : kstarts[s] + length, g]
            scores = (q[starts[s] : starts[s + 1], h] @ keys_h.permute(1, 0)) * scale
            if soft_cap:
                scores = (scores / soft_cap).tanh() * soft_cap
            if alibi is not None:
                slope = float(_numbers(alibi, float)[h])
                scores = scores + Tensor((slope * distance).astype(q.dtype))
            p = composed_softmax(scores + mask)
            out = p @ values[kstarts[s] : kstarts[s] + length, g]
            per_head.append(out.reshape(rows, 1, values.shape[2]))
        outputs.append(basic.concat(per_head, 1))
    result: Tensor = basic.concat(outputs, 0)
    return result


@op("qkv")
def packed_attention(
    qkv: Array,
    kv_heads: int,
    q_start: Array,
    k_start: Array,
    k_len: Array,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi: Array | None = None,
    needs: Needs = None,
) -> Any:
    """attention() of queries, keys and values that one projection made -> (T, H, K).

    qkv (T, H + 2 G, K) holds of each token its H queries, then its G keys, then its G values. `kv_heads` is G.
    """
    name = "packed_attention"
    check_float(name, qkv=qkv)
    check(qkv.ndim == 3, name, "qkv", "three axes (tokens, heads, width)", qkv.shape)
    tokens, heads, width = qkv.shape[0], qkv.shape[1] - 2 * kv_heads, qkv.shape[2]
    fits = kv_heads > 0 and heads > 0 and heads % kv_heads == 0
    check(fits, name, "kv_heads", f"G of {qkv.shape[1]} = H + 2 G heads, H a multiple of G", kv_heads)
    widths = (heads, kv_heads, width, width)
    settings = _settings(name, qkv, widths, (q_start, k_start, k_len), scale, causal, window, soft_cap, alibi)
    settings["packed"] = True
    o = k.empty((tokens, heads, width), qkv.dtype)
    lse = k.empty((heads, tokens), wide(qkv.dtype)) if needs else None
    k.attention(qkv, qkv, qkv, o, lse=lse, **settings)
    return o, (qkv, o, lse, settings)


@packed_attention.backward
def _(saved: Any, dy: Array, dqkv: Any) -> None:
    qkv, o, lse, settings = saved
    array, add_to = dqkv.target(qkv.dtype)
    adding = dict.fromkeys(("accumulate_dq", "accumulate_dk", "accumulate_dv"), add_to)
    k.attention_backward(qkv, qkv, qkv, o, lse, dy, array, array, array, **adding, **settings)
    dqkv.settle(array)


@packed_attention.cost
def _(qkv: Any, kv_heads: int, q_start: Any, k_start: Any, k_len: Any, scale: Any = None, causal: bool = True,
      window: int | None = None, soft_cap: Any = None, alibi: Any = None) -> Cost:  # fmt: skip
    tokens, heads, width = qkv.shape[0], qkv.shape[1] - 2 * kv_heads, qkv.shape[2]
    flops = _flops(tokens, tokens, heads, 2 * width, causal, window)
    return Cost(flops, elements_bytes(qkv) + tokens * heads * width * item_bytes(qkv.dtype))


@packed_attention.composed
def _(qkv: Tensor, kv_heads: int, *sequences: Any, **options: Any) -> Tensor:
    heads = qkv.shape[1] - 2 * kv_heads
    q, keys, values = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
    assert attention.composed_fn is not None
    y: Tensor = attention.composed_fn(q, keys, values, *sequences, **options)
    return y


def _numbers(value: Any, kind: type = int) -> list[Any]:
    data = value.data if isinstance(value, Tensor) else value
    return [kind(each) for each in data.numpy()]

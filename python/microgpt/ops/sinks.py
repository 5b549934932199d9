"""Attention whose softmax has one more score a head, learned and without a value (gpt-oss's sinks)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _kernels as k
from ..tensors import Tensor, full
from . import basic, raw
from .attention import attention
from .layers import composed_softmax
from .op import Cost, check, check_float, op

Array = k.Array
Needs = list[bool] | None


@op("q", "keys", "values", "sinks")
def sink_attention(
    q: Array, keys: Array, values: Array, sinks: Array, q_start: Array, k_start: Array, k_len: Array,
    needs: Needs = None, **options: Any,
) -> Any:  # fmt: skip
    """attention() with sinks (H) among the scores: its output times sigmoid(lse - sink), lse the log of its sum.

    The other arguments are attention's.
    """
    check_float("sink_attention", q=q, sinks=sinks)
    check(sinks.shape == q.shape[1:2], "sink_attention", "sinks", q.shape[1:2], sinks.shape)
    # `needs` makes attention keep lse (H, T), which the gate is made of.
    o, (*_, lse, settings) = attention.forward(q, keys, values, q_start, k_start, k_len, needs=[True], **options)
    sink = sinks if sinks.dtype == lse.dtype else raw.cast(sinks, lse.dtype)
    over = raw.binary("sub", lse, sink.view((sink.size, 1)))
    y = raw.binary("mul", o, _by_token(raw.unary("sigmoid", over), o.dtype))
    if not needs:
        return y, None
    # The log of the sum that has the sink: max(lse, sink) - log(sigmoid(|lse - sink|)).
    size = raw.binary("max", over, raw.unary("neg", over))
    largest = raw.binary("max", lse, sink.view((sink.size, 1)))
    total = raw.binary("sub", largest, raw.unary("log", raw.unary("sigmoid", size)))
    return y, (q, keys, values, y, total, over, settings)


def _by_token(x: Array, dtype: str) -> Array:
    """(H, T) -> (T, H, 1)."""
    heads, tokens = x.shape
    turned = raw.strided(x, (tokens, heads, 1), (1, tokens, 0))
    return turned if dtype == turned.dtype else raw.cast(turned, dtype)


@sink_attention.backward
def _(saved: Any, dy: Array, dq: Any, dk: Any, dv: Any, dsinks: Any) -> None:
    q, keys, values, y, total, over, settings = saved
    # A sink is a key whose value is zero: the others' gradients are attention's own, with the sum that has the sink.
    if dq is not None or dk is not None or dv is not None:
        attention.backward_fn((q, keys, values, y, total, settings), dy, dq, dk, dv)  # type: ignore[misc]
    if dsinks is not None:
        products = raw.reduce(raw.binary("mul", dy, y), 2)  # (T, H)
        if products.dtype != total.dtype:
            products = raw.cast(products, total.dtype)
        share = _by_token(raw.unary("sigmoid", raw.unary("neg", over)), total.dtype)  # the sink's probability
        lost = raw.reduce(raw.binary("mul", products, share.view(products.shape)), 0)
        raw.give(dsinks, raw.unary("neg", lost), owned=True)


@sink_attention.cost
def _(q: Any, keys: Any, values: Any, sinks: Any, q_start: Any, k_start: Any, k_len: Any, **options: Any) -> Cost:
    assert attention.cost_fn is not None
    cost = attention.cost_fn(q, keys, values, q_start, k_start, k_len, **options)
    return Cost(cost.flops + q.size, cost.bytes)


@sink_attention.composed
def _(q: Tensor, keys: Tensor, values: Tensor, sinks: Tensor, q_start: Any, k_start: Any, k_len: Any,
      **options: Any) -> Tensor:  # fmt: skip
    starts, firsts, lengths = ([int(n) for n in _array(each).numpy()] for each in (q_start, k_start, k_len))
    group = q.shape[1] // keys.shape[1]
    scale = options.get("scale") or 1.0 / math.sqrt(q.shape[2])
    cap, window, alibi = options.get("soft_cap"), options.get("window"), options.get("alibi")
    outputs = []
    for s, length in enumerate(lengths):
        rows, there = starts[s + 1] - starts[s], slice(firsts[s], firsts[s] + length)
        if rows == 0:
            continue
        distance = np.arange(length)[None, :] - (length - rows + np.arange(rows))[:, None]
        hidden = (distance > 0) & options.get("causal", True) | (abs(distance) >= (window or np.inf))
        mask = Tensor(np.where(hidden, -np.inf, 0.0).astype(q.dtype))
        heads = []
        for h in range(q.shape[1]):
            scores = (q[starts[s] : starts[s + 1], h] @ keys[there, h // group].permute(1, 0)) * scale
            if cap:
                scores = (scores / cap).tanh() * cap
            if alibi is not None:
                scores = scores + Tensor((float(_array(alibi).numpy()[h]) * distance).astype(q.dtype))
            column = full((rows, 1), 1.0, q.dtype) * sinks[h]
            p = composed_softmax(basic.concat([scores + mask, column], 1))
            heads.append((p[:, :length] @ values[there, h // group]).reshape(rows, 1, values.shape[2]))
        outputs.append(basic.concat(heads, 1))
    result: Tensor = basic.concat(outputs, 0)
    return result


def _array(value: Any) -> Array:
    data: Array = value.data if isinstance(value, Tensor) else value
    return data

"""Attention over packed sequences: grouped heads, windows, caps, slopes, chunk and tile edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError

from .bounds import ELEMENTARY, Numbers, gamma
from .case import Case, ErrorCase, Inputs, Rule, array, int32, int32_array


def packed(
    rows: Sequence[int],
    lengths: Sequence[int],
    heads: int,
    kv_heads: int,
    width: int,
    v_width: int = 0,
    gap: int = 0,
    alibi: bool = False,
) -> Callable[[np.random.Generator], Inputs]:
    """Sequences of `rows` queries and `lengths` keys; `gap` unused keys before each."""

    def make(rng: np.random.Generator) -> Inputs:
        starts = np.cumsum([gap, *(n + gap for n in lengths)])
        keys = int(sum(lengths) + gap * len(lengths))
        made = {
            "q": rng.standard_normal((sum(rows), heads, width)),
            "keys": rng.standard_normal((keys, kv_heads, width)),
            "values": rng.standard_normal((keys, kv_heads, v_width or width)),
            "q_start": np.cumsum([0, *rows]).astype(np.int32),
            "k_start": starts[:-1].astype(np.int32),
            "k_len": int32(*lengths),
        }
        if alibi:
            made["alibi"] = 2.0 ** -np.arange(1, heads + 1)
        return made

    return make


def heads_of(i: Inputs, o: Any) -> Iterator[tuple[slice, slice, int, int, Numbers, Numbers, Numbers]]:
    """For each sequence and head: query rows, key rows, head, key head, scores (-inf: hidden), error / u, cap slope."""
    heads, kv_heads, width = i["q"].shape[1], i["keys"].shape[1], i["q"].shape[2]
    scale = o.get("scale") or 1.0 / math.sqrt(width)
    for s, length in enumerate(i["k_len"]):
        rows = slice(int(i["q_start"][s]), int(i["q_start"][s + 1]))
        keys = slice(int(i["k_start"][s]), int(i["k_start"][s] + length))
        n = rows.stop - rows.start
        if n == 0:
            continue
        distance = np.arange(length)[None, :] - (length - n + np.arange(n))[:, None]
        hidden = np.zeros(distance.shape, bool)
        if o.get("causal", True):
            hidden |= distance > 0
        if o.get("window"):
            hidden |= np.abs(distance) >= o["window"]
        for h in range(heads):
            g = h // (heads // kv_heads)
            q, key = i["q"][rows, h], i["keys"][keys, g]
            scores = scale * (q @ key.T)
            error = gamma(width + 2, 1.0) * abs(scale) * (np.abs(q) @ np.abs(key).T)
            slope = np.ones_like(scores)
            cap = o.get("soft_cap")
            if cap:  # |d cap tanh(c / cap)| <= |dc|, tanh itself and its product round
                error = error + (ELEMENTARY + 2) * np.abs(cap * np.tanh(scores / cap))
                scores = cap * np.tanh(scores / cap)
                slope = 1 - (scores / cap) ** 2
            if "alibi" in i:
                scores = scores + i["alibi"][h] * distance
                error = error + np.abs(i["alibi"][h] * distance) + np.abs(scores)
            yield rows, keys, h, g, np.where(hidden, -np.inf, scores), np.where(hidden, 0.0, error), slope


def softmax_of(scores: Numbers, error: Numbers, u: float) -> tuple[Numbers, Numbers]:
    """P and its relative error: of one exponential (also rescaled once for each later chunk of 64), and of the sum."""
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chunks = 1 + scores.shape[-1] // 64
    distance = np.where(np.isinf(scores), 0.0, np.abs(scores - scores.max(-1, keepdims=True)))
    one = u * (error + 2 * distance + (ELEMENTARY + 1) * chunks)
    return p, one + one.max(-1, keepdims=True) + gamma(scores.shape[-1] + chunks, u)


def _forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    bound = np.zeros_like(y)
    for rows, keys, h, g, scores, error, _ in heads_of(i, o):
        p, relative = softmax_of(scores, error, u)
        value = np.abs(i["values"][keys, g])
        bound[rows, h] = (p * relative) @ value + gamma(p.shape[1] + 3, u) * (p @ value)
    return bound


def _gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    """dV = P^T dO, dS = P (dO V^T - sum(dO O)), dQ = dS K, dK = dS^T Q, each with its sums' and its inputs' errors."""
    scale = o.get("scale") or 1.0 / math.sqrt(i["q"].shape[2])
    group = i["q"].shape[1] // i["keys"].shape[1]
    out = {name: np.zeros_like(i[name]) for name in ("q", "keys", "values")}
    forward = _forward(i, o, y, u)
    for rows, keys, h, g, scores, error, slope in heads_of(i, o):
        n, length = scores.shape
        p, relative = softmax_of(scores, error, u)
        d, value = np.abs(dy[rows, h]), np.abs(i["values"][keys, g])
        out["values"][keys, g] += (p * relative).T @ d + gamma(n * group + 2, u) * (p.T @ d)
        dp, total = d @ value.T, (d * np.abs(y[rows, h])).sum(1, keepdims=True)
        true = dy[rows, h] @ i["values"][keys, g].T - (dy[rows, h] * y[rows, h]).sum(1, keepdims=True)
        off = gamma(value.shape[1] + 2, u) * (dp + total) + (d * forward[rows, h]).sum(1, keepdims=True)
        ds = p * np.abs(true) * slope
        # 1 - tanh^2 is off by twice tanh's error, which holds the score's own
        tilt = 2 * u * error / o["soft_cap"] + 3 * ELEMENTARY * u if o.get("soft_cap") else 0.0
        error_ds = p * (off * slope + np.abs(true) * ((relative + 3 * u) * slope + tilt))
        query, key = np.abs(i["q"][rows, h]), np.abs(i["keys"][keys, g])
        out["q"][rows, h] += abs(scale) * (error_ds @ key + gamma(length + 3, u) * (ds @ key))
        out["keys"][keys, g] += abs(scale) * (error_ds.T @ query + gamma(n * group + 3, u) * (ds.T @ query))
    return out


def _case(label: str, make: Callable[..., Inputs], small: bool = False, shares: bool = False, **options: Any) -> Case:
    return Case("attention", label, make, options, small=small, shares=shares)


CASES: list[Case] = [
    _case("one", packed([1], [1], 1, 1, 1), small=True),
    _case("small", packed([3], [3], 2, 1, 3), small=True),
    _case("small-two", packed([2, 3], [2, 4], 2, 2, 2, 3), small=True),
    _case("small-full", packed([3], [5], 2, 2, 2), small=True, causal=False),
    _case("small-cap", packed([4], [4], 1, 1, 3), small=True, soft_cap=1.5),
    _case("small-window", packed([5], [5], 1, 1, 2), small=True, window=2),
    _case("small-slopes", packed([4], [5], 2, 1, 2, alibi=True), small=True),
    _case("none", packed([0], [0], 2, 1, 4)),
    _case("no-sequences", packed([], [], 2, 1, 4)),
    _case("empty-between", packed([3, 0, 4], [3, 2, 4], 2, 1, 5)),
    _case("gaps", packed([3, 5], [7, 5], 4, 2, 8, gap=3)),
    *(_case(f"edge{n}", packed([n], [n], 2, 1, 16)) for n in (15, 16, 17, 31, 33, 63, 65, 127, 129)),
    *(_case(f"width{n}", packed([9], [13], 2, 2, n, n + 3)) for n in (1, 7, 17, 33, 65)),
    _case("decode", packed([1, 1, 1], [65, 1, 200], 4, 2, 32)),
    _case("scale", packed([17], [17], 2, 1, 8), scale=0.3),
    _case("full", packed([33, 7], [70, 9], 4, 4, 16), causal=False),
    _case("window", packed([70], [200], 2, 1, 16), window=65),
    _case("window-full", packed([40], [70], 2, 1, 16), causal=False, window=17),
    _case("everything", packed([33, 12], [140, 12], 6, 2, 24, 20, alibi=True), window=50, soft_cap=5.0),
    _case("shares", packed([65, 1, 100], [130, 67, 100], 4, 2, 32), shares=True),
]
RULES = {"attention": Rule(_forward, _gradients)}


def _call(
    q: Any = None,
    keys: Any = None,
    values: Any = None,
    q_start: Any = (0, 2),
    k_start: Any = (0,),
    k_len: Any = (3,),
    **options: Any,
) -> Any:
    return ops.attention(
        array((2, 4, 8)) if q is None else q,
        array((3, 2, 8)) if keys is None else keys,
        array((3, 2, 5)) if values is None else values,
        *(int32_array(*each) if isinstance(each, tuple) else each for each in (q_start, k_start, k_len)),
        **options,
    )


def _error(label: str, pattern: str, error: type[Exception] = ShapeError, **arguments: Any) -> ErrorCase:
    return ErrorCase(
        "attention",
        label,
        lambda: _call(**{n: a() if callable(a) else a for n, a in arguments.items()}),
        error,
        f"attention: {pattern}",
    )


ERRORS: list[ErrorCase] = [
    _error("axes", r"`q` expected three axes .*\(2, 8\)", q=lambda: array((2, 8))),
    _error("width", r"`k` expected \(keys, heads, 8\), got \(3, 2, 7\)", keys=lambda: array((3, 2, 7))),
    _error("values", r"`v` expected \(3, 2, 'width'\), got \(4, 2, 5\)", values=lambda: array((4, 2, 5))),
    _error(
        "heads",
        r"`k` expected a number of heads that divides 4, got 3",
        keys=lambda: array((3, 3, 8)),
        values=lambda: array((3, 3, 5)),
    ),
    _error("window", r"`window` expected at least 1, got 0", window=0),
    _error(
        "mixed", r"`v` expected float32 like `q`, got float64", DTypeError, values=lambda: array((3, 2, 5), "float64")
    ),
    _error("int64", r"`k_len` expected int32, got int64", DTypeError, k_len=lambda: array((1,), "int64")),
    _error("counts", r"`q_start` expected 2, got 3", q_start=(0, 1, 2)),
    _error("starts", r"`k_start` expected 1, got 2", k_start=(0, 0)),
    _error("no starts", r"`k_start` expected an Array, got None", k_start=None),
    _error("part of a window", r"`window` expected a whole number, got 2.5", window=2.5),
    _error("cap", r"`soft_cap` expected a finite number, got nan", soft_cap=float("nan")),
    _error("scale", r"`scale` expected a finite number, got x", scale="x"),
    _error(
        "no width",
        r"`q` expected a width of at least 1, got 0",
        q=lambda: array((2, 4, 0)),
        keys=lambda: array((3, 2, 0)),
    ),
    _error("begin", r"`q_start` must run from 0 to the 2 query rows", q_start=(1, 2)),
    _error("end", r"`q_start` must run from 0 to the 2 query rows", q_start=(0, 3)),
    _error("falls", r"`q_start` falls at sequence 1", q_start=(0, 3, 2), k_start=(0, 0), k_len=(3, 3)),
    _error("keys", r"sequence 0 has keys 1\.\.4 of 3", k_start=(1,)),
    _error("negative", r"sequence 0 has keys -1", k_start=(-1,)),
    _error("length", r"sequence 0 has keys", k_len=(-3,)),
    _error("overflow", r"sequence 0 has keys", k_start=(2**31 - 1,), k_len=(2**31 - 1,)),
    _error("queries", r"sequence 0 has more queries than keys", k_len=(1,)),
    _error("slopes", r"`alibi` expected \(4,\), got \(3,\)", alibi=lambda: array((3,))),
]

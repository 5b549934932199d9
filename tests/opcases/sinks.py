"""Attention with sinks: attention's own cases with one more score a head, whose value is zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError

from .attention import heads_of, packed, softmax_of
from .bounds import ELEMENTARY, Numbers, gamma
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array


def with_sinks(make: Callable[[np.random.Generator], Inputs]) -> Callable[[np.random.Generator], Inputs]:
    """The same with a random sink a head."""

    def made(rng: np.random.Generator) -> Inputs:
        inputs = make(rng)
        return inputs | {"sinks": rng.standard_normal(inputs["q"].shape[1])}

    return made


def _heads(i: Inputs, o: Any, u: float) -> Iterator[tuple[slice, slice, int, int, Numbers, Numbers, Numbers, Numbers]]:
    """As attention's, with P (its last column the sink's) and its relative error for scores and errors."""
    for rows, keys, h, g, scores, error, slope in heads_of(i, o):
        column = np.full((scores.shape[0], 1), i["sinks"][h])
        p, relative = softmax_of(np.hstack([scores, column]), np.hstack([error, 0 * column]), u)
        lse = np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1, keepdims=True)) + scores.max(1, keepdims=True)
        # the gate: sigmoid and log of a difference of two rounded numbers, two products
        relative = relative + u * (4 * ELEMENTARY + 4 + 2 * np.abs(lse) + 2 * np.abs(column))
        yield rows, keys, h, g, p, relative, slope, error


def _forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    bound = np.zeros_like(y)
    for rows, keys, h, g, p, relative, _, _ in _heads(i, o, u):
        value, p, relative = np.abs(i["values"][keys, g]), p[:, :-1], relative[:, :-1]
        bound[rows, h] = (p * relative) @ value + gamma(p.shape[1] + 6, u) * (p @ value)
    return bound


def _gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    """attention's with P that has the sink; the sink's own is -sum(p_sink (dO O))."""
    scale = o.get("scale") or i["q"].shape[2] ** -0.5
    group = i["q"].shape[1] // i["keys"].shape[1]
    out = {name: np.zeros_like(i[name]) for name in ("q", "keys", "values", "sinks")}
    forward = _forward(i, o, y, u)
    for rows, keys, h, g, both, relatives, slope, error in _heads(i, o, u):
        p, relative = both[:, :-1], relatives[:, :-1]
        n, length = p.shape
        d, value = np.abs(dy[rows, h]), np.abs(i["values"][keys, g])
        out["values"][keys, g] += (p * relative).T @ d + gamma(n * group + 2, u) * (p.T @ d)
        dp, total = d @ value.T, (d * np.abs(y[rows, h])).sum(1, keepdims=True)
        inner = (dy[rows, h] * y[rows, h]).sum(1, keepdims=True)
        true = dy[rows, h] @ i["values"][keys, g].T - inner
        off_inner = gamma(value.shape[1] + 3, u) * total + (d * forward[rows, h]).sum(1, keepdims=True)
        off = gamma(value.shape[1] + 2, u) * dp + off_inner
        ds = p * np.abs(true) * slope
        tilt = 2 * u * error / o["soft_cap"] + 3 * ELEMENTARY * u if o.get("soft_cap") else 0.0
        error_ds = p * (off * slope + np.abs(true) * ((relative + 3 * u) * slope + tilt))
        query, key = np.abs(i["q"][rows, h]), np.abs(i["keys"][keys, g])
        out["q"][rows, h] += abs(scale) * (error_ds @ key + gamma(length + 3, u) * (ds @ key))
        out["keys"][keys, g] += abs(scale) * (error_ds.T @ query + gamma(n * group + 3, u) * (ds.T @ query))
        sink, sink_error = both[:, -1:], relatives[:, -1:]
        tokens = i["q"].shape[0]
        out["sinks"][h] += float((sink * (off_inner + np.abs(inner) * (sink_error + gamma(tokens + 3, u)))).sum())
    return out


def _case(label: str, make: Callable[..., Inputs], small: bool = False, shares: bool = False, **options: Any) -> Case:
    return Case("sink_attention", label, with_sinks(make), options, small=small, shares=shares)


CASES: list[Case] = [
    _case("small", packed([3], [3], 2, 1, 3), small=True),
    _case("small-two", packed([2, 3], [2, 4], 2, 2, 2, 3), small=True),
    _case("small-window-cap", packed([4], [5], 2, 1, 2), small=True, window=2, soft_cap=1.5),
    _case("decode", packed([1, 1, 1], [65, 1, 200], 4, 2, 32)),
    _case("window", packed([70], [200], 2, 1, 16), window=65, scale=0.3),
    _case("everything", packed([33, 12], [140, 12], 6, 2, 24, 20, alibi=True), window=50, soft_cap=5.0),
    _case("shares", packed([65, 1, 100], [130, 67, 100], 4, 2, 32), shares=True),
]
RULES = {"sink_attention": Rule(_forward, _gradients)}


def _call(sinks: Any = None, **options: Any) -> Any:
    layout = (int32_array(*each) for each in ((0, 2), (0,), (3,)))
    return ops.sink_attention(
        array((2, 4, 8)),
        array((3, 2, 8)),
        array((3, 2, 5)),
        array((4,)) if sinks is None else sinks,
        *layout,
        **options,
    )


def _error(label: str, pattern: str, error: type[Exception] = ShapeError, **arguments: Any) -> ErrorCase:
    return ErrorCase(
        "sink_attention", label, lambda: _call(**{n: a() if callable(a) else a for n, a in arguments.items()}), error,
        pattern,
    )  # fmt: skip


ERRORS: list[ErrorCase] = [
    _error("sinks", r"sink_attention: `sinks` expected \(4,\), got \(3,\)", sinks=lambda: array((3,))),
    _error(
        "mixed", r"`sinks` expected float32 like `q`, got float64", DTypeError, sinks=lambda: array((4,), "float64")
    ),
    _error("window", r"`window` expected at least 1, got 0", window=0),
]

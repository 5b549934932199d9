"""Mamba-2's state-space duality: chunk and vector edges, groups, packed sequences, softplus and its limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError

from .bounds import ELEMENTARY, U16, U32, Numbers, gamma, sigmoid
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array


def recurrence(
    rows: Sequence[int], heads: int, width: int, groups: int, inner: int, extras: bool = True, fast: float = 1.0
) -> Callable[[np.random.Generator], Inputs]:
    """Sequences of `rows` tokens; decays between exp(-fast) and 1, mostly."""

    def make(rng: np.random.Generator) -> Inputs:
        tokens = sum(rows)
        made: Inputs = {
            "x": rng.standard_normal((tokens, heads, width)),
            "dt": rng.uniform(0.05, 0.6, (tokens, heads)),
            "a": -fast * rng.uniform(0.1, 1.5, heads),
            "b": rng.standard_normal((tokens, groups, inner)),
            "c": rng.standard_normal((tokens, groups, inner)),
        }
        if extras:
            made["skip"] = rng.standard_normal(heads)
            made["dt_bias"] = rng.standard_normal(heads) - 1.0
            made["dt"] = rng.standard_normal((tokens, heads))
        return made | {"q_start": np.cumsum([0, *rows]).astype(np.int32)}

    return make


def times(i: Inputs, o: Any, u: float) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """d, its error, its slope and the slope's relative error. Softplus is within 3 ulp of its argument's."""
    raw = i["dt"] + i.get("dt_bias", 0.0)
    d, slope = raw, np.ones_like(raw)
    error = u * np.abs(raw) * ("dt_bias" in i)
    if o.get("softplus"):
        d, slope = np.logaddexp(0.0, raw), sigmoid(raw)
        error = slope * error + 6 * u * d
    low, high = o.get("limits", (0.0, math.inf))
    slope = np.where((d < low) | (d > high), 0.0, slope)
    d = np.clip(d, low, high)
    assert not np.any((np.abs(d - low) < 2 * error) & (d > low)), "a case next to a limit has no slope"
    return d, error, slope, (ELEMENTARY + np.abs(raw)) * u


def spread(x: Numbers, heads: int) -> Numbers:
    """(T, G, N) -> (T, H, N)."""
    return np.repeat(x, heads // x.shape[1], 1)


def _ends(i: Inputs) -> list[tuple[int, int]]:
    edges = i["q_start"].tolist()
    return list(itertools.pairwise(edges))


def _inner(u: float) -> float:
    return U32 if u == U16 else u  # bfloat16 is computed in float32


def _forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    """The recurrence of the errors: a step passes them on with its decay and adds, relative to the sums of absolute
    values, those of its decay (a d rounded, one exponential, twice: a chunk multiplies what it kept once more), of
    d x b^T and of the sum. The product with c is a chain of N, and of 64 rows.
    """
    v, heads = _inner(u), i["x"].shape[1]
    d, off, _, _ = times(i, o, v)
    x, b, c = np.abs(i["x"]), np.abs(spread(i["b"], heads)), np.abs(spread(i["c"], heads))
    bound = np.zeros_like(y)
    for begin, end in _ends(i):
        size = error = np.zeros((*x.shape[1:], b.shape[2]))
        for t in range(begin, end):
            decay = np.exp(d[t] * i["a"])[:, None, None]
            relative = (np.abs(i["a"]) * (off[t] + 2 * v * d[t]) + 6 * v)[:, None, None]
            added = x[t][:, :, None] * b[t][:, None, :]
            size, error = (
                decay * size + d[t][:, None, None] * added,
                decay * (error + relative * size) + (off[t] + 4 * v * d[t])[:, None, None] * added,
            )
            error = error + 2 * v * size
            total = (size * c[t][:, None, :]).sum(2)
            bound[t] = (error * c[t][:, None, :]).sum(2) + gamma(b.shape[2] + 80, v) * total
            bound[t] += 2 * v * np.abs(i["skip"])[:, None] * x[t] if "skip" in i else 0.0
    return bound + (2 * u * (np.abs(y) + bound) if u == U16 else 0.0)


def _gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    """Every gradient is a sum of products of a decay and of numbers given: its relative error, against the sum of their
    absolute values, is that of the longest decay plus that of the sums on the way.
    """
    v, heads = _inner(u), i["x"].shape[1]
    d, off, slope, tilt = times(i, o, v)
    x, b, c, g = np.abs(i["x"]), np.abs(spread(i["b"], heads)), np.abs(spread(i["c"], heads)), np.abs(dy)
    a = np.abs(i["a"])
    out: dict[str, Numbers] = {name: np.zeros_like(each) for name, each in i.items() if each.dtype == np.float64}
    db, dc, dd = np.zeros_like(b), np.zeros_like(b), np.zeros_like(d)
    longest = 0.0
    for begin, end in _ends(i):
        if begin == end:
            continue
        states = [np.zeros((*x.shape[1:], b.shape[2]))]
        decays = np.exp(d * i["a"])
        for t in range(begin, end):
            states.append(decays[t][:, None, None] * states[-1] + (d[t][:, None] * x[t])[:, :, None] * b[t][:, None, :])
        carried = np.zeros_like(states[0])
        for t in range(end - 1, begin - 1, -1):
            carried = carried + g[t][:, :, None] * c[t][:, None, :]
            dc[t] = (g[t][:, :, None] * states[t - begin + 1]).sum(1)
            db[t] = (carried * (d[t][:, None] * x[t])[:, :, None]).sum(1)
            dx = (carried * b[t][:, None, :]).sum(2)
            out["x"][t] = d[t][:, None] * dx
            held = decays[t] * (carried * states[t - begin]).sum((1, 2))
            dd[t] = a * held + (dx * x[t]).sum(1)
            out["a"] += d[t] * held
            carried = carried * decays[t][:, None, None]
        longest = max(longest, float(np.max((a * (off + 2 * v * d) + 6 * v)[begin:end].sum(0))))
    if "skip" in i:
        out["x"] += np.abs(i["skip"])[:, None] * g
        out["skip"] = (g * x).sum((0, 2))
    out["b"], out["c"] = (
        each.reshape(*i["b"].shape[:2], heads // i["b"].shape[1], b.shape[2]).sum(2) for each in (db, dc)
    )
    tokens, _, width = x.shape
    rest = float(np.max(off / np.maximum(d, 1e-30), initial=0.0))
    relative = longest + rest + gamma(tokens + 200, v) + gamma(b.shape[2], v) + gamma(width, v)
    out["dt"] = dd * slope
    bounds = {name: relative * each for name, each in out.items()}
    bounds["dt"] = bounds["dt"] + tilt * out["dt"]
    if "dt_bias" in i:
        bounds["dt_bias"] = bounds["dt"].sum(0) + gamma(tokens, v) * out["dt"].sum(0)
        out["dt_bias"] = out["dt"].sum(0)
    if u == U16:
        bounds = {name: each + 2 * u * out[name] for name, each in bounds.items()}
    return bounds


def _case(label: str, make: Callable[..., Inputs], small: bool = False, shares: bool = False, **options: Any) -> Case:
    return Case("ssd", label, make, options, small=small, shares=shares)


CASES: list[Case] = [
    _case("one", recurrence([1], 1, 1, 1, 1, extras=False), small=True),
    _case("small", recurrence([3], 2, 3, 1, 2, extras=False), small=True),
    _case("small-two", recurrence([2, 3], 2, 2, 2, 3), small=True, softplus=True),
    _case("small-limits", recurrence([4], 2, 2, 1, 2), small=True, softplus=True, limits=(0.1, 1.0)),
    _case("empty-between", recurrence([3, 0, 4], 2, 5, 1, 4), softplus=True),
    _case("none", recurrence([0], 2, 4, 1, 4)),
    *(_case(f"edge{n}", recurrence([n], 2, 8, 1, 8), softplus=True) for n in (15, 16, 17, 63, 64, 65)),
    *(_case(f"width{n}", recurrence([9], 2, n, 2, n + 3), softplus=True) for n in (1, 7, 16, 17, 33)),
    _case("heads", recurrence([20, 7], 10, 4, 2, 8), softplus=True),
    _case("fast", recurrence([70], 2, 8, 1, 8, fast=30.0), softplus=True),
    _case("shares", recurrence([65, 1, 130], 8, 16, 1, 32), shares=True, softplus=True),
]
RULES = {"ssd": Rule(_forward, _gradients)}


def _call(**arguments: Any) -> Any:
    shapes = {"x": (3, 4, 5), "dt": (3, 4), "a": (4,), "b": (3, 2, 6), "c": (3, 2, 6)}
    made: dict[str, Any] = {name: array(shape) for name, shape in shapes.items()} | {"q_start": int32_array(0, 3)}
    return ops.ssd(**(made | {name: each() if callable(each) else each for name, each in arguments.items()}))


def _error(label: str, pattern: str, error: type[Exception] = ShapeError, **arguments: Any) -> ErrorCase:
    return ErrorCase("ssd", label, lambda: _call(**arguments), error, f"ssd: {pattern}")


ERRORS: list[ErrorCase] = [
    _error("axes", r"`x` expected three axes .*\(3, 4\)", x=lambda: array((3, 4))),
    _error("no heads", r"`x` expected three axes", x=lambda: array((3, 0, 5))),
    _error("dt", r"`dt` expected \(3, 4\), got \(3, 3\)", dt=lambda: array((3, 3))),
    _error("a", r"`a` expected \(4,\), got \(5,\)", a=lambda: array((5,))),
    _error("b", r"`b` expected \(3, groups, state width\), got \(2, 2, 6\)", b=lambda: array((2, 2, 6))),
    _error("no state", r"`b` expected", b=lambda: array((3, 2, 0))),
    _error("groups", r"`b` expected a number of groups that divides 4, got 3", b=lambda: array((3, 3, 6))),
    _error("c", r"`c` expected \(3, 2, 6\), got \(3, 2, 5\)", c=lambda: array((3, 2, 5))),
    _error("skip", r"`skip` expected \(4,\)", skip=lambda: array((4, 1))),
    _error("bias", r"`dt_bias` expected float32 or float32, got float64", DTypeError,
           dt_bias=lambda: array((4,), "float64")),
    _error("mixed", r"`b` expected float32 like `x`, got float64", DTypeError, b=lambda: array((3, 2, 6), "float64")),
    _error("limits", r"`limits` expected the lower one first", limits=(1.0, 0.5)),
    _error("nan limits", r"`limits` expected the lower one first", limits=(math.nan, 0.5)),
    _error("begin", r"`q_start` must run from 0 to the 3 rows", q_start=lambda: int32_array(1, 3)),
    _error("end", r"`q_start` must run from 0 to the 3 rows", q_start=lambda: int32_array(0, 4)),
    _error("falls", r"`q_start` falls at sequence 1", q_start=lambda: int32_array(0, 4, 3)),
    _error("nothing", r"`q_start` expected at least one number", q_start=int32_array),
    _error("int64", r"`q_start` expected int32, got int64", DTypeError, q_start=lambda: array((2,), "int64")),
    _error("missing", r"missing argument `q_start`", TypeError, q_start=None),
    _error("state", r"`state` expected \(1, 4, 5, 6\), got \(1, 4, 6, 5\)", state=lambda: array((1, 4, 6, 5))),
    _error("state type", r"`state` expected float32 beside float32", DTypeError,
           state=lambda: array((1, 4, 5, 6), "float64")),
]  # fmt: skip

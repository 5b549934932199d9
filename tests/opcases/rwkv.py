"""RWKV-7's time mixing: widths, vector edges, packed sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError

from .bounds import U16, U32, Numbers, gamma
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array


def mixing(rows: Sequence[int], heads: int, width: int, value_width: int = 0) -> Callable[..., Inputs]:
    """Sequences of `rows` tokens; as the model has them: a = -k' and b = k' times a rate, |k'| = 1."""

    def make(rng: np.random.Generator) -> Inputs:
        shape = (sum(rows), heads, width)
        unit = rng.standard_normal(shape)
        unit /= np.maximum(1e-3, np.sqrt((unit * unit).sum(2, keepdims=True)))
        return {
            "r": rng.standard_normal(shape),
            "w": np.exp(-rng.uniform(0.001, 0.6, shape)),
            "keys": rng.standard_normal(shape),
            "values": rng.standard_normal((sum(rows), heads, value_width or width)),
            "a": -unit,
            "b": unit * rng.uniform(0.05, 0.95, shape),
            "q_start": np.cumsum([0, *rows]).astype(np.int32),
        }

    return make


def norm(x: Numbers) -> float:
    """The Euclidean norm."""
    return float(np.sqrt((x * x).sum()))


class Step(NamedTuple):
    """A token of a head: the norm of its matrix, the states around it, S^T a, and the errors of these three."""

    grow: float
    before: Numbers
    after: Numbers
    seen: Numbers
    error_before: float
    error_after: float
    error_seen: float


def row(i: Inputs, t: int, head: int) -> tuple[Numbers, ...]:
    """r, w, k, v, a, b."""
    return tuple(i[name][t, head] for name in ("r", "w", "keys", "values", "a", "b"))


def walk(i: Inputs, head: int, begin: int, end: int, u: float) -> list[Step]:
    """The recurrence with its error, in Frobenius norms: what was there, times the norm of the matrix, and the
    roundings of S^T a (a chain of K) and of the three products that are added."""
    width, values = i["r"].shape[2], i["values"].shape[2]
    state, error, steps = np.zeros((width, values)), 0.0, []
    for t in range(begin, end):
        _, w, k, v, a, b = row(i, t, head)
        grow = float(np.linalg.norm(np.diag(w) + np.outer(b, a), 2))
        seen = state.T @ a
        size = norm(state)
        own = gamma(width, u) * norm(a) * size
        after = w[:, None] * state + np.outer(b, seen) + np.outer(k, v)
        more = grow * error + norm(b) * own
        more += 4 * u * (float(w.max()) * size + norm(b) * norm(seen) + norm(k) * norm(v))
        steps.append(Step(grow, state, after, seen, error, more, norm(a) * error + own))
        state, error = after, more
    return steps


def _heads(i: Inputs) -> Iterator[tuple[int, int, int]]:
    for begin, end in itertools.pairwise(i["q_start"].tolist()):
        for head in range(i["r"].shape[1]):
            yield head, begin, end


def _inner(u: float) -> float:
    return U32 if u == U16 else u  # bfloat16 is computed in float32


def _forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    v, bound = _inner(u), np.zeros_like(y)
    for head, begin, end in _heads(i):
        for t, s in enumerate(walk(i, head, begin, end, v), begin):
            bound[t, head] = norm(i["r"][t, head]) * (s.error_after + gamma(i["r"].shape[2] + 2, v) * norm(s.after))
    return bound + (2 * u * (np.abs(y) + bound) if u == U16 else 0.0)


def _gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    """The adjoint runs backwards through the transposed matrices, with the same kinds of roundings."""
    inner = _inner(u)
    out = {name: np.zeros_like(each) for name, each in i.items() if each.dtype == np.float64}
    width, values = i["r"].shape[2], i["values"].shape[2]
    of_keys = gamma(width + 2, inner)
    rows = gamma(values + 2, inner) + (2 * u if u == U16 else 0.0)  # and the rounding of what is stored
    for head, begin, end in _heads(i):
        d, error = np.zeros((width, values)), 0.0
        steps = walk(i, head, begin, end, inner)
        for t in range(end - 1, begin - 1, -1):
            r, w, k, v, a, b = row(i, t, head)
            s, g = steps[t - begin], dy[t, head]
            d = d + np.outer(r, g)
            error += 2 * inner * (norm(d) + norm(r) * norm(g))
            size, before, seen = norm(d), norm(s.before), norm(s.seen)
            dseen = d.T @ b
            error_dseen = norm(b) * (error + of_keys * size)
            at = (t, head)
            out["r"][at] = (s.error_after + rows * norm(s.after)) * norm(g)
            out["values"][at] = norm(k) * (error + (of_keys + rows) * size)
            out["keys"][at] = norm(v) * (error + rows * size)
            out["w"][at] = s.error_before * size + before * error + rows * before * size
            out["b"][at] = seen * (error + rows * size) + size * s.error_seen
            out["a"][at] = norm(dseen) * (s.error_before + rows * before) + before * error_dseen
            error = s.grow * error + norm(a) * norm(b) * of_keys * size
            error += 3 * inner * (float(w.max()) * size + norm(a) * norm(dseen))
            d = w[:, None] * d + np.outer(a, dseen)
    return out


def _case(label: str, make: Callable[..., Inputs], small: bool = False, shares: bool = False) -> Case:
    return Case("rwkv7", label, make, {}, small=small, shares=shares)


CASES: list[Case] = [
    _case("one", mixing([1], 1, 1), small=True),
    _case("small", mixing([3], 2, 3, 2), small=True),
    _case("small-two", mixing([2, 3], 1, 2, 3), small=True),
    _case("empty-between", mixing([3, 0, 4], 2, 5)),
    _case("none", mixing([0], 2, 4)),
    *(_case(f"edge{n}", mixing([n], 2, 8)) for n in (31, 32, 33, 64, 65)),
    *(_case(f"width{n}", mixing([9], 2, n, n + 3)) for n in (1, 7, 16, 17, 61, 64)),
    _case("shares", mixing([65, 1, 100], 4, 32), shares=True),
]
RULES = {"rwkv7": Rule(_forward, _gradients)}


def _call(**arguments: Any) -> Any:
    made: dict[str, Any] = {name: array((3, 2, 5)) for name in ("r", "w", "keys", "a", "b")}
    made |= {"values": array((3, 2, 6)), "q_start": int32_array(0, 3)}
    return ops.rwkv7(**(made | {name: each() if callable(each) else each for name, each in arguments.items()}))


def _error(label: str, pattern: str, error: type[Exception] = ShapeError, **arguments: Any) -> ErrorCase:
    return ErrorCase("rwkv7", label, lambda: _call(**arguments), error, f"rwkv7: {pattern}")


ERRORS: list[ErrorCase] = [
    _error("axes", r"`r` expected three axes .*\(3, 2\)", r=lambda: array((3, 2))),
    _error("no width", r"`r` expected three axes", r=lambda: array((3, 2, 0))),
    _error("w", r"`w` expected \(3, 2, 5\), got \(3, 2, 4\)", w=lambda: array((3, 2, 4))),
    _error("keys", r"`keys` expected \(3, 2, 5\)", keys=lambda: array((2, 2, 5))),
    _error("a", r"`a` expected \(3, 2, 5\)", a=lambda: array((3, 1, 5))),
    _error("b", r"`b` expected \(3, 2, 5\)", b=lambda: array((3, 10))),
    _error("values", r"`values` expected \(3, 2, width\), got \(3, 1, 6\)", values=lambda: array((3, 1, 6))),
    _error("mixed", r"`values` expected float32 like `r`", DTypeError, values=lambda: array((3, 2, 6), "float64")),
    _error(
        "w type", r"`w` expected float32 or float32, got float64", DTypeError, w=lambda: array((3, 2, 5), "float64")
    ),
    _error("begin", r"`q_start` must run from 0 to the 3 rows", q_start=lambda: int32_array(1, 3)),
    _error("end", r"`q_start` must run from 0 to the 3 rows", q_start=lambda: int32_array(0, 2)),
    _error("falls", r"`q_start` falls at sequence 1", q_start=lambda: int32_array(0, 4, 3)),
    _error("nothing", r"`q_start` expected at least one number", q_start=int32_array),
    _error("state", r"`state` expected \(1, 2, 5, 6\), got \(1, 2, 6, 5\)", state=lambda: array((1, 2, 6, 5))),
]

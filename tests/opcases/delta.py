"""The gated delta rule: chunk and vector edges, shared key heads, packed sequences, normalized keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError

from .bounds import U16, U32, Numbers, gamma
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array

EPS = 1e-6


def memory(
    rows: Sequence[int],
    heads: int,
    key_heads: int,
    width: int,
    value_width: int = 0,
    fast: float = 0.3,
    unit: bool = True,
) -> Callable[[np.random.Generator], Inputs]:
    """Sequences of `rows` tokens; beta in (0, 1), decays between exp(-fast) and 1; `unit`: keys no longer than 1."""

    def make(rng: np.random.Generator) -> Inputs:
        tokens = sum(rows)
        keys = rng.standard_normal((tokens, key_heads, width))
        if unit:
            keys /= np.maximum(1.0, np.sqrt((keys * keys).sum(2, keepdims=True)))
        return {
            "q": rng.standard_normal((tokens, key_heads, width)),
            "keys": keys,
            "values": rng.standard_normal((tokens, heads, value_width or width)),
            "g": -fast * rng.uniform(0.0, 1.0, (tokens, heads)),
            "beta": rng.uniform(0.1, 0.95, (tokens, heads)),
            "q_start": np.cumsum([0, *rows]).astype(np.int32),
        }

    return make


class Step(NamedTuple):
    """A token of a head: what counts (k, q, and what they were multiplied by) and what was computed, with the error of
    the state before and after (its Frobenius norm) and of x, and the sums of norms that the roundings are relative to.
    """

    k: Numbers
    q: Numbers
    by: tuple[float, float]
    beta: float
    decay: float
    log: float
    x: Numbers
    before: Numbers
    after: Numbers
    error_before: float
    error_after: float
    error_x: float
    size_before: float
    size_after: float


def own(o: Any, width: int, u: float) -> float:
    """The relative error of a row of q or k as it counts: its length, a root, a quotient, two products."""
    return gamma(width, u) + 6 * u if o.get("normalize") else 2 * u


def norm(x: Numbers) -> float:
    """The Euclidean norm."""
    return float(np.sqrt((x * x).sum()))


def walk(i: Inputs, o: Any, head: int, begin: int, end: int, u: float) -> list[Step]:
    """The recurrence with its error. A step multiplies the error of S by e^g (I - beta k k^T), whose norm is at most 1
    as beta |k|^2 <= 2 and g <= 0, and adds the roundings of r = e^g S^T k (chains of K, and of 64 rows in the chunked
    form), of x = beta (v - r), of k x^T and of the sum. `size` is the sum of the norms of what S is the sum of.
    """
    width, group = i["q"].shape[2], i["values"].shape[1] // i["q"].shape[1]
    scale = o.get("scale") or 1.0 / math.sqrt(width)
    state = np.zeros((width, i["values"].shape[2]))
    size = error = 0.0
    steps = []
    for t in range(begin, end):
        q, k = i["q"][t, head // group], i["keys"][t, head // group]
        by_q, by_k = scale, 1.0
        if o.get("normalize"):
            by_q, by_k = scale / math.sqrt(q @ q + EPS), 1.0 / math.sqrt(k @ k + EPS)
        q, k = by_q * q, by_k * k
        log, beta, v = float(i["g"][t, head]), float(i["beta"][t, head]), i["values"][t, head]
        length, decay = norm(k), math.exp(log)
        assert log <= 0 and beta * length * length <= 2, "the bound needs a recurrence that does not grow"
        x = beta * (v - decay * state.T @ k)
        lost = (6 + abs(log)) * u
        reads = decay * length * size
        off = beta * (reads * (gamma(width + 70, u) + own(o, width, u) + lost) + (gamma(70, u) + 4 * u) * norm(v))
        error_x = beta * decay * length * error + off
        after = decay * state + np.outer(k, x)
        next_size = decay * size + length * norm(x)
        next_error = decay * (error + lost * size) + length * off + (own(o, width, u) + 4 * u) * length * norm(x)
        next_error += 2 * u * next_size
        steps.append(Step(k, q, (by_q, by_k), beta, decay, log, x, state, after, error, next_error, error_x, size,
                          next_size))  # fmt: skip
        state, size, error = after, next_size, next_error
    return steps


def _heads(i: Inputs) -> Iterator[tuple[int, int, int]]:
    edges = i["q_start"].tolist()
    for begin, end in itertools.pairwise(edges):
        for head in range(i["values"].shape[1]):
            yield head, begin, end


def _inner(u: float) -> float:
    return U32 if u == U16 else u  # bfloat16 is computed in float32


def _forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    v, width = _inner(u), i["q"].shape[2]
    bound = np.zeros_like(y)
    for head, begin, end in _heads(i):
        for t, s in enumerate(walk(i, o, head, begin, end, v), begin):
            bound[t, head] = norm(s.q) * (
                s.error_after + (gamma(width + 64, v) + own(o, width, v) + 8 * v) * s.size_after
            )
    return bound + (2 * u * (np.abs(y) + bound) if u == U16 else 0.0)


def _gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    """The adjoint runs backwards through the same contractions, with the same kinds of roundings."""
    v, (width, v_width) = _inner(u), (i["q"].shape[2], i["values"].shape[2])
    group, stored = i["values"].shape[1] // i["q"].shape[1], (2 * u if u == U16 else 0.0)
    out = {name: np.zeros_like(each) for name, each in i.items() if each.dtype == np.float64}
    keys, rows = own(o, width, v), gamma(v_width + 128, v)
    for head, begin, end in _heads(i):
        d = np.zeros((width, v_width))
        size = error = 0.0
        steps = walk(i, o, head, begin, end, v)
        for t in range(end - 1, begin - 1, -1):
            s, g = steps[t - begin], dy[t, head]
            length, lost, b, e, x = norm(s.k), (6 + abs(s.log)) * v, s.beta, s.decay, norm(s.x)
            added = norm(s.q) * norm(g)
            d, size = d + np.outer(s.q, g), size + added
            error += added * (keys + 2 * v) + 2 * v * size
            r = norm(d.T @ s.k)
            off_r = length * size * (gamma(width + 70, v) + keys + lost)
            error_r = length * error + off_r
            out["values"][t, head] = b * error_r + (2 * v + stored) * b * r
            of_x = x / b  # v - r
            out["beta"][t, head] = error_r * of_x + r * s.error_x / b
            out["beta"][t, head] += (rows + 4 * v) * r * (norm(i["values"][t, head]) + e * length * s.size_before)
            out["beta"][t, head] += stored * r * of_x
            more, error_more = size + b * length * r, error + b * length * error_r
            out["g"][t, head] = e * (error_more * s.size_before + more * s.error_before)
            out["g"][t, head] += (gamma(width + v_width + 200, v) + keys + 2 * lost + stored) * e * more * s.size_before
            dq, dk = s.size_after * norm(g), size * x + e * b * s.size_before * r
            error_q = s.error_after * norm(g) + (rows + lost) * dq
            error_k = error * x + size * s.error_x + e * b * (s.error_before * r + s.size_before * error_r)
            error_k += (rows + 2 * lost + keys) * dk
            twice = 2.0 if o.get("normalize") else 1.0  # what is along the row is taken away
            for name, of, err, by in (("q", dq, error_q, s.by[0]), ("keys", dk, error_k, s.by[1])):
                out[name][t, head // group] += twice * by * (err + (2 * keys + gamma(group, v) + 8 * v + stored) * of)
            d = e * (d - b * np.outer(s.k, d.T @ s.k))
            error = e * (error + b * length * off_r + lost * more + (keys + 4 * v) * b * length * r)
            size = e * more
    return out


def _case(label: str, make: Callable[..., Inputs], small: bool = False, shares: bool = False, **options: Any) -> Case:
    return Case("gated_delta", label, make, options, small=small, shares=shares)


CASES: list[Case] = [
    _case("one", memory([1], 1, 1, 1), small=True),
    _case("small", memory([4], 2, 1, 3, 2), small=True),
    _case("small-two", memory([2, 3], 2, 2, 2, 3), small=True, scale=0.7),
    _case("small-unit", memory([3], 2, 1, 3, unit=False), small=True, normalize=True),
    _case("empty-between", memory([3, 0, 4], 2, 1, 5)),
    _case("none", memory([0], 2, 1, 4)),
    *(_case(f"edge{n}", memory([n], 2, 1, 8, unit=False), normalize=True) for n in (15, 16, 17, 63, 64, 65)),
    *(_case(f"width{n}", memory([9], 2, 2, n, n + 3)) for n in (1, 7, 16, 17, 33)),
    _case("heads", memory([20, 7], 6, 2, 8)),
    _case("fast", memory([70], 2, 1, 8, fast=30.0)),
    _case("shares", memory([65, 1, 130], 4, 2, 32, 16, unit=False), shares=True, normalize=True),
]
RULES = {"gated_delta": Rule(_forward, _gradients)}


def _call(**arguments: Any) -> Any:
    shapes = {"q": (3, 2, 5), "keys": (3, 2, 5), "values": (3, 4, 6), "g": (3, 4), "beta": (3, 4)}
    made: dict[str, Any] = {name: array(shape) for name, shape in shapes.items()} | {"q_start": int32_array(0, 3)}
    return ops.gated_delta(**(made | {name: each() if callable(each) else each for name, each in arguments.items()}))


def _error(label: str, pattern: str, error: type[Exception] = ShapeError, **arguments: Any) -> ErrorCase:
    return ErrorCase("gated_delta", label, lambda: _call(**arguments), error, f"gated_delta: {pattern}")


ERRORS: list[ErrorCase] = [
    _error("axes", r"`q` expected three axes .*\(3, 2\)", q=lambda: array((3, 2))),
    _error("no width", r"`q` expected three axes", q=lambda: array((3, 2, 0))),
    _error("keys", r"`keys` expected \(3, 2, 5\), got \(3, 1, 5\)", keys=lambda: array((3, 1, 5))),
    _error("values", r"`values` expected \(3, heads, width\), got \(2, 4, 6\)", values=lambda: array((2, 4, 6))),
    _error("heads", r"`values` expected a multiple of 2 heads, got 3", values=lambda: array((3, 3, 6))),
    _error("g", r"`g` expected \(3, 4\), got \(3, 2\)", g=lambda: array((3, 2))),
    _error("beta", r"`beta` expected \(3, 4\)", beta=lambda: array((4, 3))),
    _error("g type", r"`g` expected float32 or float32, got float64", DTypeError, g=lambda: array((3, 4), "float64")),
    _error("mixed", r"`values` expected float32 like `q`", DTypeError, values=lambda: array((3, 4, 6), "float64")),
    _error("scale", r"`scale` expected a positive number, got 0", scale=0.0),
    _error("nan", r"`scale` expected a positive number, got nan", scale=math.nan),
    _error("begin", r"`q_start` must run from 0 to the 3 rows", q_start=lambda: int32_array(1, 3)),
    _error("end", r"`q_start` must run from 0 to the 3 rows", q_start=lambda: int32_array(0, 2)),
    _error("falls", r"`q_start` falls at sequence 1", q_start=lambda: int32_array(0, 4, 3)),
    _error("nothing", r"`q_start` expected at least one number", q_start=int32_array),
    _error("int64", r"`q_start` expected int32", DTypeError, q_start=lambda: array((2,), "int64")),
    _error("state", r"`state` expected \(1, 4, 5, 6\), got \(1, 2, 5, 6\)", state=lambda: array((1, 2, 5, 6))),
    _error("state type", r"`state` expected float32 beside float32", DTypeError,
           state=lambda: array((1, 4, 5, 6), "float64")),
]  # fmt: skip

"""Cross-entropy on logits, and fused with the output projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError

from .bounds import ELEMENTARY, Numbers, gamma, softmax_relative
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array


def _targets(rng: np.random.Generator, rows: int, vocab: int, ignored: float) -> Numbers:
    targets = rng.integers(0, vocab, rows).astype(np.int32)
    targets[rng.random(rows) < ignored] = -1
    return targets


def _logits(
    rows: int, vocab: int, ignored: float = 0.2, spread: float = 1.0
) -> Callable[[np.random.Generator], Inputs]:
    return lambda rng: {
        "logits": spread * rng.standard_normal((rows, vocab)),
        "targets": _targets(rng, rows, vocab, ignored),
    }


def _projected(rows: int, vocab: int, width: int, ignored: float = 0.2) -> Callable[[np.random.Generator], Inputs]:
    return lambda rng: {
        "x": rng.standard_normal((rows, width)),
        "weight": rng.standard_normal((vocab, width)) / np.sqrt(max(1, width)),
        "targets": _targets(rng, rows, vocab, ignored),
    }


def _row_errors(logits: Numbers, error: Numbers | float, targets: Numbers, options: Any, u: float) -> Numbers:
    """Error of lse - logit[target] for each row: the logits' own, exp's arguments, its sum, log, and the two sums.

    Smoothing adds the mean of logit - top; the z term squares lse, whose derivative by the logits is 2 z lse softmax.
    """
    if logits.size == 0:
        return np.zeros(len(targets))
    top = logits.max(1)
    p = np.exp(logits - top[:, None])
    relative = u * (np.abs(logits - top[:, None]) + ELEMENTARY) * p
    summed = relative.sum(1) / p.sum(1) + gamma(logits.shape[1] + 1, u)
    lse = top + np.log(p.sum(1))
    own = summed + (ELEMENTARY + 1) * u * np.log(p.sum(1)) + 2 * u * (np.abs(lse) + np.abs(logits).max(1))
    below = np.abs(logits - top[:, None]).mean(1)
    own = own + options.get("label_smoothing", 0.0) * (gamma(logits.shape[1] + 1, u) + 2 * u) * below
    z = options.get("z_loss", 0.0)
    own = own + z * (2 * np.abs(lse) * summed + 2 * u * lse * lse)
    return np.where(targets >= 0, own + (2 + 2 * z * np.abs(lse)) * np.max(error + 0 * logits, axis=1), 0.0)


def _mean_or_none(row_bound: Numbers, y: Numbers, targets: Numbers, options: Any, u: float) -> Numbers:
    if options.get("reduction", "mean") == "none":
        return row_bound
    count = max(1, int((targets >= 0).sum()))
    # the sum over rows (all terms are positive), the reciprocal of the count, and their product
    return row_bound.sum() / count + (gamma(len(targets), u) + 3 * u) * np.abs(y)


def _dlogits(
    logits: Numbers, error: Numbers | float, targets: Numbers, options: Any, dy: Numbers, u: float
) -> tuple[Numbers, Numbers]:
    """|dlogits| and its error: softmax relative to itself, minus one-hot, times 1/count and dy."""
    mean = options.get("reduction", "mean") == "mean"
    count = max(1, int((targets >= 0).sum())) if mean else 1
    if logits.size == 0:
        return np.zeros_like(logits), np.zeros_like(logits)
    weight = np.abs(dy).reshape(-1, 1) / count * (targets >= 0)[:, None]
    top = logits.max(1, keepdims=True)
    p = np.exp(logits - top)
    lse = top + np.log(p.sum(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    smoothing, z = options.get("label_smoothing", 0.0), options.get("z_loss", 0.0)
    wanted = np.full_like(p, smoothing / p.shape[1])
    valid = np.flatnonzero(targets >= 0)
    wanted[valid, targets[valid]] += 1.0 - smoothing
    relative = softmax_relative(logits, error, u)
    bend = 1 + 2 * z * lse  # softmax's factor; lse is off by what the row's sum and the logits are off
    off = 2 * z * (np.max(relative, 1, keepdims=True) + np.max(error + 0 * logits, 1, keepdims=True))
    size = np.abs(p * bend - wanted)
    own = p * (np.abs(bend) * (relative + 2 * u) + off) + 2 * u * np.where(smoothing > 0, wanted, 0.0)
    return size * weight, (own + 5 * u * size) * weight


def _ce_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    return {"logits": _dlogits(i["logits"], 0.0, i["targets"], o, dy, u)[1]}


def _projection(i: Inputs, u: float) -> tuple[Numbers, Numbers]:
    size = np.abs(i["x"]) @ np.abs(i["weight"]).T
    return i["x"] @ i["weight"].T, gamma(i["x"].shape[1] + 1, u) * size


def _linear_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    logits, error = _projection(i, u)
    return _mean_or_none(_row_errors(logits, error, i["targets"], o, u), y, i["targets"], o, u)


def _linear_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    logits, error = _projection(i, u)
    d, off = _dlogits(logits, error, i["targets"], o, dy, u)
    x, weight = np.abs(i["x"]), np.abs(i["weight"])
    return {
        "x": off @ weight + (gamma(logits.shape[1] + 1, u) + 2 * u) * (d @ weight),
        "weight": off.T @ x + (gamma(len(x) + 1, u) + 2 * u) * (d.T @ x),
    }


CASES: list[Case] = [
    Case("cross_entropy", "3x5", _logits(3, 5, 0.0), small=True),
    Case("cross_entropy", "ignored", _logits(7, 5, 0.5), small=True),
    Case("cross_entropy", "none", _logits(4, 6), {"reduction": "none"}, small=True),
    Case("cross_entropy", "all-ignored", _logits(4, 6, 1.1)),
    Case("cross_entropy", "0rows", _logits(0, 5)),
    Case("cross_entropy", "vocab1", _logits(3, 1)),
    Case("cross_entropy", "large", _logits(5, 65, spread=50.0)),
    *(Case("cross_entropy", f"vocab{n}", _logits(3, n)) for n in (15, 16, 17, 31, 63, 127, 129, 1031)),
    Case("cross_entropy", "shares", _logits(131, 263), {"reduction": "none"}, shares=True),
    Case("cross_entropy", "shares-mean", _logits(131, 263), shares=True),
    Case("cross_entropy", "smooth", _logits(5, 6), {"label_smoothing": 0.1}, small=True),
    Case("cross_entropy", "uniform", _logits(4, 6), {"label_smoothing": 1.0, "reduction": "none"}, small=True),
    Case("cross_entropy", "z", _logits(5, 6), {"z_loss": 0.01}, small=True),
    Case(
        "cross_entropy",
        "smooth-z",
        _logits(4, 6),
        {"label_smoothing": 0.2, "z_loss": 0.1, "reduction": "none"},
        small=True,
    ),
    Case("cross_entropy", "smooth-z-large", _logits(5, 65, spread=50.0), {"label_smoothing": 0.1, "z_loss": 1e-4}),
    Case("cross_entropy", "smooth-z-ignored", _logits(4, 6, 1.1), {"label_smoothing": 0.1, "z_loss": 1e-4}),
    Case("cross_entropy", "smooth-z-vocab1", _logits(3, 1), {"label_smoothing": 0.1, "z_loss": 1e-4}),
    Case("cross_entropy", "smooth-z-shares", _logits(131, 263), {"label_smoothing": 0.1, "z_loss": 1e-4}, shares=True),
    Case("linear_cross_entropy", "smooth-z", _projected(5, 4, 3), {"label_smoothing": 0.1, "z_loss": 0.1}, small=True),
    Case(
        "linear_cross_entropy",
        "smooth-z-shares",
        _projected(131, 519, 67),
        {"label_smoothing": 0.1, "z_loss": 1e-3},
        shares=True,
    ),
    Case("linear_cross_entropy", "3x5x2", _projected(3, 5, 2, 0.0), small=True),
    Case("linear_cross_entropy", "ignored", _projected(5, 4, 3, 0.5), small=True),
    Case("linear_cross_entropy", "all-ignored", _projected(5, 4, 3, 1.1)),
    Case("linear_cross_entropy", "0rows", _projected(0, 5, 3)),
    Case("linear_cross_entropy", "0width", _projected(3, 5, 0)),
    *(Case("linear_cross_entropy", f"edge{n}", _projected(n, n + 2, n - 1)) for n in (15, 17, 33, 63, 65, 129)),
    Case("linear_cross_entropy", "shares", _projected(131, 519, 67), shares=True),
]
RULES = {
    "cross_entropy": Rule(
        lambda i, o, y, u: _mean_or_none(_row_errors(i["logits"], 0.0, i["targets"], o, u), y, i["targets"], o, u),
        _ce_gradients,
    ),
    "linear_cross_entropy": Rule(_linear_forward, _linear_gradients),
}
_TWO = ("cross_entropy", "linear_cross_entropy")


def _call(name: str, targets: Any, **options: Any) -> Any:
    first = (array((2, 5)),) if name == "cross_entropy" else (array((2, 3)), array((5, 3)))
    return getattr(ops, name)(*first, targets, **options)


ERRORS: list[ErrorCase] = [
    *(
        ErrorCase(
            name,
            "high",
            lambda n=name: _call(n, int32_array(0, 5)),
            ShapeError,
            r"cross_entropy: `targets` must be in .* 5\), got 5 at position 1",
        )
        for name in _TWO
    ),
    *(
        ErrorCase(
            name,
            "count",
            lambda n=name: _call(n, int32_array(0)),
            ShapeError,
            rf"{name}: `targets` expected 2 rows, got 1",
        )
        for name in _TWO
    ),
    *(
        ErrorCase(
            name,
            "int64",
            lambda n=name: _call(n, array((2,), "int64")),
            DTypeError,
            rf"{name}: `targets` expected int32, got int64",
        )
        for name in _TWO
    ),
    *(
        ErrorCase(
            name,
            "reduction",
            lambda n=name: _call(n, int32_array(0, 1), reduction="sum"),
            ShapeError,
            rf"{name}: `reduction` .*got sum",
        )
        for name in _TWO
    ),
    *(
        ErrorCase(
            name,
            f"{option}-{value}",
            lambda n=name, o=option, v=value: _call(n, int32_array(0, 1), **{o: v}),
            ShapeError,
            rf"{name}: `{option}` expected a .*number.*, got {value}",
        )
        for name in _TWO
        for option, value in (
            ("label_smoothing", -0.1),
            ("label_smoothing", 1.5),
            ("z_loss", -1.0),
            ("z_loss", float("nan")),
        )
    ),
    ErrorCase(
        "cross_entropy",
        "empty",
        lambda: ops.cross_entropy(array((2, 0)), int32_array(0, 0)),
        ShapeError,
        r"cross_entropy: `logits` .*\(2, 0\)",
    ),
    ErrorCase(
        "linear_cross_entropy",
        "empty",
        lambda: ops.linear_cross_entropy(array((2, 3)), array((0, 3)), int32_array(0, 0)),
        ShapeError,
        r"cross_entropy: .*vocabulary",
    ),
    ErrorCase(
        "linear_cross_entropy",
        "width",
        lambda: ops.linear_cross_entropy(array((2, 3)), array((5, 4)), int32_array(0, 1)),
        ShapeError,
        r"linear_cross_entropy: `weight` expected \('vocabulary', 3\), got \(5, 4\)",
    ),
    ErrorCase(
        "linear_cross_entropy",
        "mixed",
        lambda: ops.linear_cross_entropy(array((2, 3)), array((5, 3), "float64"), int32_array(0, 1)),
        DTypeError,
        r"linear_cross_entropy: `weight` .*float64",
    ),
]

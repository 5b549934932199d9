"""Ops on the rows of attention: rotary positions, softmax, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError

from .bounds import Numbers, gamma, softmax_relative
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array
from .plain import normal

CASES: list[Case] = []
RULES: dict[str, Rule] = {}
ERRORS: list[ErrorCase] = []


# -- rotary positions: two products and a sum for each component ----------------------------------------------------
def _rope(tokens: int, heads: int, width: int, half: int, table: int = 50) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        angles = np.arange(table)[:, None] * (0.5 ** np.arange(half))[None, :]
        return {
            "x": rng.standard_normal((tokens, heads, width)),
            "positions": rng.integers(0, table, tokens).astype(np.int32),
            "cos": np.cos(angles),
            "sin": np.sin(angles),
        }

    return make


def _rope_bound(i: Inputs, o: Any, z: Numbers, u: float) -> Numbers:
    """3u (|z1 c| + |z2 s|), and |z1|, |z2| <= the larger of the pair."""
    half, size = i["cos"].shape[1], np.abs(z).copy()
    if o.get("interleaved"):
        pairs = size[..., : 2 * half].reshape(*size.shape[:-1], half, 2)
        pairs[...] = 2 * pairs.max(-1, keepdims=True)
        size[..., : 2 * half] = pairs.reshape(*size.shape[:-1], 2 * half)
    else:
        both = 2 * np.maximum(size[..., :half], size[..., half : 2 * half])
        size[..., :half] = size[..., half : 2 * half] = both
    size[..., 2 * half :] = 0
    return 3 * u * size


for _mode in (False, True):
    _tag, _options = ("pairs", {"interleaved": True}) if _mode else ("halves", {})
    CASES += [
        Case("rope", f"{_tag}-small", _rope(3, 2, 6, 3), _options, small=True),
        Case("rope", f"{_tag}-part", _rope(3, 2, 7, 2), _options, small=True),
        Case("rope", f"{_tag}-0", _rope(0, 2, 8, 4), _options),
        *(Case("rope", f"{_tag}-{half}", _rope(5, 3, 2 * half, half), _options) for half in (1, 8, 15, 17, 32, 33)),
        Case("rope", f"{_tag}-shares", _rope(131, 5, 66, 33), _options, shares=True),
    ]
RULES["rope"] = Rule(
    lambda i, o, y, u: _rope_bound(i, o, i["x"], u), lambda i, o, y, dy, u: {"x": _rope_bound(i, o, dy, u)}
)
_table = (4, 2)
ERRORS += [
    ErrorCase(
        "rope",
        "high",
        lambda: ops.rope(array((2, 1, 4)), int32_array(0, 4), array(_table), array(_table)),
        ShapeError,
        r"rope: `positions` must be in \[0, 4\), got 4 at position 1",
    ),
    ErrorCase(
        "rope",
        "negative",
        lambda: ops.rope(array((1, 1, 4)), int32_array(-1), array(_table), array(_table)),
        ShapeError,
        r"rope: `positions` .*got -1",
    ),
    ErrorCase(
        "rope",
        "tokens",
        lambda: ops.rope(array((2, 1, 4)), int32_array(0), array(_table), array(_table)),
        ShapeError,
        r"rope: `positions` expected 2 tokens, got 1",
    ),
    ErrorCase(
        "rope",
        "angles",
        lambda: ops.rope(array((1, 1, 3)), int32_array(0), array(_table), array(_table)),
        ShapeError,
        r"rope: `cos` expected at most 1 angles, got 2",
    ),
    ErrorCase(
        "rope",
        "tables",
        lambda: ops.rope(array((1, 1, 4)), int32_array(0), array(_table), array((4, 1))),
        ShapeError,
        r"rope: `sin` expected \(4, 2\), got \(4, 1\)",
    ),
    ErrorCase(
        "rope",
        "mixed",
        lambda: ops.rope(array((1, 1, 4), "float64"), int32_array(0), array(_table), array(_table)),
        DTypeError,
        r"rope: `cos` expected float64 beside float64, got float32",
    ),
    ErrorCase(
        "rope",
        "axes",
        lambda: ops.rope(array((1, 4)), int32_array(0), array(_table), array(_table)),
        ShapeError,
        r"rope: `x` .*\(1, 4\)",
    ),
]


# -- softmax --------------------------------------------------------------------------------------------------------
def _softmax_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    scale, d = o.get("scale", 1.0), np.abs(dy)
    relative = softmax_relative(scale * i["x"], u * np.abs(scale * i["x"]), u)
    total = (d * y).sum(-1, keepdims=True)
    off = (
        (relative + 3 * u) * (d + total) + gamma(y.shape[-1] + 1, u) * total + (d * y * relative).sum(-1, keepdims=True)
    )
    return {"x": abs(scale) * y * off}


CASES += [
    Case("softmax", "3x5", normal(x=(3, 5)), small=True),
    Case("softmax", "scale", normal(x=(2, 7)), {"scale": -0.7}, small=True),
    Case("softmax", "0rows", normal(x=(0, 5))),
    Case("softmax", "vector", normal(x=(17,)), small=True),
    Case("softmax", "large", lambda rng: {"x": rng.uniform(-60, 60, (3, 65))}),
    *(Case("softmax", f"{n}cols", normal(x=(2, 2, n))) for n in (1, 15, 16, 31, 33, 127, 129, 1031)),
    Case("softmax", "shares", normal(x=(131, 263)), {"scale": 2.0}, shares=True),
]
RULES["softmax"] = Rule(
    lambda i, o, y, u: y * softmax_relative(o.get("scale", 1.0) * i["x"], u * np.abs(o.get("scale", 1.0) * i["x"]), u),
    _softmax_gradients,
)
ERRORS += [
    ErrorCase(
        "softmax",
        "empty",
        lambda: ops.softmax(array((2, 0))),
        ShapeError,
        r"softmax: `x` expected a last axis .*\(2, 0\)",
    ),
    ErrorCase("softmax", "integers", lambda: ops.softmax(array((2, 3), "int32")), DTypeError, r"softmax: `x` .*int32"),
]


# -- dropout: the scale rounds, then the product --------------------------------------------------------------------
def _dropout(n: tuple[int, ...], step: int = 1) -> Callable[..., Inputs]:
    return lambda rng: {"x": rng.standard_normal(n), "step": np.array([step], np.int64)}


CASES += [
    Case("dropout", "half", _dropout((5, 7)), {"p": 0.5, "seed": 3}, small=True),
    Case("dropout", "none", _dropout((17,)), {"p": 0.0, "seed": 3}, small=True),
    Case("dropout", "all", _dropout((17,)), {"p": 1.0, "seed": 3}),
    Case("dropout", "0", _dropout((0,)), {"p": 0.5, "seed": 3}),
    *(
        Case("dropout", str(n), _dropout((n,), n), {"p": 0.1, "seed": 2**63 + n, "stream": 7})
        for n in (1, 3, 15, 33, 127)
    ),
    Case("dropout", "shares", _dropout((5, 16385)), {"p": 0.3, "seed": 11}, shares=True),
]
RULES["dropout"] = Rule(
    lambda i, o, y, u: 3 * u * np.abs(y),
    lambda i, o, y, dy, u: {"x": 3 * u * np.abs(dy) / (1 - o["p"] if o["p"] < 1 else 1)},
)


def _drop(p: float, step: Any = None) -> Any:
    return ops.dropout(array((2, 3)), p, array((1,), "int64") if step is None else step, 1)


ERRORS += [
    *(
        ErrorCase(
            "dropout", f"p{p}", lambda p=p: _drop(p), ShapeError, rf"dropout: `p` expected a probability .*got {p}"
        )
        for p in (-0.1, 1.5, float("nan"))
    ),
    ErrorCase(
        "dropout",
        "step",
        lambda: _drop(0.5, array((1,), "int32")),
        DTypeError,
        r"dropout: `step` must be int64, got int32",
    ),
    ErrorCase(
        "dropout", "nostep", lambda: _drop(0.5, array((0,), "int64")), ShapeError, r"dropout: `step` needs 1 elements"
    ),
]

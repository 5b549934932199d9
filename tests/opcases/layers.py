"""Layer ops: linear, embedding, norms, activations, glu, rotary positions, softmax, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import ConfigError, DTypeError, ShapeError

from .bounds import SLOPE, Numbers, act, act_error, act_slope, gamma, slope_error
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array
from .plain import normal

CASES: list[Case] = []
RULES: dict[str, Rule] = {}
ERRORS: list[ErrorCase] = []
ACTS = ("none", "gelu", "gelu_tanh", "relu", "relu2", "silu")


def off_zero(x: Numbers) -> Numbers:
    """Away from the kink of relu, so that central differences stay on one side."""
    return x + 0.05 * np.sign(x)


# -- linear: residual + act(x W^T + b) ------------------------------------------------------------------------------
def _linear(m: tuple[int, ...], n: int, inner: int, bias: bool = True, residual: bool = False) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        made = {"x": rng.standard_normal((*m, inner)), "weight": rng.standard_normal((n, inner))}
        if bias:
            made["bias"] = rng.standard_normal(n)
        if residual:
            made["residual"] = rng.standard_normal((*m, n))
        return made

    return make


def _pre(i: Inputs, u: float) -> tuple[Numbers, Numbers]:
    """z = x W^T + b and its error: one chain of K terms, then the bias."""
    bias = i.get("bias", np.zeros(i["weight"].shape[0]))
    size = np.abs(i["x"]) @ np.abs(i["weight"]).T + np.abs(bias)
    return i["x"] @ i["weight"].T + bias, gamma(i["x"].shape[-1] + 2, u) * size


def _linear_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    z, error = _pre(i, u)
    error = act_error(z, error, o.get("act", "none"), u)
    return error + u * np.abs(y) if "residual" in i else error


def _linear_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    name = o.get("act", "none")
    n, inner = i["weight"].shape
    rows = math.prod(i["x"].shape[:-1])
    z, error = (a.reshape(rows, n) for a in _pre(i, u))
    d, x, w = dy.reshape(rows, n), np.abs(i["x"].reshape(rows, inner)), np.abs(i["weight"])
    dz = np.abs(d * act_slope(z, name))
    off = np.abs(d) * slope_error(z, error, name, u) + (u * dz if name != "none" else 0)
    return {
        "x": (gamma(n + 1, u) * (dz @ w) + off @ w).reshape(i["x"].shape),
        "weight": gamma(rows + 1, u) * (dz.T @ x) + off.T @ x,
        "bias": gamma(rows, u) * dz.sum(0) + off.sum(0),
        "residual": 0 * dy,
    }


CASES += [
    Case("linear", "3x5x7", _linear((3,), 5, 7), small=True),
    Case("linear", "plain", _linear((3,), 5, 7, bias=False), small=True),
    Case("linear", "residual", _linear((4,), 5, 3, residual=True), {"act": "gelu"}, small=True),
    Case("linear", "0rows", _linear((0,), 5, 7, residual=True), {"act": "gelu"}),
    Case("linear", "wide", _linear((19,), 35, 33), {"wide_out": True}),
    Case("linear", "0inner", _linear((3,), 5, 0)),
    Case("linear", "0out", _linear((3,), 0, 4)),
    Case("linear", "vector", _linear((), 17, 33)),
    Case("linear", "axes", _linear((2, 3), 17, 33, residual=True), {"act": "silu"}),
    *(Case("linear", f"1x{n}", _linear((1,), n, n + 2)) for n in (15, 17, 65, 129)),
    *(Case("linear", f"square{n}", _linear((n,), n, n)) for n in (16, 31, 63)),
    *(
        Case("linear", name, _linear((9,), 33, 17, residual=name == "relu"), {"act": name}, small=False)
        for name in ACTS
    ),
    Case("linear", "shares", _linear((131,), 257, 129, residual=True), {"act": "gelu_tanh"}, shares=True),
    Case("linear", "shares-row", _linear((1,), 4099, 300), shares=True),
]
RULES["linear"] = Rule(_linear_forward, _linear_gradients)
ERRORS += [
    ErrorCase(
        "linear",
        "inner",
        lambda: ops.linear(array((2, 3)), array((5, 4))),
        ShapeError,
        r"linear: `x` expected \(\.\.\., 4\), got \(2, 3\)",
    ),
    ErrorCase(
        "linear", "weight", lambda: ops.linear(array((2, 3)), array((3,))), ShapeError, r"linear: `weight` .*got \(3,\)"
    ),
    ErrorCase(
        "linear",
        "bias",
        lambda: ops.linear(array((2, 3)), array((5, 3)), array((4,))),
        ShapeError,
        r"linear: `bias` expected \(5,\), got \(4,\)",
    ),
    ErrorCase(
        "linear",
        "residual",
        lambda: ops.linear(array((2, 3)), array((5, 3)), None, array((2, 4))),
        ShapeError,
        r"linear: `residual` expected \(2, 5\), got \(2, 4\)",
    ),
    ErrorCase(
        "linear",
        "mixed",
        lambda: ops.linear(array((2, 3)), array((5, 3), "float64")),
        DTypeError,
        r"linear: `weight` .*float64",
    ),
    ErrorCase(
        "linear", "act", lambda: ops.linear(array((2, 3)), array((5, 3)), act="gelv"), ConfigError, r"'gelv'.*'gelu'"
    ),
    ErrorCase("linear", "missing", lambda: ops.linear(array((2, 3))), TypeError, r"linear: .*`weight`"),
]


# -- embedding: rows are copied; a gradient row is the sum over its tokens ------------------------------------------
def _embedding(vocab: int, width: int, tokens: tuple[int, ...]) -> Callable[..., Inputs]:
    return lambda rng: {
        "table": rng.standard_normal((vocab, width)),
        "ids": rng.integers(0, max(1, vocab), tokens).astype(np.int32),
    }


def _embedding_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    total, most = np.zeros_like(i["table"]), 1
    np.add.at(total, i["ids"].reshape(-1), np.abs(dy).reshape(-1, i["table"].shape[1]))
    if i["ids"].size:
        most = int(np.bincount(i["ids"].reshape(-1)).max())
    return {"table": gamma(most, u) * total}


CASES += [
    Case("embedding", "7x3", _embedding(7, 3, (5,)), small=True),
    Case("embedding", "axes", _embedding(65, 17, (3, 5))),
    Case("embedding", "one", _embedding(1, 1, (9,)), small=True),
    Case("embedding", "repeats", _embedding(3, 65, (300,))),
    Case("embedding", "shares", _embedding(129, 300, (257,)), shares=True),
]
RULES["embedding"] = Rule(lambda i, o, y, u: 0 * y, _embedding_gradients)
for _label, _id in (("high", 5), ("negative", -1), ("highest", 2**31 - 1), ("lowest", -(2**31))):
    ERRORS.append(
        ErrorCase(
            "embedding",
            _label,
            lambda n=_id: ops.embedding(array((5, 3)), int32_array(0, n)),
            ShapeError,
            rf"embedding: `ids` must be in \[0, 5\), got {_id} at position 1",
        )
    )
ERRORS += [
    ErrorCase(
        "embedding",
        "int64",
        lambda: ops.embedding(array((5, 3)), array((2,), "int64")),
        DTypeError,
        r"embedding: `ids` expected int32, got int64",
    ),
    ErrorCase(
        "embedding",
        "table",
        lambda: ops.embedding(array((5,)), int32_array(0)),
        ShapeError,
        r"embedding: `table` .*\(5,\)",
    ),
    ErrorCase(
        "embedding",
        "empty",
        lambda: ops.embedding(array((0, 3)), int32_array(0)),
        ShapeError,
        r"embedding: `ids` .*\[0, 0\)",
    ),
]


# -- norms ----------------------------------------------------------------------------------------------------------
def _norm_parts(i: Inputs, eps: float, center: bool, u: float) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """xhat, its error, rstd, relative error of rstd."""
    x = i["x"].reshape(-1, i["x"].shape[-1])
    cols = x.shape[1]
    mean = x.mean(1, keepdims=True) if center else np.zeros((len(x), 1))
    # the mean sums `cols` numbers and is rounded; x - mean rounds once more
    error_mean = (gamma(cols + 1, u) * np.abs(x).mean(1, keepdims=True)) if center else 0 * mean
    centred = x - mean
    error = error_mean + u * np.abs(centred)
    rstd = 1.0 / np.sqrt((centred**2).mean(1, keepdims=True) + eps)
    # var: squares and their sum round, and each term moves by 2 |centred| error; 1/sqrt halves it and rounds twice
    relative = (
        0.5 * rstd**2 * (gamma(cols + 3, u) * (centred**2) + 2 * np.abs(centred) * error).mean(1, keepdims=True) + 3 * u
    )
    xhat = centred * rstd
    return xhat, rstd * error + np.abs(xhat) * (relative + u), rstd, relative


def _norm_rule(center: bool, default: float) -> Rule:
    def forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
        _, error, _, _ = _norm_parts(i, o.get("eps", default), center, u)
        xhat = _norm_parts(i, o.get("eps", default), center, u)[0]
        weight = np.abs(i.get("weight", np.ones(y.shape[-1])))
        return ((error + u * np.abs(xhat)) * weight).reshape(y.shape) + u * np.abs(y)

    def gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
        xhat, error, rstd, relative = _norm_parts(i, o.get("eps", default), center, u)
        rows, cols = xhat.shape
        d = np.abs(dy.reshape(rows, cols))
        g = d * np.abs(i.get("weight", np.ones(cols)))
        mean_g = g.mean(1, keepdims=True) * center
        inner = (g * np.abs(xhat)).mean(1, keepdims=True)
        # dx = rstd (g - mean(g) - xhat mean(g xhat)): three terms, each with its own sum, product and subtraction
        size = g + mean_g + np.abs(xhat) * inner
        off = gamma(cols + 3, u) * (mean_g + np.abs(xhat) * inner) + error * inner
        off = off + np.abs(xhat) * (g * error).mean(1, keepdims=True) + (4 * u + relative) * size
        return {
            "x": (rstd * off).reshape(i["x"].shape),
            "weight": gamma(rows + 1, u) * (d * np.abs(xhat)).sum(0) + (d * error).sum(0),
            "bias": gamma(rows, u) * d.sum(0),
        }

    return Rule(forward, gradients)


RULES["layer_norm"], RULES["rms_norm"] = _norm_rule(True, 1e-5), _norm_rule(False, 1e-6)


def _norm(rows: tuple[int, ...], cols: int, *extra: str, shift: float = 0.0) -> Callable[..., Inputs]:
    return lambda rng: {
        "x": rng.standard_normal((*rows, cols)) + shift,
        **{name: rng.standard_normal(cols) for name in extra},
    }


for _name, _extra in (("layer_norm", ("weight", "bias")), ("rms_norm", ("weight",))):
    CASES += [
        Case(_name, "3x5", _norm((3,), 5, *_extra), small=True),
        Case(_name, "plain", _norm((3,), 7), small=True),
        Case(_name, "weight", _norm((2,), 6, "weight"), {"eps": 1e-3}, small=True),
        Case(_name, "0rows", _norm((0,), 5, *_extra)),
        Case(_name, "1col", _norm((5,), 1, *_extra)),
        Case(_name, "vector", _norm((), 33, *_extra)),
        Case(_name, "shifted", _norm((5,), 65, *_extra, shift=100.0)),
        *(Case(_name, f"{n}cols", _norm((3, 2), n, *_extra)) for n in (15, 16, 17, 31, 63, 127, 1031)),
        Case(_name, "shares", _norm((131,), 263, *_extra), shares=True),
    ]
    _call = getattr(ops, _name)
    ERRORS += [
        ErrorCase(
            _name,
            "weight",
            lambda f=_call: f(array((2, 3)), array((4,))),
            ShapeError,
            rf"{_name}: `weight` expected \(3,\), got \(4,\)",
        ),
        ErrorCase(
            _name,
            "empty",
            lambda f=_call: f(array((2, 0))),
            ShapeError,
            rf"{_name}: `x` expected a last axis .*\(2, 0\)",
        ),
        ErrorCase(
            _name, "0d", lambda f=_call: f(array(())), ShapeError, rf"{_name}: `x` expected a last axis .*got \(\)"
        ),
        ErrorCase(
            _name, "mixed", lambda f=_call: f(array((2, 3)), array((3,), "float64")), DTypeError, rf"{_name}: `weight`"
        ),
    ]
ERRORS.append(
    ErrorCase(
        "layer_norm",
        "bias",
        lambda: ops.layer_norm(array((2, 3)), None, array((1,))),
        ShapeError,
        r"layer_norm: `bias` expected \(3,\), got \(1,\)",
    )
)

# -- activations ----------------------------------------------------------------------------------------------------
for _act in ACTS:
    CASES += [
        Case(
            "activation",
            f"{_act}-17",
            lambda rng: {"x": off_zero(2 * rng.standard_normal(17))},
            {"act": _act},
            small=True,
        ),
        Case("activation", f"{_act}-axes", normal(x=(3, 43)), {"act": _act}),
        Case("activation", f"{_act}-wide", lambda rng: {"x": rng.uniform(-40, 40, 127)}, {"act": _act}),
        Case("activation", f"{_act}-shares", normal(x=(2, 16390)), {"act": _act}, shares=True),
        Case(
            "glu",
            f"{_act}-17",
            lambda rng: {"gate": off_zero(rng.standard_normal(17)), "up": rng.standard_normal(17)},
            {"act": _act},
            small=True,
        ),
        Case("glu", f"{_act}-65", normal(gate=(2, 65), up=(2, 65)), {"act": _act}),
    ]
CASES += [
    Case("activation", "0", normal(x=(0, 3))),
    Case("glu", "0", normal(gate=(0, 3), up=(0, 3))),
    Case("glu", "shares", normal(gate=(129, 257), up=(129, 257)), shares=True),
]


def _glu_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    name, gate, up, d = o.get("act", "silu"), i["gate"], np.abs(i["up"]), np.abs(dy)
    slope = slope_error(gate, 0.0, name, u) + 2 * u * np.abs(act_slope(gate, name))
    return {"gate": d * up * slope, "up": d * (act_error(gate, 0.0, name, u) + u * np.abs(act(gate, name)))}


RULES["activation"] = Rule(
    lambda i, o, y, u: act_error(i["x"], 0.0, o.get("act", "gelu"), u),
    lambda i, o, y, dy, u: {
        "x": np.abs(dy) * (slope_error(i["x"], 0.0, o.get("act", "gelu"), u) + u * SLOPE[o.get("act", "gelu")](i["x"]))
    },
)
RULES["glu"] = Rule(
    lambda i, o, y, u: act_error(i["gate"], 0.0, o.get("act", "silu"), u) * np.abs(i["up"]) + u * np.abs(y),
    _glu_gradients,
)
ERRORS += [
    ErrorCase(
        "activation",
        "act",
        lambda: ops.activation(array((2,)), "swich"),
        ConfigError,
        r"unknown activation 'swich'.*known: none",
    ),
    ErrorCase(
        "activation", "bytes", lambda: ops.activation(array((2,), "uint8")), DTypeError, r"activation: `x` .*uint8"
    ),
    ErrorCase(
        "glu",
        "sizes",
        lambda: ops.glu(array((2, 3)), array((2, 4))),
        ShapeError,
        r"glu: `up` expected \(2, 3\), got \(2, 4\)",
    ),
    ErrorCase("glu", "mixed", lambda: ops.glu(array((2,)), array((2,), "float64")), DTypeError, r"glu: `up` .*float64"),
    ErrorCase("glu", "missing", lambda: ops.glu(array((2,))), TypeError, r"glu: .*`up`"),
]

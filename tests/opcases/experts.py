"""Experts: weights of a choice, rows to experts and back, products with each expert's weight."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import ConfigError, DTypeError, ShapeError

from .bounds import Numbers, gamma, sigmoid
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array

CASES: list[Case] = []
RULES: dict[str, Rule] = {}
ERRORS: list[ErrorCase] = []


# -- weights --------------------------------------------------------------------------------------------------------
def _choice(tokens: int, experts: int, chosen: int) -> Callable[..., Inputs]:
    """Any experts, as a bias may choose them."""
    return lambda rng: {
        "logits": rng.standard_normal((tokens, experts)),
        "ids": np.array([rng.permutation(experts)[:chosen] for _ in range(tokens)])
        .reshape(tokens, chosen)
        .astype("i4"),
    }


def _weights(i: Inputs, o: Any) -> tuple[Numbers, Numbers, Numbers]:
    """Scores of the chosen, the weights, and the softmax of all (zeros for sigmoid)."""
    x, ids = i["logits"], i["ids"]
    chosen = np.take_along_axis(x, ids, 1)
    if o.get("score", "softmax") == "sigmoid":
        s = sigmoid(chosen)
        total = s.sum(1, keepdims=True) + o.get("eps", 0.0) if o.get("renormalize") else 0 * s[:, :1] + 1.0
        return s, s / total, np.zeros_like(x)
    s, everyone = np.exp(chosen), np.exp(x).sum(1, keepdims=True)
    total = s.sum(1, keepdims=True) if o.get("renormalize") else everyone
    return s, s / total, np.exp(x) / everyone


# Kernels compute in double: what rounds is what is stored, sums of double, and in the composed twin one more division.
def _weights_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    return (2 * u + gamma(i["logits"].shape[1] + i["ids"].shape[1] + 8, 2.0**-53)) * np.abs(y)


def _weights_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    s, p, everyone = _weights(i, o)
    g = np.abs(dy) * abs(o.get("scale", 1.0))
    inner = (g * p).sum(1, keepdims=True)
    # The composed twin renormalizes the softmax of all, whose gradients of those not chosen cancel.
    twin = everyone * inner * i["ids"].shape[1] * 2.0**-50
    size = everyone * inner if not o.get("renormalize") else 0 * everyone
    slope = p * (1.0 - s) if o.get("score") == "sigmoid" else p
    np.put_along_axis(size, i["ids"], np.take_along_axis(size, i["ids"], 1) + slope * (g + inner), 1)
    # a gradient is stored, then read and added to: four roundings, and in double a few of each term
    return {"logits": 4 * u * size + (gamma(s.shape[1] + everyone.shape[1] + 8, 2.0**-53) + 2.0**-50) * size + twin}


for _label, _options in {
    "softmax": {},
    "renormalized": {"renormalize": True, "scale": 1.5},
    "sigmoid": {"score": "sigmoid", "scale": 2.5},
    "sigmoid-renormalized": {"score": "sigmoid", "renormalize": True, "eps": 1e-6},
}.items():
    CASES += [
        Case("expert_weights", f"{_label}-3x5", _choice(3, 5, 2), _options, small=True),
        Case("expert_weights", f"{_label}-1of1", _choice(4, 1, 1), _options, small=True),
        Case("expert_weights", f"{_label}-all", _choice(5, 4, 4), _options),
        Case("expert_weights", f"{_label}-0", _choice(0, 4, 2), _options),
        Case("expert_weights", f"{_label}-shares", _choice(700, 64, 8), _options, shares=True),
    ]
RULES["expert_weights"] = Rule(_weights_forward, _weights_gradients)


def _refused(op: str, label: str, pattern: str, call: Callable[[], Any], error: type[Exception] = ShapeError) -> None:
    ERRORS.append(ErrorCase(op, label, call, error, pattern))


def _ids(*shape: int) -> Any:
    return array(shape, "int32")


_refused(
    "expert_weights",
    "axes",
    r"`logits` expected two axes .* got \(4,\)",
    lambda: ops.expert_weights(array((4,)), _ids(4, 1)),
)
_refused(
    "expert_weights",
    "ids",
    r"`ids` expected \(3, 1 to 2\), got \(3, 4\)",
    lambda: ops.expert_weights(array((3, 2)), _ids(3, 4)),
)
_refused(
    "expert_weights",
    "tokens",
    r"`ids` expected \(3, 1 to 2\), got \(2, 1\)",
    lambda: ops.expert_weights(array((3, 2)), _ids(2, 1)),
)
_refused("expert_weights", "no-experts", r"`logits` .*\(3, 0\)", lambda: ops.expert_weights(array((3, 0)), _ids(3, 0)))
_refused(
    "expert_weights",
    "int64",
    r"`ids` expected int32, got int64",
    lambda: ops.expert_weights(array((3, 2)), array((3, 1), "int64")),
    DTypeError,
)
_refused(
    "expert_weights",
    "score",
    r"unknown score 'sigmod'.*'sigmoid'",
    lambda: ops.expert_weights(array((3, 2)), _ids(3, 1), score="sigmod"),
    ConfigError,
)
_refused(
    "expert_weights",
    "eps",
    r"`eps` expected a finite number",
    lambda: ops.expert_weights(array((3, 2)), _ids(3, 1), eps=-1.0),
)
for _id in (2, -1, 2**31 - 1, -(2**31)):
    _refused("expert_weights", f"id{_id}", rf"`ids` must be in \[0, 2\), got {_id} at position 1",
             lambda n=_id: ops.expert_weights(array((1, 2)), int32_array(0, n).view((1, 2))))  # fmt: skip


# -- rows -----------------------------------------------------------------------------------------------------------
def _rows(tokens: int, chosen: int, width: int, *extra: str) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        order = rng.permutation(tokens * chosen).astype(np.int32)
        place = np.argsort(order).astype(np.int32).reshape(tokens, chosen)
        made = {"x": rng.standard_normal((tokens * chosen if extra else tokens, width))}
        shapes = {"weights": (tokens, chosen), "residual": (tokens, width)}
        made |= {name: rng.standard_normal(shapes[name]) for name in extra}
        return made | {"order": order, "place": place}

    return make


def _gather_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    return {"x": gamma(i["place"].shape[1] - 1, u) * np.abs(dy)[i["place"]].sum(1)}


def _combine_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    size = (np.abs(i["weights"])[:, :, None] * np.abs(i["x"])[i["place"]]).sum(1)
    return gamma(i["place"].shape[1] + 1, u) * size + u * np.abs(y)


def _combine_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    place, d = i["place"], np.abs(dy)
    x = np.zeros_like(i["x"])
    x[place] = d[:, None, :] * np.abs(i["weights"])[:, :, None]
    dot = (d[:, None, :] * np.abs(i["x"])[place]).sum(2)
    return {"x": 2 * u * x, "weights": gamma(dy.shape[1] + 1, u) * dot, "residual": 0 * dy}


CASES += [
    Case("gather_rows", "3x2x5", _rows(3, 2, 5), small=True),
    Case("gather_rows", "1of1", _rows(4, 1, 3), small=True),
    Case("gather_rows", "0tokens", _rows(0, 2, 3)),
    Case("gather_rows", "0wide", _rows(3, 2, 0)),
    *(Case("gather_rows", f"{n}wide", _rows(7, 3, n)) for n in (15, 17, 33, 65)),
    Case("gather_rows", "shares", _rows(131, 4, 300), shares=True),
    Case("combine_rows", "3x2x5", _rows(3, 2, 5, "weights"), small=True),
    Case("combine_rows", "residual", _rows(4, 3, 3, "weights", "residual"), small=True),
    Case("combine_rows", "0tokens", _rows(0, 2, 3, "weights")),
    Case("combine_rows", "0wide", _rows(3, 2, 0, "weights")),
    *(Case("combine_rows", f"{n}wide", _rows(7, 3, n, "weights", "residual")) for n in (15, 17, 33, 65, 129)),
    Case("combine_rows", "shares", _rows(131, 4, 300, "weights", "residual"), shares=True),
]
RULES["gather_rows"] = Rule(lambda i, o, y, u: 0 * y, _gather_gradients)
RULES["combine_rows"] = Rule(_combine_forward, _combine_gradients)


def _place(*values: int) -> Any:
    return int32_array(*values).view((len(values) // 2, 2))


_ORDER = (0, 1, 2, 3)
_refused(
    "gather_rows",
    "tokens",
    r"gather_rows: `x` expected \(2, width\), got \(3, 5\)",
    lambda: ops.gather_rows(array((3, 5)), int32_array(*_ORDER), _place(*_ORDER)),
)
_refused(
    "gather_rows",
    "order",
    r"`order` expected \(4,\), got \(3,\)",
    lambda: ops.gather_rows(array((2, 5)), int32_array(0, 1, 2), _place(*_ORDER)),
)
_refused(
    "gather_rows",
    "place",
    r"`place` expected two axes",
    lambda: ops.gather_rows(array((2, 5)), int32_array(*_ORDER), int32_array(*_ORDER)),
)
_refused(
    "gather_rows",
    "int64",
    r"`order` expected int32",
    lambda: ops.gather_rows(array((2, 5)), array((4,), "int64"), _place(*_ORDER)),
    DTypeError,
)
for _id in (4, -1, 2**31 - 1, -(2**31)):
    _refused(
        "gather_rows",
        f"id{_id}",
        rf"`order` must be in \[0, 4\), got {_id} at position 3",
        lambda n=_id: ops.gather_rows(array((2, 5)), int32_array(0, 1, 2, n), _place(*_ORDER)),
    )
    _refused(
        "combine_rows",
        f"id{_id}",
        rf"`place` must be in \[0, 4\), got {_id} at position 3",
        lambda n=_id: ops.combine_rows(array((4, 5)), array((2, 2)), None, int32_array(*_ORDER), _place(0, 1, 2, n)),
    )
_refused(
    "combine_rows",
    "rows",
    r"combine_rows: `x` expected \(4, width\), got \(3, 5\)",
    lambda: ops.combine_rows(array((3, 5)), array((2, 2)), None, int32_array(*_ORDER), _place(*_ORDER)),
)
_refused(
    "combine_rows",
    "weights",
    r"`weights` expected \(2, 2\), got \(4, 1\)",
    lambda: ops.combine_rows(array((4, 5)), array((4, 1)), None, int32_array(*_ORDER), _place(*_ORDER)),
)
_refused(
    "combine_rows",
    "residual",
    r"`residual` expected \(2, 5\), got \(4, 5\)",
    lambda: ops.combine_rows(array((4, 5)), array((2, 2)), array((4, 5)), int32_array(*_ORDER), _place(*_ORDER)),
)
_refused("combine_rows", "missing", r"missing argument `order`",
         lambda: ops.combine_rows(array((4, 5)), array((2, 2))), TypeError)  # fmt: skip


# -- products -------------------------------------------------------------------------------------------------------
def _grouped(counts: tuple[int, ...], n: int, inner: int, bias: bool = True) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        experts, rows = len(counts), sum(counts)
        made = {"x": rng.standard_normal((rows, inner)), "weight": rng.standard_normal((experts, n, inner))}
        if bias:
            made["bias"] = rng.standard_normal((experts, n))
        return made | {"offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)}

    return make


def _groups(i: Inputs) -> Iterator[tuple[int, slice]]:
    starts = i["offsets"].tolist()
    for e, (start, stop) in enumerate(itertools.pairwise(starts)):
        yield e, slice(start, stop)


def _grouped_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    bound = np.zeros_like(y)
    for e, rows in _groups(i):
        bound[rows] = np.abs(i["x"][rows]) @ np.abs(i["weight"][e]).T + (np.abs(i["bias"][e]) if "bias" in i else 0.0)
    return gamma(i["x"].shape[1] + 2, u) * bound


def _grouped_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    made = {name: np.zeros_like(i[name]) for name in ("x", "weight", "bias") if name in i}
    n = i["weight"].shape[1]
    for e, rows in _groups(i):
        count, d = rows.stop - rows.start, np.abs(dy[rows])
        made["x"][rows] = gamma(n + 1, u) * (d @ np.abs(i["weight"][e]))
        made["weight"][e] = gamma(count + 1, u) * (d.T @ np.abs(i["x"][rows]))
        if "bias" in i:
            made["bias"][e] = gamma(count, u) * d.sum(0)
    return made


CASES += [
    Case("grouped_linear", "small", _grouped((2, 0, 3), 4, 3), small=True),
    Case("grouped_linear", "plain", _grouped((1, 1), 2, 5, bias=False), small=True),
    Case("grouped_linear", "0rows", _grouped((0, 0), 4, 3)),
    Case("grouped_linear", "0inner", _grouped((2, 1), 4, 0)),
    Case("grouped_linear", "0out", _grouped((2, 1), 0, 4)),
    Case("grouped_linear", "ones", _grouped((1,) * 9, 33, 65)),
    Case("grouped_linear", "first", _grouped((29, 0, 0, 0), 35, 17)),
    Case("grouped_linear", "last", _grouped((0, 0, 0, 29), 17, 35)),
    *(Case("grouped_linear", f"{n}", _grouped((n, 3, 2 * n, 0, 1), n + 1, n + 2)) for n in (7, 15, 16, 31)),
    Case("grouped_linear", "deep", _grouped((13, 40), 65, 600)),
    Case("grouped_linear", "shares", _grouped((300, 0, 7, 1, 55), 257, 129), shares=True),
    Case("grouped_linear", "shares-decode", _grouped((0, 1, 1, 0, 0, 1, 0, 1), 300, 700), shares=True),
    Case("grouped_linear", "shares-many", _grouped((600, 0), 130, 65, bias=False), shares=True),
]
RULES["grouped_linear"] = Rule(_grouped_forward, _grouped_gradients)


def _product(x: Any = None, weight: Any = None, bias: Any = None, offsets: Any = (0, 2, 4)) -> Any:
    return ops.grouped_linear(
        array((4, 3)) if x is None else x,
        array((2, 5, 3)) if weight is None else weight,
        bias,
        None if offsets is None else int32_array(*offsets),
    )


_refused("grouped_linear", "weight", r"`weight` expected three axes", lambda: _product(weight=array((5, 3))))
_refused("grouped_linear", "inner", r"`x` expected \(rows, 3\), got \(4, 2\)", lambda: _product(x=array((4, 2))))
_refused("grouped_linear", "bias", r"`bias` expected \(2, 5\), got \(5,\)", lambda: _product(bias=array((5,))))
_refused("grouped_linear", "experts", r"`offsets` expected \(3,\), got \(4,\)", lambda: _product(offsets=(0, 1, 2, 4)))
_refused("grouped_linear", "short", r"must run from 0 to the 4 rows", lambda: _product(offsets=(0, 2, 3)))
_refused("grouped_linear", "long", r"must run from 0 to the 4 rows", lambda: _product(offsets=(0, 2, 2**31 - 1)))
_refused("grouped_linear", "begin", r"must run from 0 to the 4 rows", lambda: _product(offsets=(1, 2, 4)))
_refused("grouped_linear", "falls", r"`offsets` falls at expert 1", lambda: _product(offsets=(0, 5, 4)))
_refused("grouped_linear", "missing", r"missing argument `offsets`", lambda: _product(offsets=None), TypeError)
_refused("grouped_linear", "mixed", r"`weight` expected float32 like `x`, got float64",
         lambda: _product(weight=array((2, 5, 3), "float64")), DTypeError)  # fmt: skip

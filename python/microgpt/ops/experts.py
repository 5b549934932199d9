"""Ops of experts: which of them a token goes to, its rows on the way there and back, products with each one's weight.

T tokens go to k experts of E each, so there are R = T k rows, in the order of their experts. What varies from step to
step is where an expert's rows begin, which stands in `offsets`: shapes do not depend on data.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from .. import _kernels as k
from ..errors import ConfigError, nearest
from ..qtensor import QTensor
from ..tensors import Tensor, full, wide
from . import basic, quantized
from .layers import composed_softmax
from .op import Cost, check_float, check_int32, check_wide, elements_bytes, item_bytes, op, refuse

Array = k.Array
Needs = list[bool] | None

SCORES = ("softmax", "sigmoid")


class Routing(NamedTuple):
    """Where tokens go: `ids` (T, k) experts, the best first; `place` (T, k) rows; `order` (R) the numbers in `ids` of
    the rows; `offsets` (E + 1) first rows of the experts. All int32. `load` (E) counts each one's rows, as numbers.
    """

    ids: Array
    order: Array
    place: Array
    offsets: Array
    load: Array


def score_code(name: str) -> int:
    """The kernel's number of a score. Raises ConfigError naming the nearest."""
    if name not in SCORES:
        raise ConfigError(f"unknown score {name!r}{nearest(name, SCORES)}; known: {', '.join(SCORES)}")
    return SCORES.index(name)


def route(logits: Tensor | Array, chosen: int, score: str = "softmax", bias: Array | None = None) -> Routing:
    """The `chosen` experts of each token with the largest score; logits (T, E). Of equal scores the first wins.

    `bias` (E), float32 beside bfloat16, is added to the scores for the choice alone (Wang et al. 2024,
    arXiv:2408.15664). A score that is NaN counts as the largest. Nothing is dropped. Raises ShapeError, DTypeError.
    """
    data = logits.data if isinstance(logits, Tensor) else logits
    check_float("route", logits=data)
    if data.ndim != 2 or data.shape[1] < 1:
        refuse("route", "logits", "two axes (tokens, experts)", data.shape)
    tokens, experts = data.shape
    if not 1 <= chosen <= experts:
        refuse("route", "chosen", f"1 to the {experts} experts", chosen)
    if bias is not None:
        check_wide("route", data, bias=bias)
        if bias.shape != (experts,):
            refuse("route", "bias", (experts,), bias.shape)
    ids = k.empty((tokens, chosen), "int32")
    k.route(data, ids, experts, chosen, score_code(score), bias)
    return sort_experts(ids, experts, wide(data.dtype))


def sort_experts(ids: Array, experts: int, dtype: str = "float32") -> Routing:
    """The rows of a choice of experts, ids (T, k) int32; `dtype` float32 or float64 is that of the load."""
    check_int32("sort_experts", ids=ids)
    if ids.ndim != 2:
        refuse("sort_experts", "ids", "two axes (tokens, chosen)", ids.shape)
    if ids.size >= 2**31:
        refuse("sort_experts", "ids", "fewer than 2^31 rows", ids.size)
    made = Routing(ids, k.empty((ids.size,), "int32"), k.empty(ids.shape, "int32"), k.empty((experts + 1,), "int32"),
                   k.empty((experts,), dtype))  # fmt: skip
    k.sort_experts(ids, made.order, made.place, made.offsets, made.load)
    return made


def _numpy(value: Any) -> Any:
    return (value.data if isinstance(value, Tensor) else value).numpy()


# -- weights -----------------------------------------------------------------------------------------------------------
@op("logits")
def expert_weights(
    logits: Array,
    ids: Array,
    score: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    eps: float = 0.0,
    needs: Needs = None,
) -> Any:
    """What the outputs of the chosen experts are multiplied by: logits (T, E), ids (T, k) -> (T, k).

    `score` softmax is over all experts, sigmoid of each alone. `renormalize` divides by the sum over the chosen (plus
    `eps`, for sigmoid): for softmax, the softmax of the chosen logits. `scale` multiplies at last.
    """
    check_float("expert_weights", logits=logits)
    check_int32("expert_weights", ids=ids)
    if logits.ndim != 2 or logits.shape[1] < 1:
        refuse("expert_weights", "logits", "two axes (tokens, experts)", logits.shape)
    tokens, experts = logits.shape
    if ids.ndim != 2 or ids.shape[0] != tokens or not 1 <= ids.shape[1] <= experts:
        refuse("expert_weights", "ids", f"({tokens}, 1 to {experts})", ids.shape)
    if not 0.0 <= eps < math.inf:
        refuse("expert_weights", "eps", "a finite number, 0 or more", eps)
    settings = (experts, ids.shape[1], score_code(score), renormalize, scale, eps)
    y = k.empty(ids.shape, logits.dtype)
    k.route_weights(logits, ids, *settings, y=y)
    return y, (logits, ids, settings)


@expert_weights.backward
def _(saved: Any, dy: Array, dlogits: Any) -> None:
    logits, ids, (experts, chosen, code, renormalize, scale, eps) = saved
    array, add_to = dlogits.target(logits.dtype)
    k.route_weights(logits, ids, experts, chosen, code, renormalize, scale, eps, dy=dy, dx=array, accumulate=add_to)
    dlogits.settle(array)


@expert_weights.cost
def _(logits: Any, ids: Any, score: str = "softmax", renormalize: bool = False, scale: float = 1.0,
      eps: float = 0.0) -> Cost:  # fmt: skip
    return Cost(5 * logits.size, elements_bytes(logits, ids))


@expert_weights.composed
def _(logits: Tensor, ids: Any, score: str = "softmax", renormalize: bool = False, scale: float = 1.0,
      eps: float = 0.0) -> Tensor:  # fmt: skip
    numbers, (tokens, experts) = _numpy(ids), logits.shape
    hit = Tensor((numbers[:, :, None] == np.arange(experts)).astype(logits.dtype))
    scores = composed_softmax(logits) if score == "softmax" else basic.sigmoid(logits)
    chosen: Tensor = (scores.reshape(tokens, 1, experts) * hit).sum(2)
    if renormalize:
        chosen = chosen / (chosen.sum(1, keepdims=True) + (eps if score == "sigmoid" else 0.0))
    return chosen * scale


# -- rows --------------------------------------------------------------------------------------------------------------
def _check_rows(name: str, order: Array, place: Array) -> int:
    """Rows a token."""
    check_int32(name, order=order, place=place)
    if place.ndim != 2 or place.shape[1] < 1:
        refuse(name, "place", "two axes (tokens, chosen)", place.shape)
    if order.shape != (place.size,):
        refuse(name, "order", (place.size,), order.shape)
    return place.shape[1]


@op("x")
def gather_rows(x: Array, order: Array, place: Array, needs: Needs = None) -> Any:
    """x (T, D) -> (R, D): row r is that of token order[r] // k. `order` (R), `place` (T, k): see Routing."""
    check_float("gather_rows", x=x)
    chosen = _check_rows("gather_rows", order, place)
    if x.ndim != 2 or x.shape[0] != place.shape[0]:
        refuse("gather_rows", "x", f"({place.shape[0]}, width)", x.shape)
    y = k.empty((order.size, x.shape[1]), x.dtype)
    k.gather_rows(x, order, y, chosen, x.shape[1])
    return y, (place, x.shape[1])


@gather_rows.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    place, width = saved
    array, add_to = dx.target(dy.dtype)
    k.combine_rows(dy, place, array, place.shape[1], width, accumulate=add_to)
    dx.settle(array)


@gather_rows.cost
def _(x: Any, order: Any, place: Any) -> Cost:
    return Cost(0, elements_bytes(x, order) * (1 + place.shape[1]))


@gather_rows.composed
def _(x: Tensor, order: Any, place: Any) -> Tensor:
    taken = _numpy(order)[:, None] // place.shape[1] == np.arange(x.shape[0])
    y: Tensor = Tensor(taken.astype(x.dtype)) @ x
    return y


@op("x", "weights", "residual")
def combine_rows(
    x: Array,
    weights: Array,
    residual: Array | None = None,
    order: Array | None = None,
    place: Array | None = None,
    needs: Needs = None,
) -> Any:
    """x (R, D), weights (T, k) -> (T, D): the sum over j of weights[t, j] * x[place[t, j]], in order, + residual[t].

    `order` (R), `place` (T, k): see Routing.
    """
    check_float("combine_rows", x=x, weights=weights, residual=residual)
    if order is None or place is None:
        raise TypeError("combine_rows: missing argument `order` or `place`")
    chosen = _check_rows("combine_rows", order, place)
    if x.ndim != 2 or x.shape[0] != place.size:
        refuse("combine_rows", "x", f"({place.size}, width)", x.shape)
    if weights.shape != place.shape:
        refuse("combine_rows", "weights", place.shape, weights.shape)
    shape = (place.shape[0], x.shape[1])
    if residual is not None and residual.shape != shape:
        refuse("combine_rows", "residual", shape, residual.shape)
    y = k.empty(shape, x.dtype)
    k.combine_rows(x, place, y, chosen, x.shape[1], weights=weights, residual=residual)
    return y, (x, weights, order, place)


@combine_rows.backward
def _(saved: Any, dy: Array, dx: Any, dweights: Any, dresidual: Any) -> None:
    x, weights, order, place = saved
    chosen, width = place.shape[1], x.shape[1]
    if dx is not None:
        array, add_to = dx.target(dy.dtype)
        k.gather_rows(dy, order, array, chosen, width, accumulate=add_to, weights=weights)
        dx.settle(array)
    if dweights is not None:
        array, add_to = dweights.target(dy.dtype)
        k.combine_dot(x, place, dy, array, chosen, width, accumulate=add_to)
        dweights.settle(array)
    if dresidual is not None:
        dresidual.take(dy)


@combine_rows.cost
def _(x: Any, weights: Any, residual: Any = None, order: Any = None, place: Any = None) -> Cost:
    return Cost(2 * x.size, elements_bytes(x, weights, residual) + x.size // max(1, place.shape[1]) * 4)


@combine_rows.composed
def _(x: Tensor, weights: Tensor, residual: Tensor | None = None, order: Any = None, place: Any = None) -> Tensor:
    numbers, total = _numpy(place), full((place.shape[0], x.shape[1]), 0.0, x.dtype)
    for j in range(numbers.shape[1]):
        taken = (numbers[:, j, None] == np.arange(x.shape[0])).astype(x.dtype)
        total = total + (Tensor(taken) @ x) * weights[:, j : j + 1]
    return total if residual is None else residual + total


# -- products ----------------------------------------------------------------------------------------------------------
@op("x", "weight", "bias")
def grouped_linear(
    x: Array,
    weight: Array | QTensor,
    bias: Array | None = None,
    offsets: Array | None = None,
    rows: quantized.Rows | None = None,
    needs: Needs = None,
) -> Any:
    """x[r] @ weight[e].T + bias[e] for the rows r of expert e, which are offsets[e] to offsets[e + 1] - 1.

    x (R, K), weight (E, N, K), bias (E, N), offsets (E + 1) int32 from 0 to R; result (R, N). A row's bits do not
    depend on the others. An expert without rows costs nothing and has the gradient zero.
    A weight may be a QTensor, which takes no gradient. `rows` are then what expert_rows() made of the tokens, once for
    several weights, and x is the tokens (T, K).
    """
    check_float("grouped_linear", x=x, bias=bias, weight=None if isinstance(weight, QTensor) else weight)
    if offsets is None:
        raise TypeError("grouped_linear: missing argument `offsets`")
    check_int32("grouped_linear", offsets=offsets)
    if weight.ndim != 3:
        refuse("grouped_linear", "weight", "three axes (experts, out, in)", weight.shape)
    experts, n, inner = weight.shape
    if x.ndim != 2 or x.shape[1] != inner:
        refuse("grouped_linear", "x", f"(rows, {inner})", x.shape)
    if bias is not None and bias.shape != (experts, n):
        refuse("grouped_linear", "bias", (experts, n), bias.shape)
    if offsets.shape != (experts + 1,):
        refuse("grouped_linear", "offsets", (experts + 1,), offsets.shape)
    if isinstance(weight, QTensor):
        return quantized.grouped_linear(x, weight, bias, offsets, needs, rows), (x, weight, offsets)
    y = k.empty((x.shape[0], n), x.dtype)
    k.grouped_linear(x, weight, y, offsets, n, inner, trans_b=True, bias=bias)
    return y, (x, weight, offsets)


@grouped_linear.backward
def _(saved: Any, dy: Array, dx: Any, dweight: Any, dbias: Any) -> None:
    x, weight, offsets = saved
    _, n, inner = weight.shape
    if dx is not None and isinstance(weight, QTensor):
        quantized.give_grouped_inputs(dy, weight, offsets, dx)
    elif dx is not None:
        array, add_to = dx.target()  # products and sums write bfloat16 or float32, whichever the slot has
        k.grouped_linear(dy, weight, array, offsets, inner, n, accumulate=add_to)
    if dweight is not None:
        array, add_to = dweight.target()
        k.grouped_weight(dy, x, array, offsets, n, inner, accumulate=add_to)
    if dbias is not None:
        array, add_to = dbias.target()
        k.grouped_weight(dy, None, array, offsets, n, 1, accumulate=add_to)


@grouped_linear.cost
def _(x: Any, weight: Any, bias: Any = None, offsets: Any = None, rows: Any = None) -> Cost:
    _, n, inner = weight.shape
    return Cost(2 * x.shape[0] * n * inner, elements_bytes(x, weight, bias) + item_bytes(x.dtype) * x.shape[0] * n)


@grouped_linear.composed
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None, offsets: Any = None, rows: Any = None) -> Tensor:
    starts = [int(n) for n in _numpy(offsets)]
    parts = [full((0, weight.shape[1]), 0.0, x.dtype)]
    for e, (start, stop) in enumerate(itertools.pairwise(starts)):
        if stop > start:
            part = x[start:stop] @ weight[e].permute(1, 0)
            parts.append(part if bias is None else part + bias[e])
    y: Tensor = basic.concat(parts, 0)
    return y

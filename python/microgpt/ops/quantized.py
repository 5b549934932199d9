"""Products with quantized weights, on arrays: what `linear` does where its weight is a QTensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import _kernels as k
from ..qtensor import QTensor
from ..tensors import Tensor, wide
from .op import check_float, refuse

Array = k.Array


class Rows(NamedTuple):
    """Activations (M, K) as int8 codes, scales, and sums of codes; `key`: the weights they are made for."""

    codes: Array
    scales: Array
    starts: Array
    key: tuple[int, int, int]


def key_of(weight: QTensor) -> tuple[int, int, int]:
    """Weights of one key take the same activations; so do types without tiles of their own whose groups are alike."""
    type = weight.type
    number = type.number if type.rounds else -type.starts
    return number, weight.group, id(weight.data) if weight.ordered else 0


def rows_of(x: Array, weight: QTensor) -> Rows:
    """x (..., K) rounded to int8 for a weight (N, K)."""
    number, n, inner, group = weight.sizes
    m, groups = x.size // inner, -(-inner // group)
    codes = k.empty((m * groups * group,), "uint8")
    scales, starts = k.empty((m * groups,), "float32"), k.empty((m * groups * weight.type.starts,), "int32")
    k.q_rows(x, codes, scales, starts, weight.data, number, m, n, inner, group)
    return Rows(codes, scales, starts, key_of(weight))


def shared_rows(x: Tensor, weights: Sequence[Any]) -> Rows | None:
    """Rows that all these weights take, made once; None where they differ, are not quantized, or want x as it is."""
    first = weights[0]
    if len(weights) < 2 or not isinstance(first, QTensor) or not rounds(x.data, first, x.slot is not None):
        return None
    for weight in weights[1:]:
        if not isinstance(weight, QTensor) or key_of(weight) != key_of(first) or not rounds(x.data, weight, False):
            return None
    return rows_of(x.data, first)


def rounds(x: Array, weight: QTensor, taped: bool) -> bool:
    """Whether activations are rounded: not where a gradient will be asked for, never from float64, nor for NF4."""
    return weight.activations == "int8" and weight.type.product and not taped and x.dtype != "float64"


def linear(
    x: Array,
    weight: QTensor,
    bias: Array | None,
    residual: Array | None,
    act: int,
    wide_out: bool,
    needs: list[bool] | None,
    rows: Rows | None,
) -> tuple[Array, Array | None]:
    """y = residual + act(x weight^T + bias), and act's slope there where the backward will ask for it."""
    if not rounds(x, weight, bool(needs and any(needs))):
        rows = None
    elif rows is None or rows.key != key_of(weight):
        return k.q_linear(x, weight, bias, residual, act, wide_out), None
    check_float("linear", x=x, bias=bias, residual=residual)
    number, n, inner, group = weight.sizes
    if x.shape[-1:] != (inner,):
        refuse("linear", "x", f"(..., {inner})", x.shape)
    if bias is not None and bias.shape != (n,):
        refuse("linear", "bias", (n,), bias.shape)
    shape = (*x.shape[:-1], n)
    if residual is not None and residual.shape != shape:
        refuse("linear", "residual", shape, residual.shape)
    m = math.prod(shape[:-1])
    y = k.empty(shape, wide(x.dtype) if wide_out else x.dtype)
    slope = k.empty(shape, x.dtype) if act and needs and any(needs[:3]) else None
    if rows is None:
        k.q_matmul(x, weight.data, y, number, m, n, inner, group, bias=bias, residual=residual, slope=slope, act=act)
        return y, slope
    k.q_gemm(
        rows.codes, rows.scales, rows.starts, weight.data, y, number, m, n, inner, group,
        bias=bias, residual=residual, slope=slope, act=act,
    )  # fmt: skip
    return y, slope


def give_inputs(dz: Array, weight: QTensor, m: int, dx: Any) -> None:
    """dx (+)= dz (m, N) times the weight's numbers."""
    number, n, inner, group = weight.sizes
    array, add_to = dx.target(wide(dz.dtype))
    k.q_matmul(dz, weight.data, array, number, m, n, inner, group, to_inputs=True, accumulate=add_to)
    dx.settle(array)


# -- experts -----------------------------------------------------------------------------------------------------------
def _empty_rows(count: int, weight: QTensor) -> Rows:
    _, _, inner, group = weight.sizes
    groups = -(-inner // group)
    codes, scales = k.empty((count * groups * group,), "uint8"), k.empty((count * groups,), "float32")
    return Rows(codes, scales, k.empty((count * groups * weight.type.starts,), "int32"), key_of(weight))


def expert_rows(x: Tensor, weights: Sequence[Any], routing: Any) -> Rows | None:
    """x (T, K) rounded once for all these weights of experts, and its rows in the experts' order; None where the
    weights differ, are not quantized, or want x as it is. `routing`: see ops.route()."""
    first = weights[0]
    for weight in weights:
        if not isinstance(weight, QTensor) or key_of(weight) != key_of(first):
            return None
        if weight.ordered or not rounds(x.data, weight, x.slot is not None):  # each expert has an order of its own
            return None
    number, _, inner, group = first.sizes
    rows, made = rows_of(x.data, first), _empty_rows(routing.order.size, first)
    k.q_gather(
        *rows[:3], routing.order, routing.offsets, *made[:3], number, routing.order.size, x.shape[0],
        routing.ids.shape[1], inner, group,
    )  # fmt: skip
    return made


def grouped_linear(
    x: Array, weight: QTensor, bias: Array | None, offsets: Array, needs: list[bool] | None, rows: Rows | None
) -> Array:
    """x[r] weight[e]^T + bias[e] for each expert's rows; see ops.grouped_linear()."""
    number, n, inner, group = weight.sizes
    if rows is not None and rows.key != key_of(weight):
        refuse("grouped_linear", "rows", f"those of weights like {weight!r}", "others")
    if rows is None:
        if not rounds(x, weight, bool(needs and any(needs))):
            y = k.empty((x.shape[0], n), x.dtype)
            k.grouped_q_matmul(x, weight.data, y, offsets, number, n, inner, group, bias=bias)
            return y
        rows = _empty_rows(x.shape[0], weight)
        k.grouped_q_rows(x, *rows[:3], weight.data, offsets, number, n, inner, group)
    y = k.empty((rows.scales.size // -(-inner // group), n), x.dtype)
    k.grouped_q_gemm(*rows[:3], weight.data, y, offsets, number, n, inner, group, bias=bias)
    return y


def give_grouped_inputs(dy: Array, weight: QTensor, offsets: Array, dx: Any) -> None:
    """dx[r] (+)= dy[r] times the numbers of weight[e]."""
    number, n, inner, group = weight.sizes
    array, add_to = dx.target(wide(dy.dtype))
    k.grouped_q_matmul(dy, weight.data, array, offsets, number, n, inner, group, to_inputs=True, accumulate=add_to)
    dx.settle(array)

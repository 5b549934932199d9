"""Projections of the same rows as one kernel, where no gradient is wanted: fewer rounds of handing out work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import _kernels as k
from ..autograd import state
from ..qtensor import QTensor
from ..tensor import Tensor, result
from . import quantized

Array = k.Array


def joined_linear(x: Tensor, weights: Sequence[Any], biases: Sequence[Tensor | None]) -> list[Tensor] | None:
    """x W^T + b for each weight, with the bits of linear(); None where one kernel does not do it.

    It does where nothing is put on the tape, and either all weights are quantized and take the same activations, or
    none is and the rows are few.
    """
    given = [bias for bias in biases if bias is not None]
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(weights) < 2 or (state.enabled and any(each.slot is not None for each in (x, *plain, *given))):
        return None
    if not plain:
        return _quantized(x.data, weights, [None if bias is None else bias.data for bias in biases])
    if len(plain) < len(weights) or math.prod(x.shape[:-1]) > k.JOINED_ROWS:
        return None
    if any(each.dtype != x.dtype for each in (*plain, *given)):  # linear() says what is wrong
        return None
    ys: list[Tensor] = []
    for i in range(0, len(weights), k.MOST_JOINED):
        some = slice(i, i + k.MOST_JOINED)
        arrays = tuple(None if bias is None else bias.data for bias in biases[some])
        ys += map(result, k.linear_joined(x.data, tuple(weight.data for weight in plain[some]), arrays))
    return ys


def _quantized(x: Array, weights: Sequence[Any], biases: Sequence[Array | None]) -> list[Tensor] | None:
    first = weights[0]
    if not all(isinstance(weight, QTensor) for weight in weights) or x.shape[-1:] != (first.shape[1],):
        return None
    key = quantized.key_of(first)
    for weight, bias in zip(weights, biases, strict=True):
        if quantized.key_of(weight) != key or weight.shape[1] != first.shape[1]:
            return None
        if not quantized.rounds(x, weight, False):
            return None
        if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
            return None
    rows = quantized.rows_of(x, first)
    outer, inner = x.shape[:-1], first.shape[1]
    ys = [k.empty((*outer, weight.shape[0]), x.dtype) for weight in weights]
    each = [(w.data, y, w.type.number, w.shape[0], w.group, b) for w, y, b in zip(weights, ys, biases, strict=True)]
    m = math.prod(outer)
    for i in range(0, len(each), k.MOST_JOINED):
        k.q_gemm_joined(rows.codes, rows.scales, rows.starts, m, inner, tuple(each[i : i + k.MOST_JOINED]))
    return [result(y) for y in ys]

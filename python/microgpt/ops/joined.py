"""Projections of the same rows as one kernel, where no gradient is wanted: fewer rounds of handing out work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import _kernels as k
from ..autograd import state
from ..qtensor import QTensor
from ..tensors import Tensor, result


def joined_linear(x: Tensor, weights: Sequence[Any], biases: Sequence[Tensor | None]) -> list[Tensor] | None:
    """x W^T + b for each weight, with the bits of linear(); None where one kernel does not do it.

    It does where nothing is put on the tape, and either all weights are quantized and take the same activations, or
    none is and the rows are few.
    """
    if len(weights) < 2:
        return None
    if state.enabled and any(each is not None and each.slot is not None for each in (x, *weights, *biases)):
        return None
    arrays = [None if bias is None else bias.data for bias in biases]
    if isinstance(weights[0], QTensor):
        made = k.q_joined(x.data, weights, arrays)
        return None if made is None else [result(y) for y in made]
    if not all(isinstance(weight, Tensor) for weight in weights) or math.prod(x.shape[:-1]) > k.JOINED_ROWS:
        return None
    given = [weight.data for weight in weights]
    if any(each is not None and each.dtype != x.dtype for each in (*given, *arrays)):  # linear() says what is wrong
        return None
    ys: list[Tensor] = []
    for i in range(0, len(given), k.MOST_JOINED):
        some = slice(i, i + k.MOST_JOINED)
        ys += map(result, k.linear_joined(x.data, tuple(given[some]), tuple(arrays[some])))
    return ys

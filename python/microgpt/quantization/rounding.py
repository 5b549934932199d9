"""Symmetric rounding of a weight in groups, each number weighted by how much its column matters.

value = scale * (code - offset). A group's scale is the one of several candidates whose integers, with the least-squares
scale for them, leave the least weighted squared error (llama.cpp's importance matrix; see docs/log.md for the sweeps).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..qtensor import QType
from ..tensor import numpy_dtype

Floats: TypeAlias = npt.NDArray[Any]

# How far beyond the range of the integers the largest weight may fall, in steps.
STEPS = np.arange(-1.5, 2.01, 0.25)
FINE_STEPS = np.arange(-4.0, 1.01, 0.5)  # of 8 bits
DAMPING = 0.01  # of the mean importance is added to each column's: what a calibration did not see may still come
PIECE = 1 << 16  # numbers searched at a time: they stay in the cache


def range_of(kind: QType) -> tuple[int, int]:
    """Least and largest integer of a type; 8 bits leave out -128, as activations do."""
    return (-127, 127) if kind.bits == 8 else (-kind.offset, (1 << kind.bits) - 1 - kind.offset)


def stored_scale(scale: Floats, kind: QType) -> Floats:
    """Scales as a file of this type holds them."""
    with np.errstate(over="ignore"):
        held = "float32" if kind.channel else "bfloat16" if kind.name.endswith("_bf16") else "float16"
        kept: Floats = scale.astype(numpy_dtype(held)).astype(scale.dtype)
    return kept


def integers(values: Floats, scale: Floats, kind: QType) -> Floats:
    """The nearest integers of a type; `scale` broadcasts against the values."""
    low, high = range_of(kind)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
    q: Floats = np.clip(np.rint(values * inverse), low, high)
    return q


def search(values: Floats, importance: Floats, kind: QType) -> npt.NDArray[np.float32]:
    """Scales (n) of groups (n, m), as stored; `importance` (m) of the places in a group, none below zero."""
    scales = np.empty(len(values), np.float32)
    weight = importance.astype(np.float32)
    step = max(1, PIECE // values.shape[1])
    for start in range(0, len(values), step):
        piece = np.ascontiguousarray(values[start : start + step], np.float32)
        scales[start : start + step] = _search(piece, weight, kind)
    return scales


def _search(values: Floats, importance: Floats, kind: QType) -> Floats:
    low, high = range_of(kind)
    largest = np.abs(values).max(axis=1)
    inverse = np.divide(1.0, largest, out=np.zeros_like(largest), where=largest > 0)
    weighted, q, square = values * importance, np.empty_like(values), np.empty_like(values)
    best, scale = np.full_like(largest, np.inf), largest / np.float32(high)
    steps, sides = (FINE_STEPS, (1,)) if kind.bits == 8 else (STEPS, (1, -1))
    for side in sides:
        for step in steps:
            np.multiply(values, (np.float32(side * (high + step)) * inverse)[:, None], out=q)
            np.minimum(np.maximum(np.rint(q, out=q), low, out=q), high, out=q)
            xq = np.einsum("ij,ij->i", weighted, q)
            qq = np.multiply(q, q, out=square) @ importance
            fit = np.divide(xq, qq, out=np.zeros_like(xq), where=qq > 0)
            if kind.bits == 8:  # sums of squares would have to be exact to 1e-6
                np.subtract(np.multiply(q, fit[:, None], out=q), values, out=q)
                error = np.multiply(q, q, out=q) @ importance
            else:
                error = -fit * xq  # and a constant
            better = error < best
            best = np.where(better, error, best)
            scale = np.where(better, fit, scale)
    return stored_scale(scale, kind)


def damped(importance: Floats) -> Floats:
    """Importance of columns with a part of their mean added; ones where all are zero."""
    mean = float(importance.mean())
    return importance + DAMPING * mean if mean > 0 else np.ones_like(importance)


def weighted_round(values: Floats, importance: Floats, kind: QType, group: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Codes (N, K) and scales (N, groups) of a weight (N, K); `importance` (K): mean squares of the columns' inputs."""
    n, inner = values.shape
    weight = damped(importance)
    codes, scales = np.empty((n, inner), np.uint8), np.empty((n, -(-inner // group)), np.float32)
    for g in range(scales.shape[1]):
        columns = slice(g * group, (g + 1) * group)
        scales[:, g] = search(values[:, columns], weight[columns], kind)
        codes[:, columns] = integers(values[:, columns], scales[:, g, None], kind) + kind.offset
    return codes, scales

"""Symmetric rounding of a weight in groups, each number weighted by how much its column matters.

value = scale * (code - offset). A group's scale is searched for, so that the weighted squared error is small (what
llama.cpp does with an importance matrix; see docs/log.md for the sweeps).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..io.scale_search import FINE_STEPS, STEPS, best_scales
from ..qtensor import QType
from ..tensors import numpy_dtype

Floats: TypeAlias = npt.NDArray[Any]

DAMPING = 0.01  # of the mean importance is added to each column's: what a calibration did not see may still come


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


def search(values: Floats, importance: Floats, kind: QType) -> Floats:
    """Scales (n) of groups (n, m), as stored; `importance` of the places in a group, none below zero: (m), or (rows,
    m), of which group g has row g % rows."""
    low, high = range_of(kind)
    steps, sides = (FINE_STEPS, 1) if kind.bits == 8 else (STEPS, 2)
    return stored_scale(best_scales(values, low, high, steps, importance, sides), kind)


def damped(importance: Floats) -> Floats:
    """Importance of columns with a part of their mean added; ones where all are zero."""
    mean = float(importance.mean())
    return importance + DAMPING * mean if mean > 0 else np.ones_like(importance)


def weighted_round(values: Floats, importance: Floats, kind: QType, group: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Codes (N, K) and scales (N, groups) of a weight (N, K); `importance` (K): mean squares of the columns' inputs."""
    n, inner = values.shape
    missing = -inner % group
    whole = np.pad(values, ((0, 0), (0, missing))).reshape(-1, group)
    weight = np.pad(damped(importance), (0, missing)).reshape(-1, group)
    scales = search(whole, weight, kind)
    codes = (integers(whole, scales[:, None], kind) + kind.offset).astype(np.uint8)
    return codes.reshape(n, -1)[:, :inner], scales.reshape(n, -1)

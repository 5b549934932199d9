"""Position encodings that attention takes: rotary tables and ALiBi slopes."""

from __future__ import annotations

import functools
import math

import numpy as np

from .. import _kernels as k
from .spec import RopeSpec

Array = k.Array


@functools.lru_cache(maxsize=64)
def rope_tables(spec: RopeSpec, head_dim: int, positions: int, dtype: str) -> tuple[Array, Array]:
    """cos and sin (positions, dims/2) of position * theta^(-2i/dims), in float64 (arXiv:2104.09864, eq. 15)."""
    dims = spec.dims or head_dim
    frequency = spec.theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
    angle = np.arange(positions, dtype=np.float64)[:, None] * frequency[None, :]
    return k.from_numpy(np.cos(angle).astype(dtype)), k.from_numpy(np.sin(angle).astype(dtype))


def alibi_slopes(heads: int) -> list[float]:
    """Slopes 2^(-8i/n) for n a power of two; otherwise those of the power below, then every other one of the power
    above (Press et al. 2022, arXiv:2108.12409, and the authors' released code for other head counts)."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / below) for i in range(below)]
    above = [2.0 ** (-8.0 * (i + 1) / (2 * below)) for i in range(0, 2 * below, 2)]
    return slopes + above[: heads - below]


@functools.lru_cache(maxsize=64)
def alibi_array(heads: int, dtype: str) -> Array:
    """The slopes as an array."""
    return k.from_numpy(np.array(alibi_slopes(heads), dtype))

"""Position encodings that attention takes: rotary tables and ALiBi slopes."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..tensors import numpy_dtype
from .rope import RopeScaling, RopeSpec

Array = k.Array
STRETCH = 2048  # positions whose angles are looked up in sines and cosines of their own
Floats = npt.NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def rope_tables(spec: RopeSpec, head_dim: int, context: int, positions: int, dtype: str) -> tuple[Array, Array]:
    """cos and sin (positions, dims/2) of position * frequency, times the scaling's attention factor.

    Su et al. 2021, arXiv:2104.09864, eq. 15. Frequencies are those of a model of `context` positions whatever the
    length of the table, so a key that is cached never turns again.
    """
    frequency, factor = rope_frequencies(spec, head_dim, context)
    sign = -1.0 if spec.reverse else 1.0
    angle = np.arange(min(positions, STRETCH), dtype=np.float64)[:, None] * frequency[None, :]
    near_cos, near_sin = np.cos(angle), np.sin(angle)
    cos, sin = np.empty((2, positions, len(frequency)), dtype)
    for start in range(0, positions, STRETCH):  # by the sines of sums: a context of 2^17 in a tenth of the time
        count, far = min(STRETCH, positions - start), start * frequency
        far_cos, far_sin = np.cos(far) * factor, np.sin(far) * factor
        c, s = near_cos[:count], near_sin[:count]
        cos[start : start + count] = c * far_cos - s * far_sin
        sin[start : start + count] = (s * far_cos + c * far_sin) * sign
    return k.from_numpy(cos), k.from_numpy(sin)


def covered(reach: int, context: int) -> int:
    """The length of a table for positions below `reach`: a power of two, so that few tables serve all lengths."""
    return min(context, max(STRETCH, 1 << (reach - 1).bit_length()))


def rope_frequencies(spec: RopeSpec, head_dim: int, positions: int) -> tuple[Floats, float]:
    """Frequency of each pair of components, (dims/2) float64, and the factor on queries and keys.

    dynamic scaling begins beyond `positions`, which no sequence exceeds, so it changes nothing here; longrope takes its
    long factors where `positions` exceeds the original context (transformers chooses by the
    longest sequence of a call).
    """
    dims = spec.dims or head_dim
    frequency = spec.theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
    scaling = spec.scaling
    if scaling is None or scaling.kind == "dynamic":
        return frequency, 1.0
    original = scaling.original or positions
    if scaling.kind == "ntk":
        theta = spec.theta * scaling.factor ** (dims / (dims - 2))
        return theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims), 1.0
    if scaling.kind == "linear":
        return frequency / scaling.factor, scaling.attention_factor or 1.0
    if scaling.kind == "longrope":
        factors = scaling.long_factor if positions > original else scaling.short_factor
        derived = math.sqrt(1.0 + math.log(scaling.factor) / math.log(original)) if scaling.factor > 1.0 else 1.0
        return frequency / np.array(factors), scaling.attention_factor or derived
    slow = frequency / scaling.factor
    if scaling.kind == "proportional":
        slow[int(scaling.share * dims // 2) :] = 0.0  # pairs that do not turn
        return slow, 1.0
    if scaling.kind == "llama3":
        # Part of the unscaled frequency, by how many turns fit into the original context.
        turns = original * frequency / (2.0 * math.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        part = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
        return part * frequency + (1.0 - part) * slow, scaling.attention_factor or 1.0
    # YaRN, section 3.2: a ramp over the pairs between those that turn beta_fast and beta_slow times.
    low, high = (
        dims * math.log(original / (turns * 2.0 * math.pi)) / (2.0 * math.log(spec.theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / ((high - low) or 0.001), 0.0, 1.0)
    return ramp * slow + (1.0 - ramp) * frequency, scaling.attention_factor or _yarn_attention(scaling)


def _yarn_attention(scaling: RopeScaling) -> float:
    """0.1 ln(factor) + 1 (section 3.4); DeepSeek's ratio of two such where both mscales are given."""

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return grown(scaling.mscale) / grown(scaling.mscale_all_dim)
    return grown(1.0)


def alibi_slopes(heads: int) -> list[float]:
    """Slopes 2^(-8i/n) for n a power of two; otherwise those of the power below, then every other one of the power
    above (Press et al. 2022, arXiv:2108.12409, and the authors' released code for other head counts)."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / below) for i in range(below)]
    above = [2.0 ** (-8.0 * (i + 1) / (2 * below)) for i in range(0, 2 * below, 2)]
    return slopes + above[: heads - below]


@functools.lru_cache(maxsize=64)
def alibi_array(heads: int, scale: float, dtype: str) -> Array:
    """The slopes times `scale` as an array."""
    return k.from_numpy((np.array(alibi_slopes(heads)) * scale).astype(dtype))


@functools.lru_cache(maxsize=64)
def temperature_table(beta: float, period: int, positions: int, dtype: str) -> Array:
    """(positions, 1): 1 + beta * log(1 + floor(p / period)), the factor on queries at position p (Llama 4)."""
    steps = np.floor(np.arange(positions)[:, None] / period)
    return k.from_numpy(np.asarray(1.0 + beta * np.log1p(steps), numpy_dtype(dtype)))

"""From logits to a token: temperature, top-k, top-p, and random numbers that are a function of (seed, row, step)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, NonFiniteError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep every token. Raises ConfigError out of range."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ConfigError(f"temperature: expected a number of at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top_k: expected 0 (off) or more, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p: expected a number in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed: expected 0 to 2**64 - 1, got {self.seed}")


def probabilities(logits: npt.NDArray[Any], sampling: Sampling) -> Floats:
    """The distribution a token is drawn from, (V); greedy puts everything on the first largest logit.

    Temperature is applied first, then top-k, then top-p of what is left, as in transformers.
    Raises NonFiniteError when no token can be drawn.
    """
    values = logits.astype(np.float64)
    if np.isnan(values).any() or not np.isfinite(values.max()):
        raise NonFiniteError("sampling: the logits hold NaN or infinity, or no finite value")
    if sampling.temperature == 0.0:
        result = np.zeros_like(values)
        result[int(values.argmax())] = 1.0
        return result
    # The largest is subtracted first, so that a tiny temperature cannot overflow.
    values = (values - values.max()) / sampling.temperature
    if 0 < sampling.top_k < values.size:
        kept = np.argsort(-values, kind="stable")[: sampling.top_k]
        masked = np.full_like(values, -np.inf)
        masked[kept] = values[kept]
        values = masked
    p: Floats = np.exp(values)
    p /= p.sum()
    if sampling.top_p < 1.0:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= sampling.top_p]] = 0.0  # the smallest set that reaches top_p; never empty
        p /= p.sum()
    return p


def uniform(seed: int, row: int, step: int) -> float:
    """A number in [0, 1) for token `step` of sequence `row`: the same alone or in a batch."""
    bits = np.random.Philox(key=np.array([seed, 0x5A4D504C], np.uint64), counter=[0, row, step, 0]).random_raw()
    return float(int(bits) >> 11) * 2.0**-53


def draw(logits: npt.NDArray[Any], sampling: Sampling, row: int, step: int) -> int:
    """One token id from logits (V)."""
    p = probabilities(logits, sampling)
    if sampling.temperature == 0.0:
        return int(p.argmax())
    cumulative = np.cumsum(p)
    token = int(np.searchsorted(cumulative, uniform(sampling.seed, row, step) * cumulative[-1], side="right"))
    return min(token, int(np.flatnonzero(p)[-1]))

"""From logits to a token: penalties, temperature, filters, and numbers that are a function of (seed, row, step).

The order is that of transformers: repetition penalty (then OpenAI's two), temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, NonFiniteError

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]

_LARGEST = np.finfo(np.float64).max / 4  # the difference of two such numbers is still finite
_HEAD = 256  # tokens that top-p sorts at first; few distributions need more


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: `temperature` 0 is greedy; the defaults of the others keep every token and change nothing.

    `repetition_penalty` divides positive and multiplies negative logits of ids in the prompt or the text (CTRL,
    arXiv:1909.05858). `presence_penalty` is subtracted once from the logits of ids written so far, `frequency_penalty`
    once for each time (OpenAI's definition). `top_k`: the k likeliest; `top_p`: the smallest set that has this
    probability (arXiv:1904.09751); `min_p`: what has at least this part of the likeliest's probability
    (arXiv:2407.01082). Raises ConfigError for a value that is no number or out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        # With the types of the fields, so that equal settings compare equal whatever they were given as.
        def keep(name: str, check: Callable[..., Any], fits: Callable[[Any], bool], expected: str) -> None:
            object.__setattr__(self, name, check(name, getattr(self, name), fits, expected))

        keep("temperature", number, lambda x: x >= 0.0, "a number of at least 0")
        keep("top_k", whole, lambda n: n >= 0, "0 (off) or more")
        keep("top_p", number, lambda x: 0.0 < x <= 1.0, "a number in (0, 1]")
        keep("min_p", number, lambda x: 0.0 <= x <= 1.0, "a number in [0, 1]")
        keep("repetition_penalty", number, lambda x: x > 0.0, "a number above 0 (1 is off)")
        keep("presence_penalty", number, lambda x: -2.0 <= x <= 2.0, "a number in [-2, 2]")
        keep("frequency_penalty", number, lambda x: -2.0 <= x <= 2.0, "a number in [-2, 2]")
        keep("seed", whole, lambda n: 0 <= n < 2**64, "0 to 2**64 - 1")


def number(name: str, given: Any, fits: Callable[[float], bool], expected: str) -> float:
    """`given` as a float; ConfigError where it is no finite number or does not fit."""
    value = math.nan
    if not isinstance(given, bool) and isinstance(given, numbers.Real):
        with contextlib.suppress(OverflowError):
            value = float(given)
    if not (math.isfinite(value) and fits(value)):
        raise ConfigError(f"{name}: expected {expected}, got {shown(given)}")
    return value


def whole(name: str, given: Any, fits: Callable[[int], bool], expected: str) -> int:
    """`given` as an int; ConfigError where it is no whole number or does not fit."""
    if not isinstance(given, bool) and isinstance(given, numbers.Integral) and fits(int(given)):
        return int(given)
    raise ConfigError(f"{name}: expected {expected}, got {shown(given)}")


def shown(value: Any) -> str:
    """`value` for an error message: one short line."""
    try:
        text = repr(value)
    except Exception:  # Python refuses to write out a number of thousands of digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def probabilities(
    logits: npt.NDArray[Any], sampling: Sampling, prompt: Sequence[int] = (), written: Sequence[int] = ()
) -> Floats:
    """The distribution a token is drawn from, (V); greedy puts everything on the first largest logit.

    The penalties look at the ids of the prompt and those `written` after it. Of equal tokens top-k keeps the first.
    Raises NonFiniteError when no token can be drawn.
    """
    values = logits.astype(np.float64)
    if not np.isfinite(values.max()):  # the maximum of numbers with a NaN is NaN
        raise NonFiniteError("sampling: the logits hold NaN or infinity, or no finite value")
    _penalize(values, sampling, prompt, written)
    if sampling.temperature == 0.0:
        result = np.zeros_like(values)
        result[int(values.argmax())] = 1.0
        return result
    # The largest is subtracted first, so that a tiny temperature can only overflow to probability 0.
    with np.errstate(over="ignore"):
        values = (values - values.max()) / sampling.temperature
    if 0 < sampling.top_k < values.size:
        kept = _largest(values, sampling.top_k)
        masked = np.full_like(values, -np.inf)
        masked[kept] = values[kept]
        values = masked
    p: Floats = np.exp(values)
    p /= p.sum()
    if sampling.top_p < 1.0:
        kept = _nucleus(p, sampling.top_p)
        filtered = np.zeros_like(p)
        filtered[kept] = p[kept]
        p = filtered / filtered.sum()
    if sampling.min_p > 0.0:
        p[p < sampling.min_p * p.max()] = 0.0
        p /= p.sum()
    return p


def _penalize(values: Floats, sampling: Sampling, prompt: Sequence[int], written: Sequence[int]) -> None:
    """Change `values` in place; what was finite stays finite."""
    if sampling.repetition_penalty != 1.0 and (len(prompt) or len(written)):
        seen = np.unique(np.concatenate([np.asarray(prompt, np.intp), np.asarray(written, np.intp)]))
        old = values[seen]
        with np.errstate(over="ignore"):
            new = np.where(old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty)
        values[seen] = np.where(np.isfinite(old), np.clip(new, -_LARGEST, _LARGEST), old)
    if len(written) and (sampling.presence_penalty or sampling.frequency_penalty):
        ids, counts = np.unique(np.asarray(written, np.intp), return_counts=True)
        values[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _largest(values: Floats, count: int) -> Ids:
    """Places of the `count` largest values from the largest down, of equal ones the first; sorts no others."""
    if count >= values.size:
        return np.argsort(-values, kind="stable")
    least = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > least)
    order = above[np.argsort(-values[above], kind="stable")]
    return np.concatenate([order, np.flatnonzero(values == least)[: count - order.size]])


def _nucleus(p: Floats, top_p: float) -> Ids:
    """The smallest set of likeliest tokens that reaches `top_p`; never empty."""
    size = _HEAD
    while True:
        head = _largest(p, size)
        before = np.cumsum(p[head]) - p[head]
        # The rest is no part of the set where the sum has passed top_p by more than what rounding could take back.
        if head.size == p.size or before[-1] > top_p + 1e-9 or p[head[-1]] == 0.0:
            return head[before < top_p]
        size *= 8


def uniform(seed: int, row: int, step: int) -> float:
    """A number in [0, 1) for token `step` of sequence `row`: the same alone or in a batch."""
    bits = np.random.Philox(key=np.array([seed, 0x5A4D504C], np.uint64), counter=[0, row, step, 0]).random_raw()
    return float(int(bits) >> 11) * 2.0**-53


def draw(
    logits: npt.NDArray[Any],
    sampling: Sampling,
    row: int,
    step: int,
    prompt: Sequence[int] = (),
    written: Sequence[int] = (),
) -> int:
    """One token id from logits (V): token `step` of sequence `row`."""
    p = probabilities(logits, sampling, prompt, written)
    if sampling.temperature == 0.0:
        return int(p.argmax())
    cumulative = np.cumsum(p)
    token = int(np.searchsorted(cumulative, uniform(sampling.seed, row, step) * cumulative[-1], side="right"))
    return min(token, int(np.flatnonzero(p)[-1]))

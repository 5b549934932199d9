"""From logits to a token: penalties, temperature, filters, and numbers that are a function of (seed, row, step).

The order is that of transformers: repetition penalty (then OpenAI's two), temperature, top-k, top-p, min-p. The
arithmetic is one kernel in double (csrc/kernels/sample.h), which a recorded step runs too.
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

from .. import _kernels as k
from ..errors import ConfigError, NonFiniteError

Array = k.Array
Floats = npt.NDArray[np.float64]
NOTHING = "sampling: the logits hold NaN or infinity, or no finite value"


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

    @property
    def penalizes(self) -> bool:
        """Whether what was written changes the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


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
    found = k.empty(logits.shape, "float64")
    _draw_one(logits, sampling, 0, 0, prompt, written, None, found)
    return found.numpy()


def uniform(seed: int, row: int, step: int) -> float:
    """A number in [0, 1) for token `step` of sequence `row`: the same alone or in a batch."""
    return float(k.sample_uniform(seed, row, step))


def draw(
    logits: npt.NDArray[Any],
    sampling: Sampling,
    row: int,
    step: int,
    prompt: Sequence[int] = (),
    written: Sequence[int] = (),
) -> int:
    """One token id from logits (V): token `step` of sequence `row`. Raises as probabilities()."""
    tokens = k.empty((1,), "int32")
    _draw_one(logits, sampling, row, step, prompt, written, tokens, None)
    return int(tokens.numpy()[0])


def _draw_one(
    logits: npt.NDArray[Any],
    sampling: Sampling,
    row: int,
    step: int,
    prompt: Sequence[int],
    written: Sequence[int],
    tokens: Array | None,
    found: Array | None,
) -> None:
    given = logits if logits.dtype == np.float32 else logits.astype(np.float64)
    draws = Draws(sampling, [prompt], len(prompt) + len(written), row)
    for token in written:
        draws.took(0, token)
    draws.steps[0] = step
    draws.feed([0])
    draws.kernel(k.from_numpy(np.ascontiguousarray(given)), tokens, found)
    if (tokens is not None and tokens.numpy()[0] < 0) or (found is not None and np.isnan(found.numpy()[0])):
        raise NonFiniteError(NOTHING)


class Draws:
    """Draws the tokens of several sequences, alone or inside a recorded step, and keeps what penalties look at.

    Sequence s draws its random numbers as number `first_row` + s. `capacity`: ids of the longest, prompt included.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], capacity: int, first_row: int = 0) -> None:
        self.sampling = sampling
        self.steps = [0] * len(prompts)
        self._prompts = [len(prompt) for prompt in prompts]
        self._lengths = list(self._prompts)
        self._first = first_row
        self._history: Array | None = None
        if sampling.penalizes:
            self._history = k.from_numpy(np.zeros((len(prompts), max(1, capacity)), np.int32))
            for row, prompt in enumerate(prompts):
                self._history.numpy()[row, : len(prompt)] = prompt
        self.where: dict[int, Array] = {}  # by number of sequences: what a recorded step is fed with

    def feed(self, rows: Sequence[int]) -> Array:
        """Say whose logits the next draw is given; the buffer of so many sequences."""
        where = self.where.get(len(rows))
        if where is None:
            where = self.where[len(rows)] = k.from_numpy(np.zeros((len(rows), k.SAMPLE_ROW), np.int64))
        where.copy_from(
            np.array([[self._first + s, self.steps[s], s, self._prompts[s], self._lengths[s]] for s in rows], np.int64)
        )
        return where

    def kernel(self, logits: Array, tokens: Array | None, found: Array | None = None) -> None:
        """Logits (n, V) of the sequences last fed -> tokens (n), -1 where none can be drawn; their probabilities."""
        vocab = logits.shape[-1]
        where, s = self.where[logits.size // vocab], self.sampling
        k.sample(
            logits, where, tokens, self._history, found, vocab, s.temperature, min(s.top_k, vocab), s.top_p, s.min_p,
            s.repetition_penalty, s.presence_penalty, s.frequency_penalty, s.seed,
        )  # fmt: skip

    def took(self, row: int, token: int) -> None:
        """Sequence `row` goes on with `token`."""
        if self._history is not None:
            self._history.numpy()[row, self._lengths[row]] = token
        self._lengths[row] += 1
        self.steps[row] += 1


def check_drawn(tokens: npt.NDArray[np.int32]) -> list[int]:
    """Tokens as ints. Raises NonFiniteError where one could not be drawn."""
    drawn: list[int] = tokens.tolist()
    if min(drawn, default=0) < 0:
        raise NonFiniteError(NOTHING)
    return drawn

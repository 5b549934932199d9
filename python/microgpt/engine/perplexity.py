"""Perplexity of a text, and how far a model's predictions are from another's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..autograd import no_grad
from ..errors import ShapeError
from ..models.decoder import Decoder
from ..nn.context import Ctx, Layout
from ..state.contiguous import ContiguousStates

Logits = npt.NDArray[np.float64]
ROWS = 512  # predictions looked at together: bounds the memory of logits


@dataclass(frozen=True)
class Score:
    """Over `tokens` predictions: mean negative log-likelihood in nats; against another model, where there is one, the
    mean Kullback-Leibler divergence in nats and the part of tokens that both find likeliest."""

    tokens: int
    loss: float
    divergence: float | None = None
    agreement: float | None = None

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.loss, 700.0))


def score(
    model: Decoder,
    ids: Sequence[int],
    context: int | None = None,
    original: Decoder | None = None,
    say: Callable[[int, int], None] | None = None,
) -> Score:
    """How well a model predicts a text of at least two ids, in pieces of up to `context` tokens that do not overlap
    (None: the model's own, 2,048 at most); each id but a piece's first is predicted. `say` is told done and all. With
    `model.kv_dtype` keys and values are rounded to that type, as in generation.

    Raises ShapeError for a text too short.
    """
    length = min(model.config.max_positions, 2048) if context is None else context
    if len(ids) < 2 or not 2 <= length <= model.config.max_positions:
        raise ShapeError(
            f"perplexity: expected at least 2 tokens in pieces of 2 to {model.config.max_positions}, got {len(ids)} in "
            f"pieces of {length}"
        )
    total, count, divergence, same = 0.0, 0, 0.0, 0
    for start in range(0, len(ids) - 1, length):
        piece = np.asarray(ids[start : start + length], np.int32)
        if len(piece) < 2:
            break
        theirs = None if original is None else _log_probabilities(original, piece)
        at = 1
        for logs in _log_probabilities(model, piece):
            targets = piece[at : at + len(logs)]
            total -= float(logs[np.arange(len(logs)), targets].sum())
            count += len(logs)
            at += len(logs)
            if theirs is not None:
                other = next(theirs)
                divergence += float((np.exp(other) * (other - logs)).sum())
                same += int((other.argmax(1) == logs.argmax(1)).sum())
        if say is not None:
            say(min(start + length, len(ids)), len(ids))
    if original is None:
        return Score(count, total / count)
    return Score(count, total / count, max(0.0, divergence / count), same / count)


def _log_probabilities(model: Decoder, piece: npt.NDArray[np.int32]) -> Iterator[Logits]:
    """Of the next token after each id but the last, a few rows at a time; by way of a cache where that has a type."""
    layout, states = Layout.packed([len(piece)]), None
    if model.kv_dtype is not None:
        states = ContiguousStates(model.state_specs(), 1, len(piece))
        states.begin([len(piece)])
    with no_grad():
        hidden = model.hidden(k.from_numpy(piece), Ctx(layout, states=states))
    for start in range(0, len(piece) - 1, ROWS):
        with no_grad():
            rows = model.logits(hidden[start : min(start + ROWS, len(piece) - 1)])
        logits = rows.numpy().astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        yield logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

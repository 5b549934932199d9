"""Generation with a key/value cache: sequences advance together, each with the bits it would have alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import _kernels as k
from ..autograd import no_grad
from ..errors import ConfigError, ShapeError
from ..models.decoder import Decoder
from ..nn.context import Ctx, Layout
from ..state.contiguous import ContiguousStates
from ..tensors import Tensor
from .sampler import Draws, Sampling, check_drawn
from .step import Steps


@dataclass(frozen=True)
class Event:
    """A new token of sequence `row`; `finish_reason` is set with its last one: "stop" or "length"."""

    row: int
    token: int
    finish_reason: str | None


def generate_ids(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    first_row: int = 0,
    ends: Callable[[int, int], bool] | None = None,
) -> Iterator[Event]:
    """Continue each prompt (at least one id) by up to `max_tokens`, or to the end of the model's context.

    A row stops with an id of `stop_ids`, or where `ends(row, token)`, asked about every other token, says so.
    Rows draw their random numbers as number first_row, first_row + 1, ... Raises ShapeError for a prompt that is empty
    or longer than the context, ConfigError for max_tokens below 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens: expected at least 1, got {max_tokens}")
    context = model.config.max_positions
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= context:
            raise ShapeError(f"prompt {row}: expected 1 to {context} tokens (the model's context), got {len(prompt)}")
    longest = max((len(p) for p in prompts), default=0)
    states = ContiguousStates(model.state_specs(), len(prompts), min(context, longest + max_tokens))
    fresh: list[list[int]] = [list(p) for p in prompts]
    written = [0] * len(prompts)
    draws = Draws(sampling, prompts, states.capacity + 1, first_row)
    steps = Steps(model, states, draws)
    while any(fresh):
        active = [row for row, ids in enumerate(fresh) if ids]
        if (
            all(len(fresh[row]) == 1 for row in active)
            and all(states.lengths[row] for row in active)
            and steps.fits(active)
        ):
            tokens = check_drawn(steps.draw(active, [fresh[row][0] for row in active]))
        else:
            logits = forward_cached(model, fresh, states)
            drawn = k.empty((len(active),), "int32")
            draws.feed(active)
            draws.kernel(k.from_numpy(logits), drawn)
            tokens = check_drawn(drawn.numpy())
        lengths = states.lengths
        following: list[list[int]] = [[] for _ in prompts]
        for row, token in zip(active, tokens, strict=True):
            draws.took(row, token)
            written[row] += 1
            reason = None
            if token in stop_ids or (ends is not None and ends(row, token)):
                reason = "stop"
            elif written[row] == max_tokens or lengths[row] == context:
                reason = "length"
            else:
                following[row] = [token]
            yield Event(row, token, reason)
        fresh = following


def forward_cached(
    model: Decoder, fresh: Sequence[Sequence[int]], states: ContiguousStates
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Run new ids behind what the states remember; logits (n, V) after the last id of each sequence that has any."""
    counts = [len(ids) for ids in fresh]
    layout = Layout.cached(counts, states.lengths, states.rows)
    states.begin(counts)
    tokens = k.from_numpy(np.concatenate([np.asarray(ids, np.int32) for ids in fresh if len(ids)]))
    with no_grad():
        hidden = model.hidden(tokens, Ctx(layout, states=states))
        ends = np.cumsum(counts)[[i for i, count in enumerate(counts) if count]] - 1
        if len(ends) == hidden.shape[0]:
            last = hidden
        else:
            width = hidden.shape[1]
            gathered = k.empty((len(ends), width), hidden.dtype)
            k.embedding(hidden.data, k.from_numpy(ends.astype(np.int32)), gathered, width)
            last = Tensor(gathered)
        logits = model.logits(last).numpy()
    states.commit()
    return logits

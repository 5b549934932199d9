"""Ema: the exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from .. import _kernels as k
from ..nn.module import Module
from ..optim.arena import Arenas

Array = k.Array


def decay_at(decay: float, step: int) -> float:
    """Decay of step `step` (from 1): rises to `decay`, so that the first weights are soon forgotten.

    min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage with num_updates.
    """
    return min(decay, (1.0 + step) / (10.0 + step))


class Ema:
    """average = d * average + (1 - d) * weights after each step, with d = decay_at(decay, step); starts as the weights.

    launch() only launches kernels, so it can be part of a recorded step; feed(step) comes before it.
    """

    def __init__(self, model: Module, arenas: Arenas, decay: float) -> None:
        self.decay = decay
        self._arenas = arenas
        self._named = [(name, p) for name, p in model.named_parameters() if name in arenas.places]
        self.average = arenas.new()
        self.follow()
        self._rate = k.empty((1,), arenas.dtype)
        self._value = np.zeros(1, arenas.dtype)

    def follow(self) -> None:
        """Start again from the weights as they are."""
        k.axpy(self._arenas.params, self.average)

    def feed(self, step: int) -> None:
        """Tell the next launch its number, from 1."""
        self._value[0] = decay_at(self.decay, step)
        self._rate.copy_from(self._value)

    def launch(self) -> None:
        """w + d (average - w): the decay is then an array that a replay reads anew."""
        weights, average = self._arenas.params, self.average
        k.axpy(weights, average, -1.0, 1.0)
        k.axpy(average, average, alpha_at=self._rate)
        k.axpy(weights, average, 1.0, 1.0)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model's parameters are the average; nothing is copied."""
        raw = [(parameter, parameter.data) for _, parameter in self._named]
        for name, parameter in self._named:
            parameter.data = self._arenas.view(self.average, name)
        try:
            yield
        finally:
            for parameter, data in raw:
                parameter.data = data

    def keep(self) -> None:
        """Make the average the model's weights; training is over."""
        k.axpy(self.average, self._arenas.params)

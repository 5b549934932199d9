"""Ema: the exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..errors import CheckpointError
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

    launch() only launches kernels, so it can be recorded with a step; feed(step) comes before it. Of a bfloat16 model
    the float32 masters are averaged, and the model is shown the average rounded.
    """

    def __init__(self, model: Module, arenas: Arenas, decay: float) -> None:
        self.decay = decay
        self._arenas = arenas
        self._named = [(name, p) for name, p in model.named_parameters() if name in arenas.places]
        self.average = arenas.new()
        self._shown = self.average if arenas.rounded is None else arenas.new("bfloat16")
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
        """Inside, the model's parameters are the average."""
        self._round()
        raw = [(parameter, parameter.data) for _, parameter in self._named]
        for name, parameter in self._named:
            parameter.data = self._arenas.view(self._shown, name)
        try:
            yield
        finally:
            for parameter, data in raw:
                parameter.data = data

    def keep(self) -> None:
        """Make the average the model's weights; training is over."""
        k.axpy(self.average, self._arenas.params)
        if self._arenas.rounded is not None:
            k.cast(self.average, self._arenas.rounded)

    def _round(self) -> None:
        if self._shown is not self.average:
            k.cast(self.average, self._shown)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What resuming needs beside a checkpoint's model, which holds the average, and its optimizer.

        The weights that are trained, as "weights.NAME"; of a bfloat16 model, whose masters the optimizer saves, the
        average before it was rounded, as "average.NAME".
        """
        slot, arena = ("weights", self._arenas.params) if self._arenas.rounded is None else ("average", self.average)
        return {f"{slot}.{name}": self._arenas.view(arena, name).numpy() for name in self._arenas.places}

    def load_average(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take the averages among arrays(). Raises CheckpointError when one is missing or of another shape."""
        for name in self._arenas.places:
            view, found = self._arenas.view(self.average, name).numpy(), arrays.get(f"average.{name}")
            if found is None or found.shape != view.shape:
                got = "none" if found is None else found.shape
                raise CheckpointError(f"averaged weights {name}: expected {view.shape}, got {got}")
            view[...] = found

"""Optimizer: arenas, a rule, clipping, and the buffers through which a recorded step is told what changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..errors import CheckpointError, ConfigError, UsageError
from ..nn.linear import Adapter
from ..nn.module import Module
from ..qtensor import QTensor
from ..tensors import Tensor
from .arena import Arenas, Group
from .rules import UpdateRule

Array = k.Array


class Optimizer:
    """Updates a model's parameters. `max_norm` clips the global gradient norm; 0 does not clip.

    A step is: feed(step, lr), the loss and its backward, launch(loss). launch() only launches kernels, so it can be
    recorded. When the loss or the gradient norm is not finite nothing is updated; finite() tells. Parameters of
    bfloat16 have float32 masters (see Arenas), which are part of the state. Raises UsageError for quantized weights
    without an adapter.
    """

    def __init__(self, model: Module, rule: UpdateRule, groups: Sequence[Group], max_norm: float = 0.0) -> None:
        _check_trainable(model)
        if not max_norm >= 0.0:
            raise ConfigError(f"max_norm: expected at least 0, got {max_norm}")
        self.arenas = Arenas(model, groups)
        self.rule = rule
        self.max_norm = max_norm
        self.state = {slot: self.arenas.new() for slot in rule.slots}
        dtype = self.arenas.dtype
        self._hyper = k.empty((1,), dtype)
        self.step = k.empty((1,), "int64")
        self._partial = k.empty((-(-self.arenas.size // k.NORM_CHUNK),), "float64")
        self._control = k.empty((3,), dtype)
        self._lr = np.zeros(1, dtype)
        self._number = np.zeros(1, np.int64)
        self._largest = float(np.finfo(self._lr.dtype).max)
        self._rules = [each for _, module in model.named_modules() if (each := getattr(module, "after_step", None))]

    def feed(self, step: int, lr: float) -> None:
        """Tell the next launch its number (from 1) and learning rate. UsageError for what would ruin weights."""
        if not 1 <= step < 2**63:
            raise UsageError(f"feed: `step` expected a number from 1, got {step}")
        if not abs(lr) <= self._largest:
            raise UsageError(f"feed: `lr` expected a finite {self.arenas.dtype}, got {lr}")
        self._lr[0], self._number[0] = lr, step
        self._hyper.copy_from(self._lr)
        self.step.copy_from(self._number)

    def launch(self, loss: Tensor | None = None) -> None:
        """Norm, clip factor, update of every group."""
        arenas = self.arenas
        arenas.fill_gaps()
        k.sum_squares(arenas.grads, self._partial)
        k.clip(self._partial, self._control, self.max_norm, None if loss is None else loss.data)
        for segment in arenas.segments:
            size, start = segment.stop - segment.start, segment.start
            param, grad = arenas.params.view((size,), start), arenas.grads.view((size,), start)
            state = {name: array.view((size,), start) for name, array in self.state.items()}
            rounded = None if arenas.rounded is None else arenas.rounded.view((size,), start)
            self.rule.apply(param, grad, state, segment.group, self._hyper, self.step, self._control, rounded)
        for rule in self._rules:  # of layers that change something themselves
            rule(self._control.view((1,), 2))
        arenas.forget_gradients()

    def finite(self) -> bool:
        """Whether the last launch saw a finite loss and gradient and updated the weights."""
        return self._control.item(2) != 0.0

    def grad_norm(self) -> float:
        """Global gradient norm of the last launch, before clipping."""
        return self._control.item(0)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state by slot and parameter name, for checkpoints; with the float32 masters as slot "master"."""
        arenas = self.state if self.arenas.rounded is None else {**self.state, "master": self.arenas.params}
        return {
            f"{slot}.{name}": self.arenas.view(arena, name).numpy()
            for slot, arena in arenas.items()
            for name in self.arenas.places
        }

    def load_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """The inverse of arrays(). Raises CheckpointError when names or shapes differ."""
        own = self.arrays()
        if own.keys() != arrays.keys():
            wrong = sorted(own.keys() ^ arrays.keys())
            raise CheckpointError(f"optimizer state does not fit the model: missing or unexpected {wrong[:8]}")
        for name, view in own.items():
            if view.shape != arrays[name].shape:
                raise CheckpointError(f"optimizer state {name}: expected {view.shape}, got {arrays[name].shape}")
            view[...] = arrays[name]
        if self.arenas.rounded is not None:
            k.cast(self.arenas.params, self.arenas.rounded)


def _check_trainable(model: Module) -> None:
    modules = list(model.named_modules())
    codes = [name for name, module in modules if any(isinstance(value, QTensor) for value in vars(module).values())]
    if codes and not any(isinstance(module, Adapter) for _, module in modules):
        raise UsageError(f"{codes[0]} and {len(codes) - 1} more have quantized weights, which cannot be trained: put "
                         "adapters (LoRA) on them and train those, or load the original")  # fmt: skip

"""Arenas: all parameters, gradients and moments as a few contiguous arrays, one stretch for each group.

One kernel then updates a whole group, and clipping, checkpoints and (later) all-reduce are one call on one pointer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import _kernels as k
from ..errors import ConfigError, UsageError
from ..filters import Filter, matches
from ..nn.module import Module, Parameter
from ..tensors import wide

Array = k.Array

ALIGN = 16  # elements: each parameter starts on its own cache line


@dataclass(frozen=True)
class Group:
    """Parameters that `where` selects share a weight decay and a factor on the learning rate."""

    where: Filter
    weight_decay: float = 0.0
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("weight_decay", "lr_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}: expected a finite number, got {getattr(self, name)}")


@dataclass(frozen=True)
class Segment:
    """One group's stretch: element `start` to `stop` of every arena."""

    group: Group
    start: int
    stop: int


def decay_groups(weight_decay: float) -> list[Group]:
    """The usual rule: matrices decay, vectors (biases, norms) do not."""
    return [
        Group(lambda name, p: p.ndim >= 2, weight_decay),
        Group("*", 0.0),
    ]


class Arenas:
    """Moves a model's parameters into one array and points their gradient slots into another.

    Every parameter belongs to the first group that selects it; raises ConfigError for one that none selects.
    Of bfloat16 parameters `params` holds float32 masters, which are updated, and `rounded` the bfloat16 copies that the
    model computes with (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1); otherwise `rounded` is None.
    """

    def __init__(self, model: Module, groups: Sequence[Group]) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigError("there is nothing to train: no parameter requires a gradient")
        stored = named[0][1].dtype
        for name, parameter in named:
            if parameter.dtype != stored:
                raise ConfigError(f"parameter {name!r}: expected {stored} like the others, got {parameter.dtype}")
        self.dtype = wide(stored)
        buckets: list[list[tuple[str, Parameter]]] = [[] for _ in groups]
        for name, parameter in named:
            for bucket, group in zip(buckets, groups, strict=True):
                if matches(group.where, name, parameter):
                    bucket.append((name, parameter))
                    break
            else:
                raise ConfigError(f"parameter {name!r} belongs to no group")
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.segments: list[Segment] = []
        offset = 0
        for bucket, group in zip(buckets, groups, strict=True):
            start = offset
            for name, parameter in bucket:
                self.places[name] = (offset, parameter.shape)
                offset += -(-parameter.size // ALIGN) * ALIGN
            if bucket:
                self.segments.append(Segment(group, start, offset))
        self.size = offset
        self.params = self.new()
        self.rounded = None if stored == self.dtype else self.new(stored)
        for bucket in buckets:
            for name, parameter in bucket:
                place, shape = self.places[name]
                view = self.params.view(shape, place)
                if self.rounded is None:
                    k.axpy(parameter.data, view)
                else:
                    k.cast(parameter.data, view)
                    view = self.rounded.view(shape, place)
                    k.axpy(parameter.data, view)
                parameter.data = view
        k.trim_pool()  # the blocks that the parameters left: a model's worth of memory, and nothing will ask for it
        self.grads = self.new()
        self._hold([pair for bucket in buckets for pair in bucket])

    def _hold(self, named: Sequence[tuple[str, Parameter]]) -> None:
        """Point the gradient slots of parameters into `grads`."""
        self.slots = []
        self._held: list[tuple[str, Parameter, Array, Array]] = []
        for name, parameter in named:
            assert parameter.slot is not None
            parameter.slot.array = self.view(self.grads, name)
            self.slots.append(parameter.slot)
            self._held.append((name, parameter, parameter.slot.array, parameter.data))

    def _check_held(self) -> None:
        """Raises UsageError where a parameter is not this optimizer's any more."""
        for name, parameter, gradient, data in self._held:
            if parameter.slot is None or parameter.slot.array is not gradient:
                what = "frozen" if parameter.slot is None else "given to another optimizer"
            elif parameter.data is not data:
                what = "given other memory as its `data`"
            else:
                continue
            raise UsageError(f"parameter {name!r} was {what} after this optimizer was made; make a new one")

    def __deepcopy__(self, memo: dict[int, Any]) -> Arenas:
        """The arenas of the copied parameters: of the model that is copied in the same call. Copied one by one, the
        arrays would belong to nobody, and the model's copy would never move."""
        self._check_held()
        other: Arenas = memo.setdefault(id(self), object.__new__(Arenas))
        for name in ("dtype", "places", "segments", "size", "params", "rounded", "grads"):
            setattr(other, name, copy.deepcopy(getattr(self, name), memo))
        stored = other.params if other.rounded is None else other.rounded
        named = [(name, copy.deepcopy(parameter, memo)) for name, parameter, *_ in self._held]
        for name, parameter in named:
            parameter.data = other.view(stored, name)
        other._hold(named)
        return other

    def new(self, dtype: str | None = None) -> Array:
        """Another arena of the same layout, zeroed (the padding must stay finite)."""
        array = k.empty((self.size,), dtype or self.dtype)
        k.fill(array, 0.0)
        return array

    def view(self, arena: Array, name: str) -> Array:
        """One parameter's place in an arena."""
        place, shape = self.places[name]
        return arena.view(shape, place)

    def forget_gradients(self) -> None:
        """The next backward overwrites."""
        for slot in self.slots:
            slot.filled = False

    def fill_gaps(self) -> None:
        """Parameters that no loss reached have gradient zero. UsageError where gradients go elsewhere by now."""
        self._check_held()
        for slot in self.slots:
            slot.zero_if_empty()

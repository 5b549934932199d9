"""The tape: which op made which tensor, and the walk back from a loss.

A :class:`Slot` is where the gradient of one tensor goes. Parameters own slots that point into the gradient arena, so a
backward pass writes its result where the optimizer reads it, and never in between. Entries hold arrays, not tensors, so
nothing lives longer than its backward needs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ContextDecorator
from typing import Any

from . import _kernels as k
from .errors import UsageError

Array = k.Array

_order = itertools.count()


class _State(threading.local):
    enabled = True


state = _State()  # of each thread: `enabled` says whether ops are put on the tape


def is_grad_enabled() -> bool:
    """Whether ops of this thread are being put on the tape."""
    return state.enabled


class _Taping(ContextDecorator):
    """Within this context ops are remembered, or not; contexts nest."""

    __slots__ = ("before",)
    enabled: bool

    def __enter__(self) -> None:
        self.before, state.enabled = state.enabled, self.enabled

    def __exit__(self, *_: object) -> None:
        state.enabled = self.before

    def _recreate_cm(self) -> _Taping:  # a decorated function that calls itself needs a context for each call
        return type(self)()


class no_grad(_Taping):
    """Within this context ops are computed and not remembered: no gradients, less memory."""

    __slots__ = ()
    enabled = False


class enable_grad(_Taping):
    """Within this context ops are remembered even inside :func:`no_grad`."""

    __slots__ = ()
    enabled = True


class Slot:
    """Where the gradient of one tensor is written; the first writer overwrites, later ones add."""

    __slots__ = ("array", "dtype", "entry", "filled", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: str, array: Array | None = None) -> None:
        self.shape = shape
        self.dtype = dtype
        self.array = array  # a parameter's is given: its place in the gradient arena
        self.filled = False
        self.entry: Entry | None = None  # the op that made the tensor; None for leaves

    def target(self, dtype: str | None = None) -> tuple[Array, bool]:
        """The array to write the gradient to, and whether to add to what it holds.

        With `dtype`, what the kernel writes: where that is not the slot's, an array to be given to settle() afterwards.
        """
        if dtype is not None and dtype != self.dtype:
            return k.empty(self.shape, dtype), False
        if self.array is None:
            self.array = k.empty(self.shape, self.dtype)
        accumulate, self.filled = self.filled, True
        return self.array, accumulate

    def settle(self, array: Array) -> None:
        """After a kernel wrote to target(dtype)'s array: converts it if it is not the slot's own."""
        if array.dtype != self.dtype:
            self.take(array)

    def take(self, gradient: Array) -> None:
        """Hand over an array that nobody else will write to or read from again."""
        if gradient.dtype != self.dtype:
            if self.array is None:
                self.array = k.empty(self.shape, self.dtype)
            k.cast(gradient, self.array, self.filled)
        elif self.array is None:
            self.array = gradient if gradient.shape == self.shape else gradient.view(self.shape)
        else:
            k.axpy(gradient, self.array, 1.0, 1.0 if self.filled else 0.0)
        self.filled = True

    def add(self, gradient: Array, scale: float = 1.0, scale_at: Array | None = None) -> None:
        """Add (a multiple of) an array that stays the caller's; `scale_at` holds one more factor."""
        if gradient.dtype != self.dtype:
            wide = k.empty(gradient.shape, self.dtype)
            k.cast(gradient, wide)
            gradient = wide
        array, accumulate = self.target()
        k.axpy(gradient, array, scale, 1.0 if accumulate else 0.0, alpha_at=scale_at)

    def zero_if_empty(self) -> None:
        """A parameter that took no part in the loss has gradient zero, not the last step's."""
        if not self.filled and self.array is not None:
            k.fill(self.array, 0.0)
            self.filled = True


class JoinedSlot(Slot):
    """Where gradients of several parameters go that lie side by side, as one: what is written there fills them all."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Slot], array: Array) -> None:
        super().__init__(array.shape, array.dtype, array)
        self.parts = parts

    def _meet(self) -> None:
        """They are filled together from now on; where an op has filled only some, the others are zero."""
        arrays = [part.array for part in self.parts]  # an optimizer made since the forward pass has moved them
        self.array = None if None in arrays else k.joined(arrays)
        if self.array is None or self.array.dtype != self.dtype:
            raise UsageError("backward: parameters that were one product have been moved apart since the forward pass")
        self.filled = any(part.filled for part in self.parts)
        for part in self.parts:
            if self.filled:
                part.zero_if_empty()
            part.filled = True

    def target(self, dtype: str | None = None) -> tuple[Array, bool]:
        if dtype is None or dtype == self.dtype:
            self._meet()
        return super().target(dtype)

    def take(self, gradient: Array) -> None:
        self._meet()
        super().take(gradient)


class Entry:
    """One op on the tape: what its backward needs and where gradients come from and go to.

    An only output is not held: the walk back comes by it, and what nobody walks is gone with its tensor, cycle-free.
    """

    __slots__ = ("backward", "inputs", "name", "order", "outputs", "saved")

    def __init__(
        self,
        name: str,
        backward: Callable[..., None],
        saved: Any,
        inputs: Sequence[Slot | Sequence[Slot | None] | None],
        outputs: Sequence[Slot],
    ) -> None:
        self.name = name
        self.backward = backward
        self.saved = saved
        self.inputs = inputs
        self.outputs = outputs if len(outputs) > 1 else ()
        self.order = next(_order)
        for slot in outputs:
            slot.entry = self

    def input_slots(self) -> Iterator[Slot]:
        """The slots among the inputs, lists of them included."""
        for slot in self.inputs:
            if isinstance(slot, Slot):
                yield slot
            elif slot is not None:
                yield from (each for each in slot if each is not None)


class _Spent:
    """Marks an entry whose saved arrays were given back by an earlier backward."""


_SPENT = _Spent()


def run_backward(slot: Slot, gradient: Array) -> None:
    """Walk the tape back from `slot`, whose gradient is `gradient` (taken over), newest op first.

    Raises UsageError if part of the tape was already walked: its saved arrays are gone.
    """
    slot.take(gradient)
    if slot.entry is None:
        return
    reached: dict[int, tuple[Entry, Sequence[Slot]]] = {}
    stack = [slot]
    while stack:
        at = stack.pop()
        entry = at.entry
        if entry is None or entry.order in reached:
            continue
        if entry.saved is _SPENT:
            raise UsageError(
                f"backward: the tape through {entry.name!r} was already used; compute the loss again first"
            )
        reached[entry.order] = entry, entry.outputs or (at,)
        stack.extend(entry.input_slots())
    for order in sorted(reached, reverse=True):
        entry, outputs = reached.pop(order)
        gradients = []
        for out in outputs:
            if not out.filled:  # an output that the loss does not depend on
                array, _ = out.target()
                k.fill(array, 0.0)
            gradients.append(out.array)
            out.array, out.filled = None, False
        entry.backward(entry.saved, *gradients, *entry.inputs)
        entry.saved = _SPENT

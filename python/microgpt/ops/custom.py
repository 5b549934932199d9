"""Ops that are not kernels: ideas written in Python, and recomputation (gradient checkpointing)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..autograd import Entry, Slot, enable_grad, is_grad_enabled, no_grad, run_backward
from ..errors import DTypeError, ShapeError
from ..tensors import Tensor

Array = k.Array
Numpy = npt.NDArray[Any]


def custom(
    forward: Callable[..., Numpy],
    backward: Callable[..., Sequence[Numpy | None]] | None = None,
    name: str = "custom",
) -> Callable[..., Tensor]:
    """Make an op from NumPy functions, to try an idea before it has a kernel.

    `forward(*arrays) -> array`; `backward(dy, y, *arrays) -> one gradient (or None) for each input`. The output's shape
    and type must follow from the inputs' shapes alone. In a recorded program it becomes a host node: correct, slower,
    visible in ``program.dump()``. Raises ShapeError or DTypeError when results do not fit, naming the op.

        cube = ops.custom(lambda x: x**3, lambda dy, y, x: [dy * 3 * x**2], name="cube")
    """

    def call(*inputs: Tensor) -> Tensor:
        arrays = [each.data for each in inputs]
        out: list[Array] = []

        def run_forward() -> None:
            value = np.ascontiguousarray(forward(*(a.numpy() for a in arrays)))
            if not out:
                out.append(k.from_numpy(value))
                return
            _fits(name, "output", value.shape, str(value.dtype), out[0].shape, out[0].dtype)
            out[0].copy_from(value)

        k.launch_host(name, run_forward)
        y = Tensor(out[0])
        if backward is None or not is_grad_enabled() or not any(each.slot for each in inputs):
            return y
        y.requires_grad, y.slot = True, Slot(y.shape, y.dtype)

        def run_entry(_: Any, dy: Array, *slots: Slot | None) -> None:
            targets = [None if slot is None else slot.target() for slot in slots]

            def run_host() -> None:
                gradients = backward(dy.numpy(), y.data.numpy(), *(a.numpy() for a in arrays))
                if len(gradients) != len(arrays):
                    raise ShapeError(f"{name}: backward gave {len(gradients)} gradients for {len(arrays)} inputs")
                for i, (target, gradient) in enumerate(zip(targets, gradients, strict=True)):
                    if target is None:
                        continue
                    into, add_to = target[0].numpy(), target[1]
                    value = np.zeros_like(into) if gradient is None else np.asarray(gradient)
                    _fits(name, f"gradient {i}", value.shape, str(value.dtype), into.shape, str(into.dtype))
                    into[...] = into + value if add_to else value

            k.launch_host(f"{name} backward", run_host)

        Entry(name, run_entry, None, [each.slot for each in inputs], [y.slot])
        return y

    call.__name__ = name
    return call


def _fits(name: str, what: str, shape: Any, dtype: str, want_shape: Any, want_dtype: str) -> None:
    if tuple(shape) != tuple(want_shape):
        raise ShapeError(f"{name}: {what} expected shape {tuple(want_shape)}, got {tuple(shape)}")
    if dtype != want_dtype:
        raise DTypeError(f"{name}: {what} expected {want_dtype}, got {dtype}")


def checkpoint(fn: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """fn(*inputs) without keeping what lies between: the backward computes it again (arXiv:1604.06174).

    `fn` may use parameters from outside; other tensors that require gradients must be passed as inputs. The result
    and the gradients have the same bits as without it.
    """
    if not is_grad_enabled():
        return fn(*inputs)
    with no_grad():
        y = fn(*inputs).detach()
    y.requires_grad, y.slot = True, Slot(y.shape, y.dtype)

    def run_entry(_: Any, dy: Array, *slots: Slot | None) -> None:
        with enable_grad():
            again = []
            for tensor, slot in zip(arrays, slots, strict=True):
                leaf = Tensor(tensor)
                if slot is not None:
                    leaf.requires_grad, leaf.slot = True, _Leaf(slot)
                again.append(leaf)
            result = fn(*again)
        if result.slot is not None:
            run_backward(result.slot, dy)

    arrays = [each.data for each in inputs]
    Entry("checkpoint", run_entry, None, [each.slot for each in inputs], [y.slot])
    return y


class _Leaf(Slot):
    """The slot of a recomputed input: it forwards to the real one and hides what made it."""

    __slots__ = ("real",)

    def __init__(self, real: Slot) -> None:
        super().__init__(real.shape, real.dtype)
        self.real = real

    def target(self, dtype: str | None = None) -> tuple[Array, bool]:
        return self.real.target(dtype)

    def take(self, gradient: Array) -> None:
        self.real.take(gradient)

    def add(self, gradient: Array, scale: float = 1.0, scale_at: Array | None = None) -> None:
        self.real.add(gradient, scale, scale_at)

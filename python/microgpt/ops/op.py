"""The decorator that turns a pair of functions on arrays into a differentiable op.

    @op("x", "weight")                      # the arguments that can require gradients, in order
    def scale(x, weight, factor=1.0):       # arrays in; returns the output and what backward needs
        ...
        return y, (x, weight)

    @scale.backward
    def _(saved, dy, dx, dweight):          # dx, dweight: Slot, or None where no gradient was asked for
        ...

    @scale.cost                             # FLOPs and bytes, from the same arguments
    @scale.composed                         # the same in plain ops on tensors: the specification

The record drives autograd, the cost model, the tests' case table and the benches.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import _kernels as k
from ..autograd import Entry, Slot, is_grad_enabled
from ..errors import DTypeError, ShapeError
from ..registry import Registry
from ..tensor import Tensor, as_array, wide

Array = k.Array

OPS: Registry[Op] = Registry("op")


class Cost(NamedTuple):
    """What a call needs: floating-point operations, and bytes read and written if each array moves once."""

    flops: int
    bytes: int


class Op:
    """A differentiable operation. Calling it takes tensors (or arrays) and returns tensors."""

    def __init__(self, forward: Callable[..., Any], tensors: Sequence[str]) -> None:
        self.name = forward.__name__
        self.forward = forward
        self.tensors = tuple(tensors)
        self.backward_fn: Callable[..., None] | None = None
        self.cost_fn: Callable[..., Cost] | None = None
        self.composed_fn: Callable[..., Any] | None = None
        self._index = {name: i for i, name in enumerate(self.tensors)}
        given = inspect.signature(forward).parameters
        self._required = sum(given[name].default is inspect.Parameter.empty for name in self.tensors)
        functools.update_wrapper(self, forward)

    def backward(self, fn: Callable[..., None]) -> Callable[..., None]:
        """Register the backward: (saved, dy..., slot or None for each tensor argument)."""
        self.backward_fn = fn
        return fn

    def cost(self, fn: Callable[..., Cost]) -> Callable[..., Cost]:
        """Register the cost, a function of the forward's arguments (arrays or tensors: only shapes are read)."""
        self.cost_fn = fn
        return fn

    def composed(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Register the composed twin: the same function of tensors, in plain ops."""
        self.composed_fn = fn
        return fn

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        count = len(self.tensors)
        given: list[Any] = list(args[:count])
        given += [None] * (count - len(given))
        if kwargs:
            for name in [name for name in kwargs if name in self._index]:
                given[self._index[name]] = kwargs.pop(name)
        taped = self.backward_fn is not None and is_grad_enabled()
        arrays: list[Any] = []
        slots: list[Any] = []
        wanted = False
        for value in given:
            if isinstance(value, Tensor):
                arrays.append(value.data)
                slot = value.slot if taped else None
                slots.append(slot)
                wanted = wanted or slot is not None
            elif isinstance(value, (list, tuple)):
                arrays.append([each.data if isinstance(each, Tensor) else each for each in value])
                many = [each.slot if taped and isinstance(each, Tensor) else None for each in value]
                slots.append(many)
                wanted = wanted or any(slot is not None for slot in many)
            else:
                if value is None and len(arrays) < self._required:
                    raise TypeError(f"{self.name}: missing argument `{self.tensors[len(arrays)]}`")
                arrays.append(value if value is None or isinstance(value, Array) else as_array(value))
                slots.append(None)
        if wanted:
            kwargs["needs"] = [
                any(s is not None for s in slot) if isinstance(slot, list) else slot is not None for slot in slots
            ]
        out, saved = self.forward(*arrays, *args[count:], **kwargs)
        if not wanted:
            return tuple(Tensor(each) for each in out) if isinstance(out, tuple) else Tensor(out)
        outputs = [_tracked(each) for each in out] if isinstance(out, tuple) else [_tracked(out)]
        assert self.backward_fn is not None
        Entry(self.name, self.backward_fn, saved, slots, [t.slot for t in outputs if t.slot is not None])
        return tuple(outputs) if isinstance(out, tuple) else outputs[0]


def _tracked(array: Array) -> Tensor:
    tensor = Tensor(array)
    tensor.requires_grad = True
    tensor.slot = Slot(array.shape, array.dtype)
    return tensor


def op(*tensors: str) -> Callable[[Callable[..., Any]], Op]:
    """Make an op whose differentiable arguments are `tensors` and register it under the function's name.

    The forward is called with arrays and with `needs` (one bool for each tensor argument) when it is being taped.
    """

    def decorate(forward: Callable[..., Any]) -> Op:
        made = Op(forward, tensors)
        OPS.add(made.name, made)
        return made

    return decorate


# -- checks: every message says op, argument, expected, got ---------------------------------------------------------
def check(condition: bool, name: str, argument: str, expected: object, got: object) -> None:
    """Raise ShapeError unless `condition`."""
    if not condition:
        raise ShapeError(f"{name}: `{argument}` expected {expected}, got {got}")


def check_float(name: str, **arrays: Array | None) -> None:
    """All given arrays must be of one floating-point type."""
    first: tuple[str, str] | None = None
    for argument, array in arrays.items():
        if array is None:
            continue
        if array.dtype not in ("float32", "float64", "bfloat16"):
            raise DTypeError(f"{name}: `{argument}` expected float32, float64 or bfloat16, got {array.dtype}")
        if first is None:
            first = (argument, array.dtype)
        elif array.dtype != first[1]:
            raise DTypeError(f"{name}: `{argument}` expected {first[1]} like `{first[0]}`, got {array.dtype}")


def check_wide(name: str, like: Array, **arrays: Array | None) -> None:
    """All given arrays must be of the type that goes with `like`: float32 beside bfloat16, else the same."""
    expected = wide(like.dtype)
    for argument, array in arrays.items():
        if array is not None and array.dtype != expected:
            raise DTypeError(f"{name}: `{argument}` expected {expected} beside {like.dtype}, got {array.dtype}")


def check_int32(name: str, **arrays: Array | None) -> None:
    """All given arrays must be int32."""
    for argument, array in arrays.items():
        if array is not None and array.dtype != "int32":
            raise DTypeError(f"{name}: `{argument}` expected int32, got {array.dtype}")


def elements_bytes(*arrays: Any) -> int:
    """Bytes of the given arrays or tensors, None counting nothing."""
    return sum(a.size * item_bytes(a.dtype) for a in arrays if a is not None)


def item_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return {"float32": 4, "float64": 8, "bfloat16": 2, "int32": 4, "int64": 8, "uint8": 1}[dtype]

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
from typing import Any, NamedTuple, NoReturn

from .. import _kernels as k
from ..autograd import Entry, Slot, state
from ..errors import ShapeError, UsageError
from ..kvrows import KVRows
from ..qtensor import QTensor
from ..registry import Registry
from ..tensors import Tensor, as_array, result

Array = k.Array

for _type in (QTensor, KVRows):  # ops look at them
    k.keep_type(_type)

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
        self._count = len(self.tensors)
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

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Compute, and put the op on the tape where a gradient is wanted. Takes the forward's arguments."""
        taping = state.enabled
        if options:
            if len(args) < self._count:
                args = self._completed(args, options)
            done = k.call_op(Tensor, None, args, self._count, self._required, taping)
        else:
            done = k.call_op(Tensor, self.forward, args, self._count, self._required, taping)
            if isinstance(done, Tensor):
                return done
            if done is not None:
                return self._taped(*done) if len(done) == 3 else done[0]
        arrays, slots, needs = done or self._unpacked(args)
        if taping and any(needs):
            out, saved = self.forward(*arrays, needs=needs, **options)
            return self._taped(out, saved, slots)
        out = self.forward(*arrays, **options)[0]
        return result(out) if isinstance(out, Array) else tuple(map(result, out))

    def _unpacked(self, args: tuple[Any, ...]) -> tuple[list[Any], list[Any], list[bool]]:
        """Arrays of all arguments; slots of the tensors, and which have one."""
        count = self._count
        arrays: list[Any] = []
        slots: list[Any] = []
        for value in args[:count] + (None,) * (count - len(args)):
            slot: Any = None
            if isinstance(value, Tensor):
                arrays.append(value.data)
                slot = value.slot
            elif value is None and len(arrays) >= self._required:
                arrays.append(None)
            else:
                array, slot = self._given(value, len(arrays))
                arrays.append(array)
            slots.append(slot)
        return arrays + list(args[count:]), slots, [slot is not None for slot in slots]

    def _completed(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
        """The tensor arguments in order: those given by name are taken out of `options`, the others are None."""
        return args + tuple(options.pop(name, None) for name in self.tensors[len(args) :])

    def _given(self, value: Any, index: int) -> tuple[Any, Any]:
        """Array and slot of an argument that is not a tensor: an array, numbers, or a list of tensors."""
        if value is None:
            raise TypeError(f"{self.name}: missing argument `{self.tensors[index]}`")
        if isinstance(value, (list, tuple)):
            slots = [each.slot if isinstance(each, Tensor) else None for each in value]
            return [as_array(each) for each in value], None if all(slot is None for slot in slots) else slots
        if isinstance(value, (QTensor, KVRows)):  # the op looks at it
            return value, None
        return as_array(value), None

    def _taped(self, out: Any, saved: Any, inputs: list[Any]) -> Any:
        """Tensors of what the forward returned, and the entry that will fill their slots and then the inputs'."""
        assert self.backward_fn is not None, f"{self.name} has no backward"
        if isinstance(out, Array):
            slot = Slot(out.shape, out.dtype)
            slot.entry = Entry(self.name, self.backward_fn, saved, inputs, ())
            return result(out, slot)
        slots = [Slot(each.shape, each.dtype) for each in out]
        Entry(self.name, self.backward_fn, saved, inputs, slots)
        return tuple(map(result, out, slots))


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
check_float = k.check_float  # check_float(name, x=x, ...): one floating-point type, None left out
check_wide = k.check_wide  # check_wide(name, like, x=x, ...): float32 beside bfloat16, else like's type
check_int32 = k.check_int32


def refuse(name: str, argument: str, expected: object, got: object) -> NoReturn:
    """Raise the ShapeError of an argument; behind an `if`, so that its texts cost nothing where all is well."""
    raise ShapeError(f"{name}: `{argument}` expected {expected}, got {got}")


def check(condition: bool, name: str, argument: str, expected: object, got: object) -> None:
    """Raise ShapeError unless `condition`."""
    if not condition:
        refuse(name, argument, expected, got)


def check_state(
    name: str, state: Array | None, like: Array, shape: tuple[int, ...], needs: Sequence[bool] | None
) -> None:
    """What a recurrence takes up and leaves behind: of one shape, wide, and beside no gradient."""
    if state is None:
        return
    check_wide(name, like, state=state)
    check(state.shape == shape, name, "state", shape, state.shape)
    if needs and any(needs):
        raise UsageError(f"{name}: `state` takes part in no gradient; leave it out, or compute within no_grad()")


def elements_bytes(*arrays: Any) -> int:
    """Bytes of the given arrays or tensors, None counting nothing."""
    kept = (QTensor, KVRows)
    return sum(a.nbytes if isinstance(a, kept) else a.size * item_bytes(a.dtype) for a in arrays if a is not None)


def item_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return {"float32": 4, "float64": 8, "bfloat16": 2, "int32": 4, "int64": 8, "uint8": 1}[dtype]

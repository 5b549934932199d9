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
from ..autograd import Entry, state
from ..errors import ShapeError
from ..registry import Registry
from ..tensor import Tensor, as_array, tracked, untracked

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
        given = inspect.signature(forward).parameters
        self._required = {name for name in self.tensors if given[name].default is inspect.Parameter.empty}
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
        """Compute, and put the op on the tape where a gradient is wanted. Takes the forward's arguments."""
        raise NotImplementedError("op() puts _caller()'s function here")

    def given(self, argument: str, value: Any) -> tuple[Any, Any]:
        """Array and slot of an argument that is not a tensor: None, an array, a list of tensors or numbers."""
        if value is None:
            if argument in self._required:
                raise TypeError(f"{self.name}: missing argument `{argument}`")
            return None, None
        if isinstance(value, (list, tuple)):
            slots = [each.slot if isinstance(each, Tensor) else None for each in value]
            return [as_array(each) for each in value], None if all(slot is None for slot in slots) else slots
        return as_array(value), None

    def taped(self, result: tuple[Any, Any], slots: list[Any]) -> Any:
        """Tensors with gradients from what the forward returned, and the entry that will fill them."""
        out, saved = result
        if self.backward_fn is None:
            return untracked(out)
        if isinstance(out, tuple):
            tensors = [tracked(each) for each in out]
            Entry(self.name, self.backward_fn, saved, slots, [tensor.slot for tensor in tensors if tensor.slot])
            return tuple(tensors)
        tensor = tracked(out)
        Entry(self.name, self.backward_fn, saved, slots, (tensor.slot,))
        return tensor


def _caller(forward: Callable[..., Any], tensors: Sequence[str]) -> Callable[..., Any]:
    """The `__call__` of one op, compiled for its own arguments: a generic one takes twice as long. That of `linear` is

    def linear(self, x, weight, bias=None, residual=None, act="none", wide_out=False):
        if isinstance(x, Tensor): x_slot = x.slot; x = x.data
        else: x, x_slot = self.given("x", x)
        ...
        if x_slot is None and weight_slot is None and ... or not state.enabled:
            return untracked(forward(x, weight, bias, residual, act, wide_out)[0])
        needs = [x_slot is not None, weight_slot is not None, ...]
        return self.taped(forward(x, weight, ..., needs=needs), [x_slot, weight_slot, ...])
    """
    parameters = [each for each in inspect.signature(forward).parameters.values() if each.name != "needs"]
    names = [each.name for each in parameters]
    space: dict[str, Any] = {"Tensor": Tensor, "state": state, "forward": forward, "untracked": untracked}
    space |= {f"_{each.name}": each.default for each in parameters if each.default is not each.empty}
    heads = [f"{name}=_{name}" if f"_{name}" in space else name for name in names]
    lines = [f"def {forward.__name__}(self, {', '.join(heads)}):"]
    for name in tensors:
        lines.append(f" if isinstance({name}, Tensor): {name}_slot = {name}.slot; {name} = {name}.data")
        lines.append(f" else: {name}, {name}_slot = self.given({name!r}, {name})")
    slots = [f"{name}_slot" for name in tensors]
    lines.append(f" if {' is None and '.join(slots)} is None or not state.enabled:")
    lines.append(f"  return untracked(forward({', '.join(names)})[0])")
    lines.append(f" needs = [{', '.join(f'{slot} is not None' for slot in slots)}]")
    lines.append(f" return self.taped(forward({', '.join(names)}, needs=needs), [{', '.join(slots)}])")
    exec("\n".join(lines), space)
    made: Callable[..., Any] = space[forward.__name__]
    return made


def op(*tensors: str) -> Callable[[Callable[..., Any]], Op]:
    """Make an op whose differentiable arguments are `tensors` and register it under the function's name.

    The forward is called with arrays and with `needs` (one bool for each tensor argument) when it is being taped.
    """

    def decorate(forward: Callable[..., Any]) -> Op:
        kind = type(forward.__name__, (Op,), {"__call__": _caller(forward, tensors)})  # calls look at the class alone
        made: Op = kind(forward, tensors)
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


def elements_bytes(*arrays: Any) -> int:
    """Bytes of the given arrays or tensors, None counting nothing."""
    return sum(a.size * item_bytes(a.dtype) for a in arrays if a is not None)


def item_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return {"float32": 4, "float64": 8, "bfloat16": 2, "int32": 4, "int64": 8, "uint8": 1}[dtype]

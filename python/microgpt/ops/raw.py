"""Array-level helpers that op backwards share: they launch kernels and never touch the tape."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _kernels as k
from ..autograd import Slot

Array = k.Array

UNARY = ("neg", "exp", "log", "sqrt", "rsqrt", "tanh", "erf", "sigmoid", "square", "reciprocal", "sin", "cos")
BINARY = ("add", "sub", "mul", "div", "max", "min", "less", "less_equal", "equal")
ACTS = ("none", "gelu", "gelu_tanh", "relu", "relu2", "silu")
UNARY_CODE = {name: code for code, name in enumerate(UNARY)}
BINARY_CODE = {name: code for code, name in enumerate(BINARY)}
ACT_CODE = {name: code for code, name in enumerate(ACTS)}


def unary(name: str, x: Array) -> Array:
    """y = f(x), element by element."""
    y = k.empty_like(x)
    k.unary(x, y, UNARY_CODE[name])
    return y


def cast(x: Array, dtype: str) -> Array:
    """x as float32 or bfloat16, whichever it is not."""
    y = k.empty(x.shape, dtype)
    k.cast(x, y)
    return y


def strides(shape: Sequence[int]) -> list[int]:
    """Row-major strides in elements."""
    result = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        result[axis] = result[axis + 1] * shape[axis + 1]
    return result


def binary(name: str, a: Array, b: Array) -> Array:
    """y = f(a, b) with broadcasting."""
    y = k.empty_like(a) if a.shape == b.shape else k.empty(k.broadcast_shape(name, a.shape, b.shape), a.dtype)
    k.binary(a, b, y, BINARY_CODE[name])
    return y


def reduce(x: Array, axis: int, op: str = "sum") -> Array:
    """Sum or max over one axis, which disappears."""
    shape = x.shape
    outer = inner = 1
    for size in shape[:axis]:
        outer *= size
    for size in shape[axis + 1 :]:
        inner *= size
    y = k.empty(shape[:axis] + shape[axis + 1 :], x.dtype)
    k.reduce(x, y, outer, shape[axis], inner, 0 if op == "sum" else 1)
    return y


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum a broadcast gradient back to the shape it was broadcast from."""
    while x.ndim > len(shape):
        x = reduce(x, 0)
    for axis, size in enumerate(shape):
        if size == 1 and x.shape[axis] != 1:
            summed = reduce(x, axis)
            x = summed.view((*summed.shape[:axis], 1, *summed.shape[axis:]))
    return x


def copied(x: Array) -> Array:
    """A copy."""
    y = k.empty_like(x)
    k.axpy(x, y)
    return y


def strided(x: Array, shape: Sequence[int], stride: Sequence[int], offset: int = 0) -> Array:
    """A contiguous copy of a strided walk over x."""
    y = k.empty(tuple(shape), x.dtype)
    k.copy(x, y, shape, stride, offset)
    return y


def give(slot: Slot | None, gradient: Array, owned: bool) -> None:
    """Give a gradient to a slot, summing broadcast axes; `owned`: nobody else holds the array."""
    if slot is None:
        return
    if gradient.shape != slot.shape:
        summed = sum_to(gradient, slot.shape)
        owned = owned or summed is not gradient
        gradient = summed
    if owned:
        slot.take(gradient)
    else:
        slot.add(gradient)

"""Tensor: an array of the C++ core with a gradient slot and operators.

Arithmetic, slicing and reductions are the plain ops of :mod:`microgpt.ops`; there is no implicit change of dtype.
"""

from __future__ import annotations

import copyreg
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _kernels as k
from .autograd import Slot, run_backward
from .errors import DTypeError, ShapeError, UsageError

Array = k.Array
Scalar: TypeAlias = int | float
# Arrays, and so tensors and models, can be deep-copied and sent to other processes.
copyreg.pickle(Array, lambda array: (k.from_numpy, (array.numpy(),)))


def wide(dtype: str) -> str:
    """The type of what is summed up beside elements of `dtype`: float32 for bfloat16, else the same."""
    return "float32" if dtype == "bfloat16" else dtype


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """NumPy's type of a name; bfloat16 is ml_dtypes'."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


class Tensor:
    """Numbers of shape `shape`, and optionally the gradient of a loss with respect to them.

    `data` is an Array, a NumPy array (copied; float64, float32, ml_dtypes' bfloat16 and integer types are kept) or a
    list of numbers (float32). The gradient of a bfloat16 tensor that is not an op's result is float32: it is summed up.
    Raises DTypeError for types that the kernels do not have.
    """

    __slots__ = ("__weakref__", "data", "requires_grad", "slot")
    __array_ufunc__ = None  # NumPy's arrays leave arithmetic with a Tensor to the Tensor

    def __init__(self, data: Array | npt.NDArray[Any] | Sequence[Any] | Scalar, *, requires_grad: bool = False) -> None:
        self.data = data if isinstance(data, Array) else as_array(data)
        self.requires_grad = requires_grad
        self.slot: Slot | None = Slot(self.data.shape, wide(self.data.dtype)) if requires_grad else None
        if requires_grad and self.data.dtype not in ("float32", "float64", "bfloat16"):
            raise DTypeError(f"only floating-point tensors can require gradients, got {self.data.dtype}")

    # -- what it is ----------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.data.shape

    @property
    def dtype(self) -> str:
        """NumPy's name of the element type."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size

    def numpy(self) -> npt.NDArray[Any]:
        """A NumPy view of the same memory. Raises RecordingError while a program is being recorded."""
        return self.data.numpy()

    def item(self) -> float:
        """The value of a one-element tensor."""
        if self.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}")
        return self.data.item()

    @property
    def grad(self) -> npt.NDArray[Any] | None:
        """The gradient as a NumPy view, or None before any backward reached this tensor."""
        if self.slot is None or self.slot.array is None or not self.slot.filled:
            return None
        return self.slot.array.numpy().reshape(self.shape)

    def zero_grad(self) -> None:
        """Forget the gradient; the next backward overwrites it."""
        if self.slot is not None:
            self.slot.filled = False

    def detach(self) -> Tensor:
        """The same memory, cut off from the tape."""
        return Tensor(self.data)

    def backward(self, gradient: npt.NDArray[Any] | None = None) -> None:
        """Fill the gradients of every tensor that this one was computed from.

        `gradient` has this tensor's shape; it may be left out for one element (1.0).
        Raises UsageError without a tape, ShapeError for a gradient that does not fit.
        """
        if self.slot is None:
            raise UsageError("backward: this tensor does not require gradients (made under no_grad, or from constants)")
        if gradient is None:
            if self.size != 1:
                raise ShapeError(f"backward: pass a gradient of shape {self.shape}; only a single number has a default")
            seed = k.empty(self.shape, self.dtype)
            k.fill(seed, 1.0)
        else:
            seed = k.from_numpy(np.asarray(gradient))
            if seed.shape != self.shape or seed.dtype != self.dtype:
                raise ShapeError(f"backward: expected {self.dtype}{self.shape}, got {seed.dtype}{seed.shape}")
        run_backward(self.slot, seed)

    def backward_from(self, gradient: Array) -> None:
        """backward() with a gradient array that is handed over; the form to use while recording."""
        if self.slot is None:
            raise UsageError("backward: this tensor does not require gradients (made under no_grad, or from constants)")
        run_backward(self.slot, gradient)

    def __repr__(self) -> str:
        tail = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.shape}, {self.dtype}{tail})"

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len: a tensor without axes has no length")
        return self.shape[0]

    # -- arithmetic ----------------------------------------------------------------------------------------------
    def __add__(self, other: Tensor | Scalar) -> Tensor:
        return _ops().add(self, _like(other, self))

    __radd__ = __add__

    def __mul__(self, other: Tensor | Scalar) -> Tensor:
        return _ops().mul(self, _like(other, self))

    __rmul__ = __mul__

    def __sub__(self, other: Tensor | Scalar) -> Tensor:
        return _ops().sub(self, _like(other, self))

    def __rsub__(self, other: Scalar) -> Tensor:
        return _ops().sub(_like(other, self), self)

    def __truediv__(self, other: Tensor | Scalar) -> Tensor:
        return _ops().div(self, _like(other, self))

    def __rtruediv__(self, other: Scalar) -> Tensor:
        return _ops().div(_like(other, self), self)

    def __neg__(self) -> Tensor:
        return _ops().neg(self)

    def __matmul__(self, other: Tensor) -> Tensor:
        return _ops().matmul(self, other)

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> Tensor:
        return _ops().slice(self, index)

    # -- shape and reductions --------------------------------------------------------------------------------------
    def reshape(self, *shape: int) -> Tensor:
        """The same elements with another shape; one size may be -1."""
        return _ops().reshape(self, shape)

    def permute(self, *axes: int) -> Tensor:
        """Axes in another order (copied)."""
        return _ops().permute(self, axes)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Sum over one axis, or over all."""
        return _ops().sum(self, axis, keepdims)

    def mean(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Mean over one axis, or over all."""
        return _ops().mean(self, axis, keepdims)

    def max(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Largest element over one axis, or over all."""
        return _ops().max(self, axis, keepdims)

    def exp(self) -> Tensor:
        """Element-wise e^x."""
        return _ops().exp(self)

    def log(self) -> Tensor:
        """Element-wise natural logarithm."""
        return _ops().log(self)

    def tanh(self) -> Tensor:
        """Element-wise hyperbolic tangent."""
        return _ops().tanh(self)

    def sqrt(self) -> Tensor:
        """Element-wise square root."""
        return _ops().sqrt(self)


class Room:
    """Arrays of one type that are read together, as pieces of large blocks: these have huge pages, from which memory is
    read up to twice as fast. Not for what is let go piece by piece: a block lives as long as one of its pieces."""

    LEAST, MOST, BLOCK = (
        1 << 16,
        1 << 22,
        1 << 25,
    )  # bytes: smaller ones do not matter, larger ones have huge pages anyway

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._item = numpy_dtype(dtype).itemsize
        self._block: Array | None = None
        self._used = 0

    def take(self, shape: Sequence[int]) -> Array:
        """An array with undefined contents, 64-byte aligned."""
        count = math.prod(shape)
        if not self.LEAST <= count * self._item < self.MOST:
            return k.empty(tuple(shape), self.dtype)
        if self._block is None or self._used + count > self._block.size:
            self._block, self._used = k.empty((self.BLOCK // self._item,), self.dtype), 0
        start = self._used
        self._used += -(-count * self._item // 64) * 64 // self._item
        return self._block.view(tuple(shape), start)


_new = object.__new__


def result(array: Array, slot: Slot | None = None) -> Tensor:
    """The tensor of an op's result, with a slot where it is on the tape: Tensor(array) without its checks."""
    tensor: Tensor = _new(Tensor)
    tensor.data, tensor.requires_grad, tensor.slot = array, slot is not None, slot
    return tensor


def as_array(value: Any) -> Array:
    """An Array holding a copy of a NumPy array or of numbers; lists of floats become float32, of ints int64."""
    if isinstance(value, Array):
        return value
    if isinstance(value, Tensor):
        return value.data
    if isinstance(value, np.ndarray):
        return k.from_numpy(value)
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return k.from_numpy(array)


def tensor(data: Any, *, requires_grad: bool = False) -> Tensor:
    """A new tensor from numbers; see :class:`Tensor`."""
    return Tensor(data, requires_grad=requires_grad)


def full(shape: Sequence[int], value: float, dtype: str = "float32") -> Tensor:
    """A tensor filled with one value."""
    array = k.empty(shape, dtype)
    k.fill(array, value)
    return Tensor(array)


def zeros(shape: Sequence[int], dtype: str = "float32") -> Tensor:
    """A tensor of zeros."""
    return full(shape, 0.0, dtype)


def _like(other: Tensor | Scalar, tensor: Tensor) -> Tensor:
    if isinstance(other, Tensor):
        return other
    if not isinstance(other, (int, float, np.number)):
        raise DTypeError(f"arithmetic: expected a Tensor or a number beside a Tensor, got {type(other).__name__}")
    return full((), float(other), tensor.dtype)


_module: Any = None


def _ops() -> Any:
    global _module
    if _module is None:
        from . import ops  # the operators are ops; ops need Tensor, so the link is made at the first use

        _module = ops
    return _module

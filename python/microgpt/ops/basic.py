"""Plain ops: arithmetic with broadcasting, reductions, shapes, batched matmul. Composed twins are made of these."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import _kernels as k
from ..errors import DTypeError, ShapeError
from . import raw
from .op import Cost, Op, check_float, elements_bytes, item_bytes, op, refuse

Array = k.Array
Needs = list[bool] | None


# -- element type ---------------------------------------------------------------------------------------------------
@op("x")
def cast(x: Array, dtype: str, needs: Needs = None) -> Any:
    """x as `dtype`, float32 or bfloat16 (rounded to nearest even); its gradient is converted back.

    float64, which is for checks, stays as it is. Raises DTypeError for other types.
    """
    check_float("cast", x=x)
    if dtype not in ("float32", "bfloat16"):
        raise DTypeError(f"cast: `dtype` expected float32 or bfloat16, got {dtype}")
    return (x if x.dtype in (dtype, "float64") else raw.cast(x, dtype)), x.dtype


@cast.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    dx.take(dy if dy.dtype == saved or dx.dtype != saved else raw.cast(dy, saved))


@cast.cost
def _(x: Any, dtype: str) -> Cost:
    return Cost(0, x.size * (item_bytes(x.dtype) + item_bytes(dtype)))


# -- element-wise of two ---------------------------------------------------------------------------------------------
@op("a", "b")
def add(a: Array, b: Array, needs: Needs = None) -> Any:
    """a + b with NumPy broadcasting."""
    check_float("add", a=a, b=b)
    return raw.binary("add", a, b), None


@add.backward
def _(saved: Any, dy: Array, da: Any, db: Any) -> None:
    # One of the two may keep dy itself; the other gets a copy.
    raw.give(db, dy, owned=da is None)
    raw.give(da, dy, owned=True)


@op("a", "b")
def sub(a: Array, b: Array, needs: Needs = None) -> Any:
    """a - b with NumPy broadcasting."""
    check_float("sub", a=a, b=b)
    return raw.binary("sub", a, b), None


@sub.backward
def _(saved: Any, dy: Array, da: Any, db: Any) -> None:
    if db is not None:
        raw.give(db, raw.unary("neg", dy), owned=True)
    raw.give(da, dy, owned=True)


@op("a", "b")
def mul(a: Array, b: Array, needs: Needs = None) -> Any:
    """a * b with NumPy broadcasting."""
    check_float("mul", a=a, b=b)
    return raw.binary("mul", a, b), (a, b)


@mul.backward
def _(saved: Any, dy: Array, da: Any, db: Any) -> None:
    a, b = saved
    if da is not None:
        raw.give(da, raw.binary("mul", dy, b), owned=True)
    if db is not None:
        raw.give(db, raw.binary("mul", dy, a), owned=True)


@op("a", "b")
def div(a: Array, b: Array, needs: Needs = None) -> Any:
    """a / b with NumPy broadcasting."""
    check_float("div", a=a, b=b)
    y = raw.binary("div", a, b)
    return y, (b, y)


@div.backward
def _(saved: Any, dy: Array, da: Any, db: Any) -> None:
    b, y = saved
    quotient = raw.binary("div", dy, b)
    if db is not None:
        raw.give(db, raw.unary("neg", raw.binary("mul", quotient, y)), owned=True)
    raw.give(da, quotient, owned=True)


@op("a", "b")
def maximum(a: Array, b: Array, needs: Needs = None) -> Any:
    """The larger of a and b, with broadcasting; where they are equal a gets the gradient."""
    check_float("maximum", a=a, b=b)
    return raw.binary("max", a, b), (a, b)


@maximum.backward
def _(saved: Any, dy: Array, da: Any, db: Any) -> None:
    a, b = saved
    if da is not None:
        raw.give(da, raw.binary("mul", dy, raw.binary("less_equal", b, a)), owned=True)
    if db is not None:
        raw.give(db, raw.binary("mul", dy, raw.binary("less", a, b)), owned=True)


@op("a", "b")
def minimum(a: Array, b: Array, needs: Needs = None) -> Any:
    """The smaller of a and b, with broadcasting; where they are equal a gets the gradient."""
    check_float("minimum", a=a, b=b)
    return raw.binary("min", a, b), (a, b)


@minimum.backward
def _(saved: Any, dy: Array, da: Any, db: Any) -> None:
    a, b = saved
    if da is not None:
        raw.give(da, raw.binary("mul", dy, raw.binary("less_equal", a, b)), owned=True)
    if db is not None:
        raw.give(db, raw.binary("mul", dy, raw.binary("less", b, a)), owned=True)


# -- element-wise of one: name -> derivative from (x, y) as arrays -----------------------------------------------------
def _one(x: Array, value: float) -> Array:
    ones = k.empty((), x.dtype)
    k.fill(ones, value)
    return ones


_DERIVATIVES: dict[str, Callable[[Array, Array], Array]] = {
    "neg": lambda x, y: _one(x, -1.0),
    "exp": lambda x, y: y,
    "log": lambda x, y: raw.unary("reciprocal", x),
    "sqrt": lambda x, y: raw.binary("div", _one(x, 0.5), y),
    "rsqrt": lambda x, y: raw.binary("mul", _one(x, -0.5), raw.binary("div", y, x)),
    "tanh": lambda x, y: raw.binary("sub", _one(x, 1.0), raw.unary("square", y)),
    "erf": lambda x, y: raw.binary(
        "mul", _one(x, 2.0 / 3.141592653589793**0.5), raw.unary("exp", raw.unary("neg", raw.unary("square", x)))
    ),
    "sigmoid": lambda x, y: raw.binary("mul", y, raw.binary("sub", _one(x, 1.0), y)),
    "square": lambda x, y: raw.binary("mul", _one(x, 2.0), x),
    "reciprocal": lambda x, y: raw.unary("neg", raw.unary("square", y)),
    "sin": lambda x, y: raw.unary("cos", x),
    "cos": lambda x, y: raw.unary("neg", raw.unary("sin", x)),
}


def _make_unary(name: str) -> Op:
    def forward(x: Array, needs: Needs = None) -> Any:
        check_float(name, x=x)
        y = raw.unary(name, x)
        return y, (x, y)

    forward.__name__ = forward.__qualname__ = name
    forward.__doc__ = f"Element-wise {name}."
    made = op("x")(forward)

    def backward(saved: Any, dy: Array, dx: Any) -> None:
        raw.give(dx, raw.binary("mul", dy, _DERIVATIVES[name](*saved)), owned=True)

    made.backward(backward)
    made.cost(lambda x: Cost(x.size, 2 * elements_bytes(x)))
    return made


neg, exp, log, sqrt, rsqrt, tanh, erf, sigmoid, square, reciprocal, sin, cos = (_make_unary(name) for name in raw.UNARY)

for _op in (add, sub, mul, div, maximum, minimum):

    @_op.cost
    def _(a: Any, b: Any) -> Cost:
        n = math.prod(k.broadcast_shape("cost", a.shape, b.shape))
        return Cost(n, elements_bytes(a, b) + n * item_bytes(a.dtype))


# -- reductions --------------------------------------------------------------------------------------------------------
def _axis(name: str, x: Array, axis: int) -> int:
    if not isinstance(axis, (int, np.integer)) or isinstance(axis, bool):
        refuse(name, "axis", "a whole number", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"{name}: `axis` expected one of the {x.ndim} axes of {x.shape}, got {axis}")
    return int(axis) % x.ndim


def _kept(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return tuple(1 if axis is None or i == axis else size for i, size in enumerate(shape))


def _broadcast_back(dy: Array, shape: tuple[int, ...]) -> Array:
    ones = k.empty(shape, dy.dtype)
    k.fill(ones, 1.0)
    return raw.binary("mul", dy, ones)


@op("x")
def sum(x: Array, axis: int | None = None, keepdims: bool = False, needs: Needs = None) -> Any:
    """Sum over `axis`, or over everything."""
    check_float("sum", x=x)
    axis = None if axis is None else _axis("sum", x, axis)
    y = raw.reduce(x.view((x.size,)), 0) if axis is None else raw.reduce(x, axis)
    return (y.view(_kept(x.shape, axis)) if keepdims else y), (x.shape, axis)


@sum.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    shape, axis = saved
    dx.take(_broadcast_back(dy.view(_kept(shape, axis)), shape))


@op("x")
def mean(x: Array, axis: int | None = None, keepdims: bool = False, needs: Needs = None) -> Any:
    """Mean over `axis`, or over everything."""
    check_float("mean", x=x)
    axis = None if axis is None else _axis("mean", x, axis)
    count = x.size if axis is None else x.shape[axis]
    if count < 1:
        refuse("mean", "x", "at least one element", x.shape)
    y = raw.reduce(x.view((x.size,)), 0) if axis is None else raw.reduce(x, axis)
    k.axpy(y, y, 1.0 / count)
    return (y.view(_kept(x.shape, axis)) if keepdims else y), (x.shape, axis, count)


@mean.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    shape, axis, count = saved
    full = _broadcast_back(dy.view(_kept(shape, axis)), shape)
    k.axpy(full, full, 1.0 / count)
    dx.take(full)


@op("x")
def max(x: Array, axis: int | None = None, keepdims: bool = False, needs: Needs = None) -> Any:
    """Largest element over `axis`, or over everything; ties share the gradient equally."""
    check_float("max", x=x)
    axis = None if axis is None else _axis("max", x, axis)
    count = x.size if axis is None else x.shape[axis]
    if count < 1:
        refuse("max", "x", "at least one element", x.shape)
    y = raw.reduce(x.view((x.size,)), 0, "max") if axis is None else raw.reduce(x, axis, "max")
    return (y.view(_kept(x.shape, axis)) if keepdims else y), (x, y, axis)


@max.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    x, y, axis = saved
    kept = _kept(x.shape, axis)
    hit = raw.binary("equal", x, y.view(kept))
    ties = raw.reduce(hit.view((hit.size,)), 0) if axis is None else raw.reduce(hit, axis)
    dx.take(raw.binary("mul", hit, raw.binary("div", dy.view(kept), ties.view(kept))))


for _op in (sum, mean, max):

    @_op.cost
    def _(x: Any, axis: int | None = None, keepdims: bool = False) -> Cost:
        return Cost(x.size, elements_bytes(x))


# -- shapes ------------------------------------------------------------------------------------------------------------
@op("x")
def reshape(x: Array, shape: Sequence[int], needs: Needs = None) -> Any:
    """The same elements seen with another shape (no copy); one size may be -1."""
    sizes = tuple(shape)
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        if known < 1 or x.size % known:
            refuse("reshape", "shape", f"sizes that divide {x.size}", sizes)
        at = sizes.index(-1)
        sizes = (*sizes[:at], x.size // known, *sizes[at + 1 :])
    if math.prod(sizes) != x.size or builtins.min(sizes, default=0) < 0:
        refuse("reshape", "shape", f"{x.size} elements", tuple(shape))
    return x.view(sizes), x.shape


@reshape.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    dx.take(dy.view(saved))


@op("x")
def permute(x: Array, axes: Sequence[int], needs: Needs = None) -> Any:
    """Axes in the order `axes`, copied into a contiguous array."""
    if sorted(axes) != list(range(x.ndim)):
        refuse("permute", "axes", f"an order of {list(range(x.ndim))}", list(axes))
    own = raw.strides(x.shape)
    return raw.strided(x, [x.shape[a] for a in axes], [own[a] for a in axes]), list(axes)


@permute.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    back = [saved.index(i) for i in range(len(saved))]
    own = raw.strides(dy.shape)
    dx.take(raw.strided(dy, [dy.shape[a] for a in back], [own[a] for a in back]))


@op("x")
def slice(x: Array, index: Any, needs: Needs = None) -> Any:
    """Basic indexing with integers, step-1 slices and one `...`, copied."""
    parts = index if isinstance(index, tuple) else (index,)
    if (dots := [i for i, part in enumerate(parts) if part is ...]) and len(dots) == 1:
        parts = (*parts[: dots[0]], *[builtins.slice(None)] * (x.ndim + 1 - len(parts)), *parts[dots[0] + 1 :])
    if len(parts) > x.ndim:
        refuse("slice", "index", f"at most {x.ndim} axes", len(parts))
    own = raw.strides(x.shape)
    offset, shape, stride = 0, [], []
    for axis in range(x.ndim):
        size = x.shape[axis]
        part: Any = parts[axis] if axis < len(parts) else builtins.slice(None)
        if isinstance(part, (int, np.integer)) and not isinstance(part, bool):
            if not -size <= part < size:
                raise ShapeError(f"slice: `index` expected -{size}..{size - 1} on axis {axis}, got {part}")
            offset += int(part % size) * own[axis]
            continue
        try:
            start, stop, step = part.indices(size)
        except (AttributeError, TypeError):
            refuse("slice", "index", f"whole numbers, slices of them or one ... on axis {axis}", repr(part))
        if step != 1:
            refuse("slice", "index", "step 1", step)
        offset += start * own[axis]
        shape.append(builtins.max(0, stop - start))
        stride.append(own[axis])
    return raw.strided(x, shape, stride, offset if 0 not in shape else 0), (x.shape, shape, stride, offset)


@slice.backward
def _(saved: Any, dy: Array, dx: Any) -> None:
    _, shape, stride, offset = saved
    array, accumulate = dx.target(dy.dtype)
    if not accumulate:
        k.fill(array, 0.0)
    if dy.size:
        k.copy(array, dy, shape, stride, offset, to_x=True, accumulate=True)
    dx.settle(array)


@op("parts")
def concat(parts: list[Array], axis: int = 0, needs: Needs = None) -> Any:
    """Join along `axis`; the other sizes must agree."""
    if not parts:
        refuse("concat", "parts", "at least one tensor", 0)
    check_float("concat", **{f"parts[{i}]": part for i, part in enumerate(parts)})
    first = parts[0]
    axis = _axis("concat", first, axis)
    for i, part in enumerate(parts):
        same = part.ndim == first.ndim and all(
            a == b for j, (a, b) in enumerate(zip(part.shape, first.shape, strict=True)) if j != axis
        )
        if not same:
            refuse("concat", f"parts[{i}]", f"{first.shape} apart from axis {axis}", part.shape)
    total = builtins.sum(part.shape[axis] for part in parts)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    y = k.empty(shape, first.dtype)
    own, offset, places = raw.strides(shape), 0, []
    for part in parts:
        if part.size:
            k.copy(y, part, list(part.shape), own, offset, to_x=True)
        places.append((part.shape, offset))
        offset += part.shape[axis] * own[axis]
    return y, (own, places)


@concat.backward
def _(saved: Any, dy: Array, dparts: Any) -> None:
    own, places = saved
    for slot, (shape, offset) in zip(dparts, places, strict=True):
        if slot is not None:
            slot.take(raw.strided(dy, shape, own, offset if 0 not in shape else 0))


for _op in (permute, slice):

    @_op.cost
    def _(x: Any, *_args: Any) -> Cost:
        return Cost(0, 2 * elements_bytes(x))


@reshape.cost
def _(x: Any, shape: Any) -> Cost:
    return Cost(0, 0)


@concat.cost
def _(parts: Any, axis: int = 0) -> Cost:
    return Cost(0, 2 * elements_bytes(*parts))


# -- products ----------------------------------------------------------------------------------------------------------
def _matmul_sizes(a: Array, b: Array) -> tuple[int, int, int, int, bool]:
    check_float("matmul", a=a, b=b)
    if a.ndim < 2:
        refuse("matmul", "a", "at least two axes", a.shape)
    if b.ndim < 2:
        refuse("matmul", "b", "at least two axes", b.shape)
    *leading, m, inner = a.shape
    if b.shape[-2] != inner:
        refuse("matmul", "b", f"{inner} rows like the columns of `a`", b.shape)
    shared = b.ndim == 2
    if not shared and a.shape[:-2] != b.shape[:-2]:
        refuse("matmul", "b", f"leading axes {a.shape[:-2]} or none", b.shape)
    return math.prod(leading), m, b.shape[-1], inner, shared


@op("a", "b")
def matmul(a: Array, b: Array, needs: Needs = None) -> Any:
    """a (..., M, K) times b (..., K, N) or (K, N)."""
    batch, m, n, inner, shared = _matmul_sizes(a, b)
    y = k.empty((*a.shape[:-2], m, n), a.dtype)
    if shared:
        k.gemm(a, b, y, batch * m, n, inner)
    else:
        k.gemm(a, b, y, m, n, inner, batch=batch, stride_a=m * inner, stride_b=inner * n, stride_c=m * n)
    return y, (a, b)


@matmul.backward
def _(saved: Any, dy: Array, da: Any, db: Any) -> None:
    a, b = saved
    batch, m, n, inner, shared = _matmul_sizes(a, b)
    if shared:
        m, batch = batch * m, 1
    if da is not None:
        array, add_to = da.target()
        k.gemm(dy, b, array, m, inner, n, trans_b=True, accumulate=add_to, batch=batch,
               stride_a=m * n, stride_b=inner * n, stride_c=m * inner)  # fmt: skip
    if db is not None:
        array, add_to = db.target()
        k.gemm(a, dy, array, inner, n, m, trans_a=True, accumulate=add_to, batch=batch,
               stride_a=m * inner, stride_b=m * n, stride_c=inner * n)  # fmt: skip


@matmul.cost
def _(a: Any, b: Any) -> Cost:
    batch, m, n, inner, _ = _matmul_sizes(a, b)
    width = item_bytes(a.dtype)
    return Cost(2 * batch * m * n * inner, elements_bytes(a, b) + batch * m * n * width)

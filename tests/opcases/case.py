"""What an op case is, and how one is run: forward, gradients, on any element type."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from microgpt import _kernels as k
from microgpt.ops import OPS
from microgpt.tensors import Tensor, numpy_dtype, wide

from .bounds import U32, UNDERFLOW

Numbers = npt.NDArray[Any]
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One call of an op. `make` gives its arguments by name: float64 arrays are rounded to `stored` (so that both types
    see the same numbers) and cast to the type under test, integer arrays stay. `small`: central differences are
    affordable. `shares`: the work is cut into several shares, so threads can get it wrong.
    """

    op: str
    label: str
    make: Callable[[np.random.Generator], Inputs]
    options: Mapping[str, Any] = field(default_factory=dict)
    small: bool = False
    shares: bool = False
    stored: str = "float32"

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"

    def inputs(self) -> Inputs:
        """The arguments, the same in every run."""
        made = self.make(np.random.default_rng(zlib.crc32(str(self).encode())))
        return {
            name: [self._round(v) for v in value] if isinstance(value, list) else self._round(value)
            for name, value in made.items()
        }

    def gradient(self, shape: tuple[int, ...]) -> Numbers:
        """dy for an output of this shape."""
        return self._round(np.random.default_rng(len(str(self))).standard_normal(shape))

    def _round(self, value: Any) -> Any:
        array = np.asarray(value)
        if array.dtype != np.float64:
            return array
        # By way of float32, as values reach bfloat16 everywhere.
        return array.astype(np.float32).astype(numpy_dtype(self.stored)).astype(np.float64)


@dataclass(frozen=True)
class ErrorCase:
    """A call that must be refused: `call()` raises `error` with a message that matches `pattern`."""

    op: str
    label: str
    call: Callable[[], Any]
    error: type[Exception]
    pattern: str

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"


@dataclass(frozen=True)
class Rule:
    """Bounds of an op: forward(inputs, options, y, u) -> array; gradients(inputs, options, y, dy, u) -> name -> array.

    Everything is float64. `reference` is the op in NumPy, for plain ops, which have no composed twin.
    """

    forward: Callable[..., Numbers]
    gradients: Callable[..., dict[str, Numbers]]
    reference: Callable[..., Numbers] | None = None


def _cast(value: Numbers, dtype: str) -> k.Array:
    return k.from_numpy(value.astype(numpy_dtype(dtype)) if value.dtype == np.float64 else value)


def place(
    case: Case, inputs: Inputs, dtype: str, wanted: set[str] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments on the device, and the differentiable ones by name (`parts[0]` for lists). `wanted` restricts them."""
    placed: dict[str, Any] = {}
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: Numbers) -> Tensor:
        needs = value.dtype == np.float64 and (wanted is None or name in wanted)
        tensor = Tensor(_cast(value, dtype), requires_grad=needs)
        if needs:
            leaves[name] = tensor
        return tensor

    for name, value in inputs.items():
        if name not in OPS.get(case.op).tensors:
            placed[name] = _cast(value, wide(dtype))  # tables, slopes
        elif isinstance(value, list):
            placed[name] = [leaf(f"{name}[{i}]", each) for i, each in enumerate(value)]
        else:
            placed[name] = leaf(name, value)
    return placed, leaves


def run(
    case: Case,
    inputs: Inputs,
    dtype: str,
    *,
    composed: bool = False,
    gradients: bool = True,
    wanted: set[str] | None = None,
) -> tuple[Numbers, dict[str, Numbers]]:
    """The output and every gradient, as NumPy arrays of `dtype` (gradients of bfloat16 are float32)."""
    op = OPS.get(case.op)
    placed, leaves = place(case, inputs, dtype, wanted)
    function = op.composed_fn if composed else op
    assert function is not None
    y = function(**placed, **case.options)
    if not gradients or y.slot is None:
        return y.numpy(), {}
    y.backward(case.gradient(y.shape).astype(numpy_dtype(y.dtype)))
    return y.numpy(), {name: np.zeros(t.shape, wide(dtype)) if t.grad is None else t.grad for name, t in leaves.items()}


def flat(inputs: Inputs) -> dict[str, Numbers]:
    """Inputs by name with the members of lists as `parts[0]`, ...; float64 ones only."""
    named: dict[str, Numbers] = {}
    for name, value in inputs.items():
        many = {f"{name}[{i}]": each for i, each in enumerate(value)} if isinstance(value, list) else {name: value}
        named.update({key: each for key, each in many.items() if each.dtype == np.float64})
    return named


def assert_close(what: str, got: Numbers, want: Numbers, bound: Numbers | float) -> None:
    """|got - want| <= bound everywhere; says where it is exceeded most."""
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if got.size == 0:
        return
    limit = np.broadcast_to(np.asarray(bound, np.float64) + UNDERFLOW, want.shape)
    assert np.all(np.isfinite(limit)), f"{what}: the bound is not finite"
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    excess = np.where(np.isnan(error), np.inf, error / limit)
    worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
    assert excess[worst] <= 1.0, (
        f"{what}: worst element {tuple(int(i) for i in worst)} of {want.shape}: got {got[worst]!r}, "
        f"expected {want[worst]!r}, |difference| {error[worst]:.3g} = {error[worst] / U32:.3g} x 2^-24, "
        f"bound {limit[worst]:.3g}"
    )


def int32(*values: int) -> Numbers:
    """An int32 array."""
    return np.array(values, np.int32)


def array(shape: tuple[int, ...], dtype: str = "float32") -> k.Array:
    """A kernel array for error inputs; zeros."""
    return k.from_numpy(np.zeros(shape, dtype))


def int32_array(*values: int) -> k.Array:
    """An int32 kernel array."""
    return k.from_numpy(int32(*values))

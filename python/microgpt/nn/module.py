"""Module: a tree of parameters, walked by name. No magic: attributes that are parameters, modules or lists of them."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..errors import ConfigError
from ..filters import Filter, matches
from ..tensors import Room, Tensor, numpy_dtype, wide

M = TypeVar("M", bound="Module")


_filling = True  # whether new parameters are filled
_room: Room | None = None  # where their memory is


@contextlib.contextmanager
def unfilled(room: Room | None = None) -> Iterator[None]:
    """Inside, new parameters hold anything: their memory is not touched before a file's values are written.

    Those of the type of `room` lie in it.
    """
    global _filling, _room
    before = _filling, _room
    _filling, _room = False, room
    try:
        yield
    finally:
        _filling, _room = before


class Parameter(Tensor):
    """A tensor that training changes. `std` is the spread of its normal initial values; instead, `fill` is a constant,
    or `values` are all of them.

    The gradient of a bfloat16 parameter is float32.
    """

    __slots__ = ("fill", "std", "values")

    def __init__(
        self, shape: tuple[int, ...], dtype: str = "float32", *, std: float | None = None, fill: float = 0.0,
        values: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        inside = _room is not None and _room.dtype == dtype
        super().__init__(_room.take(shape) if inside else k.empty(shape, dtype), requires_grad=True)  # type: ignore[union-attr]
        self.std = std
        self.fill = fill
        self.values = values
        if _filling:
            self.set_constant()

    def set_constant(self) -> None:
        """Write the initial values that are not drawn."""
        if self.values is None:
            k.fill(self.data, self.fill)
        else:
            self.data.copy_from(np.array(self.values).reshape(self.shape).astype(numpy_dtype(self.dtype)))

    def freeze(self) -> None:
        """Take no gradient any more."""
        self.requires_grad, self.slot = False, None


class Module:
    """Base of layers and models."""

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct sub-modules; list members are called by their index."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, each in enumerate(value):
                    if isinstance(each, Module):
                        yield f"{name}.{i}", each

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (called `prefix`) and all below it, in order."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, under the first name that reaches it (shared ones are not repeated)."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def parameters(self) -> list[Parameter]:
        """Every parameter once."""
        return [p for _, p in self.named_parameters()]

    def num_parameters(self) -> int:
        """Number of numbers in all parameters, shared ones counted once."""
        return sum(p.size for p in self.parameters())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> NumPy view of each parameter."""
        return {name: p.numpy() for name, p in self.named_parameters()}

    def load_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Copy values into the parameters. Raises ConfigError listing all missing, extra and mis-shaped names."""
        own = dict(self.named_parameters())
        missing = sorted(own.keys() - arrays.keys())
        extra = sorted(arrays.keys() - own.keys())
        wrong = [
            f"{name} expected {own[name].shape}, got {tuple(arrays[name].shape)}"
            for name in own
            if name in arrays and tuple(arrays[name].shape) != own[name].shape
        ]
        if missing or extra or wrong:
            parts = [f"missing {missing}"] * bool(missing) + [f"unexpected {extra}"] * bool(extra)
            parts += [f"wrong shapes: {'; '.join(wrong)}"] * bool(wrong)
            raise ConfigError("weights do not fit the model: " + "; ".join(parts))
        for name, parameter in own.items():
            value = np.ascontiguousarray(arrays[name], dtype=numpy_dtype(parameter.dtype))
            parameter.data.copy_from(value)

    def initialize(self, seed: int) -> None:
        """Draw initial values: each parameter from its own stream, keyed by the seed and its name.

        Values of bfloat16 are those of float32, rounded.
        """
        for name, parameter in self.named_parameters():
            if parameter.std is None:
                parameter.set_constant()
            else:
                flat = parameter.data.view((parameter.size,), 0)
                for start, values in normal_pieces(parameter.size, seed, name):
                    values = (values * parameter.std).astype(wide(parameter.dtype))
                    flat.view(values.shape, start).copy_from(values.astype(numpy_dtype(parameter.dtype)))


PIECE = 1 << 18  # numbers drawn at a time: an embedding's worth of float64 would be the peak of a run's memory


def normal(count: int, seed: int, name: str) -> npt.NDArray[np.float64]:
    """Standard normal numbers as a pure function of (seed, name): Philox bits through Box and Muller's transform.

    NumPy promises the stream of the bits and not that of its distributions, hence the transform here.
    """
    made = np.empty(count)
    for start, values in normal_pieces(count, seed, name):
        made[start : start + values.size] = values
    return made


def normal_pieces(count: int, seed: int, name: str) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """The numbers of normal() piece by piece, each with its place: the transform's cosines fill the first half, its
    sines the second."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    half = (count + 1) // 2
    first, second = np.random.Philox(key=key), np.random.Philox(key=key)
    second.advance(half // 4)  # a step of Philox's counter makes four numbers
    second.random_raw(half % 4)
    for start in range(0, half, PIECE):
        size = min(PIECE, half - start)
        radius = np.sqrt(-2.0 * np.log(_uniform(first, size)))
        angle = 2.0 * math.pi * _uniform(second, size)
        yield start, radius * np.cos(angle)
        if half + start < count:
            yield half + start, (radius * np.sin(angle))[: count - half - start]


def _uniform(bits: np.random.Philox, count: int) -> npt.NDArray[np.float64]:
    """Numbers between 0 and 1, neither included."""
    return ((bits.random_raw(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def edit(model: Module, where: Filter, fn: Callable[[str, Any], Module | None]) -> int:
    """Call fn(name, module) on every sub-module that `where` selects; a module it returns takes the place.

    Returns how many were selected. Raises ConfigError when nothing was: a filter that matches nothing is a mistake.
    """
    chosen = [(name, module) for name, module in model.named_modules() if name and matches(where, name, module)]
    if not chosen:
        raise ConfigError(f"filter {where!r} matches no module; names look like {_some_names(model)}")
    for name, module in chosen:
        new = fn(name, module)
        if new is not None and new is not module:
            _replace(model, name, new)
    return len(chosen)


def _some_names(model: Module) -> str:
    names = [name for name, _ in model.named_modules() if name]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _replace(model: Module, path: str, new: Module) -> None:
    owner: Any = model
    *way, last = path.split(".")
    for part in way:
        owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
    if last.isdigit():
        owner[int(last)] = new
    else:
        setattr(owner, last, new)

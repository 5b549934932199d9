"""A file of weights, and tensors in it that are read when they are asked for."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from microgpt import system
from microgpt.errors import FormatError
from microgpt.io import files


class WeightFile:
    """A regular file, open, `size` bytes long: nothing of it is in memory but what was read.

    It is not mapped: a map of a file that another process cuts short ends this one (SIGBUS), a read is a FormatError.
    Raises FormatError naming the file when it is missing, no regular file, or unreadable.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            fd = files.open_regular(self.path, follow=True)  # the hub's cache is made of symlinks
        except OSError as error:
            raise FormatError(f"{path}: cannot read: {error.strerror or error}") from error
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        try:
            self.size = os.fstat(fd).st_size
        except OSError as error:
            raise FormatError(f"{path}: cannot read: {error.strerror or error}") from error

    def _inside(self, start: int, count: int) -> None:
        if not (0 <= start <= self.size and 0 <= count <= self.size - start):
            raise FormatError(f"{self.path}: expected {count} bytes at {start}, the file has {self.size}")

    def read(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """`count` bytes from `start` on, in memory of their own. Raises FormatError beyond the file's end."""
        self._inside(start, count)
        made = np.empty(count, np.uint8)
        self.read_into(start, made)
        return made

    def read_into(self, start: int, target: npt.NDArray[Any]) -> None:
        """Fill a C-contiguous array of any type with the bytes from `start` on. Raises FormatError where they end."""
        self._inside(start, target.nbytes)
        left = target.reshape(-1).view(np.uint8).data  # no copy, being contiguous
        at = start
        try:
            while len(left):
                done = system.read_at(self._fd, left, at)
                if not done:
                    now = os.fstat(self._fd).st_size
                    raise FormatError(
                        f"{self.path}: cut short while it was read: it had {self.size} bytes and has {now}"
                    )
                left, at = left[done:], at + done
        except OSError as error:
            raise FormatError(f"{self.path}: cannot read: {error.strerror or error}") from error

    def stored(self, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Stored:
        """The tensor of plain numbers that lies at `start`."""
        each = dtype.itemsize * math.prod(shape[1:])

        def array() -> npt.NDArray[Any]:
            made = np.empty(shape, dtype)
            self.read_into(start, made)
            return made

        def rows(first: int, last: int) -> npt.NDArray[Any]:
            made = np.empty((last - first, *shape[1:]), dtype)
            self.read_into(start + first * each, made)
            return made

        def into(first: int, target: npt.NDArray[Any]) -> None:
            self.read_into(start + first * each, target)

        def part(expert: int) -> Stored:
            return self.stored(start + expert * each, dtype, shape[1:])

        made = Stored(shape, dtype.name, array, rows if shape else None, into if shape else None)
        return replace(made, part=part) if len(shape) > 2 else made


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: `shape`, the NumPy name of the type that `array()` has, and what reads it.

    `array()` makes all of it; `rows(start, stop)`, where there is one, these rows alone, and `into(start, target)`,
    where the file holds plain numbers, fills a target of the same type with as many rows.

    `blocks`: the GGUF type of a quantized matrix, and a function of start and stop that gives the bytes of these rows
    (rows, bytes) as they are. `packed`: codes and scales of other layouts (packed.Packed).

    `part(e)`, where there is one, is one of the tensors along the first of three axes or more: an expert's matrix.
    `turned(e)` is that (out, in) of a tensor that stands for (experts, in, out).
    """

    shape: tuple[int, ...]
    dtype: str
    array: Callable[[], npt.NDArray[Any]]
    rows: Callable[[int, int], npt.NDArray[Any]] | None = None
    into: Callable[[int, npt.NDArray[Any]], None] | None = None
    blocks: tuple[str, Callable[[int, int], npt.NDArray[Any]]] | None = None
    packed: Any = None
    part: Callable[[int], Stored] | None = None
    turned: Callable[[int], Stored] | None = None

    @classmethod
    def experts(cls, parts: Sequence[Stored]) -> Stored:
        """Matrices of one shape as one tensor with an axis more: each is read when its turn comes."""

        def rows(start: int, stop: int) -> npt.NDArray[Any]:
            return np.stack([each.array() for each in parts[start:stop]])

        shape = len(parts), *parts[0].shape
        return cls(shape, parts[0].dtype, lambda: rows(0, len(parts)), rows, part=lambda e: parts[e])

    def picked(self, rows: slice) -> Stored:
        """A matrix of some of its rows: of a block of them, or of every second."""
        first, _, step = rows.indices(self.shape[0])
        count = len(range(*rows.indices(self.shape[0])))

        def of(read: Callable[[int, int], npt.NDArray[Any]]) -> Callable[[int, int], npt.NDArray[Any]]:
            return lambda start, stop: read(first + start * step, min(self.shape[0], first + stop * step))[::step]

        read = of(self.rows or (lambda start, stop: self.array()[start:stop]))
        blocks = None if self.blocks is None else (self.blocks[0], of(self.blocks[1]))
        return Stored((count, *self.shape[1:]), self.dtype, lambda: read(0, count), read, blocks=blocks)

    def parts(self) -> list[Stored]:
        """The matrices of three axes; itself of two."""
        if len(self.shape) != 3:
            return [self]
        if self.part is not None:
            return [self.part(e) for e in range(self.shape[0])]
        whole = self.array()
        return [Stored(self.shape[1:], self.dtype, lambda e=e: whole[e]) for e in range(self.shape[0])]  # type: ignore[misc]

    def derived(self, array: Callable[[], npt.NDArray[Any]], shape: tuple[int, ...] | None = None) -> Stored:
        """Another tensor, that `array` makes of this one."""
        return Stored(self.shape if shape is None else shape, self.dtype, array)

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count


Weights: TypeAlias = Mapping[str, Stored]

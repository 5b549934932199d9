"""A file as a read-only memory map, and tensors in it that are read when they are asked for."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from microgpt.errors import FormatError
from microgpt.io import files


class MappedFile:
    """The bytes of a regular file, not yet read: the system fetches the pages that are looked at.

    A file that is cut short while it is mapped ends the process (SIGBUS), as with every memory map.
    Raises FormatError naming the file when it is missing, no regular file, or unreadable.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            fd = files.open_regular(self.path, follow=True)  # the hub's cache is made of symlinks
        except OSError as error:
            raise FormatError(f"{path}: cannot read: {error.strerror or error}") from error
        try:
            self.size = os.fstat(fd).st_size
            self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if self.size else None
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: cannot map: {error}") from error
        finally:
            os.close(fd)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map or b"", np.uint8)

    def view(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """`count` bytes from `start` on, without reading them. Raises FormatError beyond the file's end."""
        if not (0 <= start <= self.size and 0 <= count <= self.size - start):
            raise FormatError(f"{self.path}: expected {count} bytes at {start}, the file has {self.size}")
        return self.bytes[start : start + count]

    def release(self) -> None:
        """Let go of the pages that were read; views stay valid and would fetch them again."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: `shape`, the NumPy name of the type that `array()` has, and what reads it.

    `array()` is a read-only view of the map where the file holds plain numbers, else a new array; `rows(start, stop)`,
    where there is one, makes these rows alone. `release()` lets go of the pages behind them.

    `blocks`: the GGUF type of a quantized matrix, and a function of start and stop that gives the bytes of these rows
    (rows, bytes) as they are.
    """

    shape: tuple[int, ...]
    dtype: str
    array: Callable[[], npt.NDArray[Any]]
    release: Callable[[], None] = lambda: None
    rows: Callable[[int, int], npt.NDArray[Any]] | None = None
    blocks: tuple[str, Callable[[int, int], npt.NDArray[Any]]] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count


Weights: TypeAlias = Mapping[str, Stored]

"""Codes and scales of a matrix, whatever layout they were stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, FormatError
from ...tensors import numpy_dtype
from ..stored import Stored

Array: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = Callable[[int, int], Array]  # of rows start..stop - 1
FLOATS = ("float16", "bfloat16", "float32")
CHUNK = 1 << 16  # numbers turned at a time


@dataclass(frozen=True)
class Packed:
    """A matrix (N, K): value = scale * (code - zero) + minimum, or scale * table[code].

    `codes` give (rows, K) uint8 of `bits`; `scales`, `zeros` and `minimums` (rows, groups) float32, a group being
    `group` neighbouring columns, or those with the same number in `order` (K). Without `zeros`, `offset` is taken away.
    `floats` is the type of the scales in the file; where there are minimums, products and sums are rounded to it, as
    MLX does. `whole`: some rows cost as much as all, being columns in the file. `nested`: scales as bytes (rows,
    groups), a table (256), an offset and a float32 for each 256 of them along the rows: table[byte] * float + offset.
    """

    shape: tuple[int, int]
    bits: int
    group: int
    codes: Rows
    scales: Rows
    floats: str
    zeros: Rows | None = None
    minimums: Rows | None = None
    table: npt.NDArray[np.float32] | None = None
    offset: int = 0
    order: npt.NDArray[np.int32] | None = None
    whole: bool = False
    nested: tuple[Rows, Array, float, Array] | None = None

    def groups(self) -> npt.NDArray[np.int32]:
        """The group of each column."""
        return np.arange(self.shape[1], dtype=np.int32) // self.group if self.order is None else self.order

    def numbers(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows as float32: each operation of the formula rounded once."""
        made = np.empty((stop - start, self.shape[1]), np.float32)
        groups = self.groups()
        step = max(1, CHUNK // self.shape[1])
        scales, zeros, minimums = (
            None if rows is None else rows(start, stop) for rows in (self.scales, self.zeros, self.minimums)
        )
        codes = self.codes(start, stop)
        assert scales is not None
        for at in range(0, stop - start, step):
            piece = slice(at, at + step)
            if self.table is not None:
                q = self.table[codes[piece]]
            elif zeros is not None:
                q = codes[piece].astype(np.float32) - zeros[piece][:, groups]
            else:
                q = codes[piece].astype(np.float32) - np.float32(self.offset)
            q *= scales[piece][:, groups]
            if minimums is not None:
                kind = numpy_dtype(self.floats)
                q = (q.astype(kind).astype(np.float32) + minimums[piece][:, groups]).astype(kind)
            made[piece] = q
        return made

    def stored(self) -> Stored:
        """As a tensor of a file."""
        n = self.shape[0]
        rows = None if self.whole else self.numbers
        return Stored(self.shape, "float32", lambda: self.numbers(0, n), rows, packed=self)


def pop_parts(
    weights: dict[str, Stored],
    name: str,
    parts: Mapping[str, tuple[str, ...]],
    where: str,
    optional: tuple[str, ...] = (),
) -> list[Stored | None]:
    """Tensors NAME.PART out of `weights`, each of one of the types that `parts` has; None for absent optional ones.

    Raises FormatError.
    """
    found = []
    for part, types in parts.items():
        stored = weights.pop(f"{name}.{part}", None)
        if stored is None and part not in optional:
            raise FormatError(f"{where}: {name}: {part} is missing beside its other parts")
        if stored is not None and stored.dtype not in types:
            raise FormatError(f"{where}: {name}.{part} expected {' or '.join(types)}, got {stored.dtype}")
        found.append(stored)
    return found


def whole_number(settings: Mapping[str, Any], key: str, least: int, most: int, where: str, default: Any = None) -> int:
    """A whole number of the settings. Raises ConfigError."""
    value = settings.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{where}: {key} expected {least} to {most}, got {str(value)[:40]!r}")
    return value


def refuse(where: str, name: str, why: str) -> FormatError:
    """The error of tensors that do not make a quantized matrix."""
    return FormatError(f"{where}: {name}: {why}")


def words(values: Array) -> Array:
    """32-bit words as unsigned."""
    return np.ascontiguousarray(values).view(np.uint32)


def fields(packed: Array, bits: int) -> npt.NDArray[np.uint8]:
    """(rows, words) uint32 -> (rows, words * (32 // bits)): each word's fields from its lowest bit on."""
    shifts = np.arange(0, 32 // bits * bits, bits, dtype=np.uint32)
    split = (packed[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return split.astype(np.uint8).reshape(len(packed), -1)


def stream(packed: Array, bits: int) -> npt.NDArray[np.uint8]:
    """(rows, words) uint32 -> (rows, words * 32 / bits): a row is one stream of bits, lowest first."""
    if 32 % bits == 0:
        return fields(packed, bits)
    little = np.ascontiguousarray(packed, dtype="<u4")
    single = np.unpackbits(little.view(np.uint8), axis=1, bitorder="little")
    single = single[:, : single.shape[1] // bits * bits].reshape(len(packed), -1, bits)
    made: npt.NDArray[np.uint8] = (single @ (1 << np.arange(bits, dtype=np.uint16))).astype(np.uint8)
    return made

"""GGUF files, read: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.

One cursor reads everything before the weights. Every count and length of the file is compared with the bytes that are
left before anything is made of it, so that a file makes no more memory than a few times its own header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from microgpt.errors import FormatError
from microgpt.io import ggml
from microgpt.io.ggml import GgmlType
from microgpt.io.stored import Stored, WeightFile

Value: TypeAlias = Any  # int, float, bool, str, a NumPy array of numbers, or a list of strings or of such values

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# Far beyond any real file; the second line of defence after the bytes that are left.
MOST_KEYS = MOST_TENSORS = 100_000
MOST_ITEMS = 1 << 24  # of an array
MOST_STRING = 64 << 20  # bytes
MOST_NAME = 1 << 10
MOST_DEPTH = 4  # arrays in arrays
MOST_DIMS = 4
WINDOW = 1 << 20  # bytes that are read at once
STRING, ARRAY, BOOL, UINT32 = 8, 9, 7, 4
# Codes of plain values: NumPy's type, and the width is its own.
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8",
           12: "<f8"}  # fmt: skip
_SCALARS = {code: struct.Struct("<" + letter) for code, letter in zip(NUMBERS, "BbHhIif?Qqd", strict=True)}
_LENGTH = _SCALARS[10].unpack_from
# The least that an element of an array, an entry of the metadata and one of the tensor table take.
_LEAST = {**{code: np.dtype(name).itemsize for code, name in NUMBERS.items()}, STRING: 8, ARRAY: 12}
_LEAST_ENTRY, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file: `shape` as NumPy has it (rows first), its element type, its place and bytes."""

    shape: tuple[int, ...]
    kind: GgmlType
    start: int
    bytes: int


class GgufFile:
    """An opened file: `metadata` by key, `tensors` by name. Nothing of the weights is read until it is asked for.

    Raises FormatError naming the file, what was wrong and where in the file it stands.
    """

    def __init__(self, path: Path | str) -> None:
        self.file = WeightFile(path)
        self.path = self.file.path
        cursor = _Cursor(self.file)
        if cursor.take(4, "the magic").tobytes() != MAGIC:
            raise FormatError(f"{path}: not a GGUF file: it does not begin with {MAGIC.decode()}")
        self.version = cursor.number(UINT32, "the version")
        if self.version not in VERSIONS:
            swapped = "; it is big-endian" if self.version >> 16 else ""
            raise cursor.wrong("the version", "2 or 3", f"{self.version}{swapped}")
        tensors = cursor.count("the number of tensors", _LEAST_TENSOR, MOST_TENSORS)
        keys = cursor.count("the number of metadata keys", _LEAST_ENTRY, MOST_KEYS)
        self.metadata: dict[str, Value] = {}
        self.alignment = DEFAULT_ALIGNMENT
        for _ in range(keys):
            key = cursor.string("a metadata key", MOST_NAME)
            if key in self.metadata:
                raise cursor.wrong(f"metadata key {key!r}", "each key once", "a second one")
            code = cursor.number(UINT32, f"the type of {key!r}")
            self.metadata[key] = cursor.value(code, repr(key))
            if key == "general.alignment":
                self.alignment = _alignment(cursor, code, self.metadata[key])
        self.tensors = self._table(cursor, tensors)

    def _table(self, cursor: _Cursor, count: int) -> dict[str, TensorInfo]:
        listed: list[tuple[str, tuple[int, ...], GgmlType, int, int]] = []
        seen: set[str] = set()
        for _ in range(count):
            name = cursor.string("a tensor's name", MOST_NAME)
            if name in seen:
                raise cursor.wrong(f"tensor {name!r}", "each name once", "a second one")
            seen.add(name)
            dims = cursor.number(UINT32, f"the number of axes of {name!r}")
            if dims > MOST_DIMS:
                raise cursor.wrong(f"the number of axes of {name!r}", f"at most {MOST_DIMS}", dims)
            shape = tuple(cursor.number(10, f"the shape of {name!r}") for _ in range(dims))[::-1]
            code = cursor.number(UINT32, f"the type of {name!r}")
            kind = ggml.TYPES.get(code)
            if kind is None:
                raise cursor.wrong(f"the type of {name!r}", "one of " + ", ".join(ggml.NAMED), f"number {code}")
            size = cursor.tensor_bytes(name, shape, kind)
            listed.append((name, shape, kind, size, cursor.number(10, f"the offset of {name!r}")))
        data = _padded(cursor.at, self.alignment)
        found, expected = {}, 0
        for name, shape, kind, size, offset in listed:
            # Every tensor begins where the one before it ends: no gap, no overlap, nothing to hide something in.
            if offset != expected:
                raise FormatError(f"{self.file.path}: the offset of {name!r}: expected {expected}, got {offset}")
            if offset > self.file.size - data or size > self.file.size - data - offset:
                left = max(0, self.file.size - data - offset)
                raise FormatError(f"{self.file.path}: truncated: {name!r} takes {size} bytes, {left} are left")
            found[name] = TensorInfo(shape, kind, data + offset, size)
            expected = _padded(offset + size, self.alignment)
        if self.file.size > data + expected:
            extra = self.file.size - data - expected
            raise FormatError(f"{self.file.path}: {extra} bytes behind the last tensor belong to nothing")
        return found

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """A metadata value checked to be of `kind`. Raises FormatError when it is another or missing."""
        value = self.metadata.get(key, default)
        if value is ...:
            raise FormatError(f"{self.file.path}: missing metadata key {key!r}")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if wrong and value is not default:
            names = " or ".join(each.__name__ for each in kinds)
            raise FormatError(f"{self.file.path}: metadata {key!r} expected {names}, got {type(value).__name__}")
        return value

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes as they are in the file. Raises FormatError when there is none of this name."""
        info = self._info(name)
        return self.file.read(info.start, info.bytes)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise FormatError(f"{self.file.path}: no tensor {name!r}")
        return info

    def array(self, name: str) -> npt.NDArray[Any]:
        """A tensor: plain numbers as they are (bfloat16 as ml_dtypes'), float32 for quantized ones."""
        info = self._info(name)
        data = self.file.read(info.start, info.bytes)
        if info.kind.plain:
            return data.view(_plain_dtype(info.kind)).reshape(info.shape)
        return ggml.dequantize(data, info.kind, info.shape)

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """The rows (along the first axis) from `start` up to `stop` of a tensor, as array() has them."""
        return self._rows(self._info(name), start, stop)

    def _rows(self, info: TensorInfo, start: int, stop: int) -> npt.NDArray[Any]:
        data = self._bytes(info, start, stop).reshape(-1)
        return ggml.dequantize(data, info.kind, (stop - start, *info.shape[1:]))

    def _bytes(self, info: TensorInfo, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of these rows of a tensor, (rows, bytes)."""
        each = info.bytes // info.shape[0]
        return self.file.read(info.start + start * each, (stop - start) * each).reshape(stop - start, each)

    def weights(self) -> dict[str, Stored]:
        """Every tensor, to be read when its turn comes."""
        return {name: self._stored(info) for name, info in self.tensors.items()}

    def _stored(self, info: TensorInfo) -> Stored:
        if info.kind.plain:
            return self.file.stored(info.start, _plain_dtype(info.kind), info.shape)

        def array() -> npt.NDArray[Any]:
            return ggml.dequantize(self.file.read(info.start, info.bytes), info.kind, info.shape)

        def part(expert: int) -> Stored:
            each = info.bytes // info.shape[0]
            return self._stored(TensorInfo(info.shape[1:], info.kind, info.start + expert * each, each))

        if len(info.shape) < 2:
            return Stored(info.shape, "float32", array)
        blocks = info.kind.name, lambda start, stop: self._bytes(info, start, stop)
        return Stored(info.shape, "float32", array, lambda start, stop: self._rows(info, start, stop), blocks=blocks,
                      part=part if len(info.shape) == 3 else None)  # fmt: skip


def _plain_dtype(kind: GgmlType) -> np.dtype[Any]:
    if kind.name != "BF16":
        return kind.layout
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _padded(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _alignment(cursor: _Cursor, code: int, value: Value) -> int:
    good = code == UINT32 and 8 <= value <= 1 << 20 and value & (value - 1) == 0
    if not good:
        what = value if code == UINT32 else f"a value of type {code}"
        raise cursor.wrong("general.alignment", "a uint32 power of two from 8 to 1048576", what)
    return int(value)


class _Cursor:
    """Reads on from where it stands; every method says what it was reading when the file does not allow it."""

    def __init__(self, file: WeightFile) -> None:
        self.file = file
        self.data, self.first = memoryview(b""), 0  # what was read last, and where in the file it begins
        self.at = 0

    def wrong(self, what: str, expected: object, got: object) -> FormatError:
        return FormatError(f"{self.file.path}: {what} (before byte {self.at}): expected {expected}, got {got}")

    def _need(self, count: int, what: str) -> None:
        if count > self.file.size - self.at:
            left = self.file.size - self.at
            raise FormatError(f"{self.file.path}: truncated at byte {self.at}: {what} takes {count} bytes, {left} left")
        if self.at + count > self.first + len(self.data):
            self.data = self.file.read(self.at, min(max(count, WINDOW), self.file.size - self.at)).data
            self.first = self.at

    def take(self, count: int, what: str) -> memoryview:
        self._need(count, what)
        piece = self.data[self.at - self.first :][:count]
        self.at += count
        return piece

    def number(self, code: int, what: str) -> Any:
        scalar = _SCALARS[code]
        self._need(scalar.size, what)
        (value,) = scalar.unpack_from(self.data, self.at - self.first)
        self.at += scalar.size
        return value

    def count(self, what: str, least_bytes: int, most: int) -> int:
        """A 64-bit count of things that take `least_bytes` each at least."""
        value: int = self.number(10, what)
        possible = (self.file.size - self.at) // least_bytes
        if value > min(possible, most):
            raise self.wrong(what, f"at most {min(possible, most)}", value)
        return value

    def string(self, what: str, most: int) -> str:
        length = self.count(f"the length of {what}", 1, most)
        data = bytes(self.take(length, what))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(what, "UTF-8", repr(data[max(0, error.start - 8) : error.start + 8])) from None

    def value(self, code: int, what: str, depth: int = 0) -> Value:
        if code in NUMBERS:
            if code == BOOL:
                flag = self.number(0, what)
                if flag > 1:
                    raise self.wrong(what, "a bool of 0 or 1", flag)
                return bool(flag)
            return self.number(code, what)
        if code == STRING:
            return self.string(what, MOST_STRING)
        if code != ARRAY:
            raise self.wrong(f"the type of {what}", "0 to 12", code)
        if depth == MOST_DEPTH:
            raise self.wrong(what, f"at most {MOST_DEPTH} arrays in each other", "more")
        item = self.number(UINT32, f"the element type of {what}")
        if item not in _LEAST:
            raise self.wrong(f"the element type of {what}", "0 to 12", item)
        length = self.count(f"the length of {what}", _LEAST[item], MOST_ITEMS)
        if item in NUMBERS:
            dtype = np.dtype("u1" if item == BOOL else NUMBERS[item])
            values = np.frombuffer(self.take(length * dtype.itemsize, what), dtype).copy()
            if item == BOOL:
                if (values > 1).any():
                    raise self.wrong(what, "bools of 0 or 1", int(values.max()))
                values = values.view(np.bool_)
            return values
        if item == STRING:
            return self.strings(length, what)
        return [self.value(ARRAY, what, depth + 1) for _ in range(length)]

    def strings(self, count: int, what: str) -> list[str]:
        """So many strings: string() in a row, for vocabularies of a hundred thousand."""
        found: list[str] = []
        while len(found) < count:
            data, at = self.data, self.at - self.first
            end = len(data)
            try:
                for _ in range(count - len(found)):
                    (length,) = _LENGTH(data, at)
                    if length > min(MOST_STRING, end - at - 8):
                        break
                    found.append(str(data[at + 8 : at + 8 + length], "utf-8"))
                    at += 8 + length
            except (struct.error, UnicodeDecodeError):
                pass
            self.at = self.first + at
            if len(found) < count:
                found.append(self.string(what, MOST_STRING))  # reads on, or says what is wrong with this one
        return found

    def tensor_bytes(self, name: str, shape: tuple[int, ...], kind: GgmlType) -> int:
        """Bytes of a tensor, in Python's integers, which do not overflow; more than the file has is refused here."""
        if shape and min(shape) < 1:
            raise self.wrong(f"the shape of {name!r}", "lengths of at least 1", shape)
        row = shape[-1] if shape else 1
        if row % kind.weights:
            raise self.wrong(f"the rows of {name!r}", f"a multiple of {kind.weights} numbers ({kind.name})", row)
        size = row // kind.weights * kind.block_bytes
        for length in shape[:-1]:
            size *= length
        if size > self.file.size - self.at:
            raise self.wrong(
                f"the shape of {name!r}", f"at most {self.file.size - self.at} bytes", f"{shape} {kind.name}"
            )
        return size

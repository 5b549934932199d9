"""GGUF files, written: version 3, little-endian, tensor by tensor, under a temporary name until all is durable."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microgpt.errors import FormatError
from microgpt.io import files, ggml
from microgpt.io.ggml import GgmlType
from microgpt.io.ggml_quantize import quantize
from microgpt.io.gguf import ARRAY, BOOL, DEFAULT_ALIGNMENT, MAGIC, MOST_DIMS, MOST_NAME, NUMBERS, STRING, VERSIONS

_CODES = {np.dtype(name): code for code, name in NUMBERS.items()}
PIECE = 1 << 20  # numbers turned at a time
_FLOAT32, _UINT32, _INT32, _UINT64, _INT64 = 6, 4, 5, 10, 11


@dataclass(frozen=True)
class Planned:
    """A tensor to write: `array()` makes its numbers (of `shape`, rows first) when its turn comes, or, where they are
    blocks already, its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    array: Callable[[], npt.NDArray[Any]]
    blocks: bool = False

    @property
    def bytes(self) -> int:
        """Size in the file."""
        count = 1
        for length in self.shape[:-1]:
            count *= length
        return count * ggml.row_bytes(self.kind, self.shape[-1] if self.shape else 1)


def write(path: Path | str, metadata: Mapping[str, Any], tensors: Sequence[Planned]) -> int:
    """Write a GGUF file, replacing `path` at once when it is complete and durable; returns its size in bytes.

    Metadata: bool, int (uint32, or what holds it), float (float32), str, a NumPy scalar or array (of its own type), a
    list of int (int32), float (float32) or str. Memory is one tensor's at a time.
    Raises FormatError for values or names that the format cannot hold, what quantize() raises, StorageError.
    """
    path = Path(path)
    header, total = _header(metadata, tensors)
    temp = files.temp_name(path)
    try:
        files.preflight(path.parent, total)
        try:
            size = files.write_new(temp, _chunks(header, tensors))
            files.fsync_file(temp)
            files.rename(temp, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temp)
            raise
        files.fsync_dir(path.parent)
    except OSError as error:
        if isinstance(error, FormatError):
            raise
        raise files.storage_error(f"writing {path}", path, error) from error
    return size


def _header(metadata: Mapping[str, Any], tensors: Sequence[Planned]) -> tuple[bytes, int]:
    """Everything before the weights, padded; and the size of the whole file."""
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))]
    for key, value in metadata.items():
        code, data = _value(key, value)
        parts += [_string(key), struct.pack("<I", code), data]
    offset = 0
    names: set[str] = set()
    for each in tensors:
        name = each.name.encode()
        if each.name in names or len(name) > MOST_NAME or len(each.shape) > MOST_DIMS or 0 in each.shape:
            raise FormatError(f"tensor {each.name!r} {each.shape}: GGUF holds each name once, of at most {MOST_NAME} "
                              f"bytes, and 1 to {MOST_DIMS} axes that are not empty")  # fmt: skip
        names.add(each.name)
        parts += [_string(each.name), struct.pack(f"<I{len(each.shape)}Q", len(each.shape), *each.shape[::-1])]
        parts.append(struct.pack("<IQ", each.kind.number, offset))
        offset += each.bytes + _gap(each.bytes)
    header = b"".join(parts)
    header += bytes(_gap(len(header)))
    return header, len(header) + offset


def _chunks(header: bytes, tensors: Sequence[Planned]) -> Iterator[bytes | memoryview]:
    yield header
    for each in tensors:
        values = each.array()
        if each.blocks:
            if values.nbytes != each.bytes:
                raise FormatError(f"tensor {each.name!r}: expected {each.bytes} bytes, got {values.nbytes}")
            yield np.ascontiguousarray(values).reshape(-1).data
            yield bytes(_gap(each.bytes))
            continue
        if values.shape != each.shape:
            raise FormatError(f"tensor {each.name!r}: expected shape {each.shape}, got {values.shape}")
        # Some rows at a time, so that what lies between is small beside the model.
        length = len(values) if values.ndim else 1
        step = max(1, PIECE * length // max(1, values.size))
        for start in range(0, length, step):
            yield quantize(values[start : start + step] if values.ndim else values, each.kind).data
        yield bytes(_gap(each.bytes))


def _gap(size: int) -> int:
    return -size % DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> tuple[int, bytes]:
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, (list, tuple)):
        if all(isinstance(each, str) for each in value):
            return ARRAY, struct.pack("<IQ", STRING, len(value)) + b"".join(_string(each) for each in value)
        whole = all(isinstance(each, int) and not isinstance(each, bool) for each in value)
        value = np.array(value, "<i4" if whole else "<f4")
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        code = _CODES.get(array.dtype)
        if code is None or array.ndim != 1:
            raise FormatError(
                f"metadata {key!r}: expected a list of numbers or strings, got {array.dtype} {array.shape}"
            )
        return ARRAY, struct.pack("<IQ", code, array.size) + array.tobytes()
    if isinstance(value, bool):
        return BOOL, bytes([value])
    if isinstance(value, int):
        for code, low, high in ((_UINT32, 0, 2**32), (_INT32, -(2**31), 0), (_UINT64, 0, 2**64), (_INT64, -(2**63), 0)):
            if low <= value < high:
                return code, np.array(value, NUMBERS[code]).tobytes()
    if isinstance(value, np.generic) and np.dtype(value.dtype) in _CODES:
        return _CODES[np.dtype(value.dtype)], value.tobytes()
    if isinstance(value, float):
        try:
            return _FLOAT32, struct.pack("<f", value)
        except OverflowError:
            raise FormatError(f"metadata {key!r}: expected a float32, got {value}") from None
    raise FormatError(f"metadata {key!r}: GGUF has no type for {value!r}")

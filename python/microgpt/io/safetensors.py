"""Tensors in and out of the safetensors format (https://github.com/huggingface/safetensors).

Files are read tensor by tensor. A header is good when each byte behind it belongs to exactly one tensor.
Writing gives the same bytes for the same tensors (the `safetensors` library orders several metadata keys at random).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from microgpt.errors import DTypeError, FormatError
from microgpt.io import files
from microgpt.io.stored import Stored, WeightFile

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_DTYPES = {code: np.dtype(getattr(ml_dtypes, name, name)) for name, code in _CODES.items()}
MOST_HEADER = 100_000_000  # bytes, as the library has it


def open_weights(path: Path | str) -> dict[str, Stored]:
    """Every tensor of a safetensors file, by sorted name, not yet read.

    Raises FormatError naming the file when it is missing, not a file, truncated or inconsistent.
    """
    file = WeightFile(path)
    header, data = _header(file)
    spans: list[tuple[int, int, str]] = []
    found: dict[str, Stored] = {}
    for name in sorted(header):
        dtype, shape, begin, end = _entry(file, name, header[name], file.size - data)
        spans.append((begin, end, name))
        found[name] = file.stored(data + begin, dtype, shape)
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise _bad(file, f"tensor {name!r} begins at {begin}, expected {at}: tensors may not overlap or leave gaps")
        at = end
    if data + at != file.size:
        raise _bad(file, f"the tensors end at byte {data + at}, the file at {file.size}")
    return found


def load(path: Path | str) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a safetensors file, by sorted name, as writable arrays (bfloat16 through ml_dtypes).

    Raises FormatError naming the file when it is missing, not a file, truncated or inconsistent.
    """
    return {name: stored.array() for name, stored in open_weights(path).items()}


def _bad(file: WeightFile, what: str) -> FormatError:
    return FormatError(f"{file.path}: not a valid safetensors file: {what}")


def _header(file: WeightFile) -> tuple[dict[str, Any], int]:
    """The entries of the tensors, and where the data begin."""
    if file.size < 8:
        raise _bad(file, f"{file.size} bytes, too few for a header")
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if not 2 <= length <= min(MOST_HEADER, file.size - 8):
        raise _bad(file, f"a header of {length} bytes, expected 2 to {min(MOST_HEADER, file.size - 8)}")
    text = file.read(8, length).tobytes()
    if text[:1] != b"{":
        raise _bad(file, "the header does not begin with {")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _bad(file, f"the header is not JSON ({error})") from error
    meta = header.pop("__metadata__", {})
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise _bad(file, "__metadata__ expected an object of strings")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _entry(file: WeightFile, name: str, entry: Any, space: int) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """Type, shape, first byte and the one behind the last, each checked against the others."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(file, f"tensor {name!r} expected dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise _bad(file, f"tensor {name!r} expected a dtype of {', '.join(_DTYPES)}, got {str(code)[:40]!r}")
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2 and len(shape) <= 32):
        raise _bad(file, f"tensor {name!r}: shape or data_offsets are not lists of sizes")
    begin, end = offsets
    size = dtype.itemsize
    for length in shape:
        size *= length
        if size > space and 0 not in shape:
            break
    if not begin <= end <= space or size != end - begin:
        what = f"takes {size} bytes, its data_offsets are {offsets}, the file has {space}"
        raise _bad(file, f"tensor {name!r} of {code} {shape} {what}")
    return dtype, tuple(shape), begin, end


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def save(
    path: Path | str, tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str] | None = None
) -> int:
    """Write a new safetensors file, the same bytes for the same tensors; returns its size in bytes.

    `metadata` defaults to ``{"format": "pt"}``, which transformers asks for. The file must not exist yet.
    Raises DTypeError for arrays that are not C-contiguous, little-endian and of a known type;
    StorageError when writing fails.
    """
    path = Path(path)
    meta = dict(sorted((metadata if metadata is not None else {"format": "pt"}).items()))
    header: dict[str, object] = {"__metadata__": meta}
    offset = 0
    # Wide types first, as the library does: every tensor stays aligned to its own type.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": _code(name, array),
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in order:
            if tensors[name].size:
                yield tensors[name].reshape(-1).view(np.uint8).data

    try:
        return files.write_new(path, chunks())
    except OSError as error:
        raise files.storage_error(f"writing {path.name}", path, error) from error


def _code(name: str, array: np.ndarray[Any, Any]) -> str:
    if name == "__metadata__":
        raise DTypeError("a tensor may not be called '__metadata__': the format keeps that name for itself")
    code = _CODES.get(array.dtype.name)
    if code is None:
        known = ", ".join(_CODES)
        raise DTypeError(f"tensor {name!r}: expected one of {known}; got {array.dtype}")
    order = array.dtype.byteorder
    if order == ">" or (order == "=" and sys.byteorder == "big"):
        raise DTypeError(f"tensor {name!r}: expected little-endian, got big-endian {array.dtype}")
    if not array.flags.c_contiguous:
        raise DTypeError(f"tensor {name!r}: expected a C-contiguous array, got strides {array.strides}")
    return code

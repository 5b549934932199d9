"""Tensors in and out of the safetensors format (https://github.com/huggingface/safetensors).

Reading goes through the `safetensors` library, for its checks of hostile headers. Writing is done here: the
library orders several metadata keys at random, and a file must have the same bytes each time.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microgpt.errors import DTypeError, FormatError
from microgpt.io import files

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def load(path: Path | str) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a safetensors file, by sorted name, as writable arrays (bfloat16 through ml_dtypes).

    Raises FormatError naming the file when it is missing, not a file, truncated or inconsistent.
    """
    import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 by name from then on)
    import safetensors

    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FormatError(f"{path}: cannot read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path}: expected a safetensors file, found something that is not a regular file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except OSError as error:
        raise FormatError(f"{path}: cannot read: {error.strerror or error}") from error
    # AttributeError, KeyError, TypeError: the library on a dtype that numpy or ml_dtypes lacks.
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: not a valid safetensors file: {error}") from error


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

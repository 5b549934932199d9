"""The element types of GGUF files: their numbers, sizes and what their blocks mean.

A quantized row is a sequence of blocks; a block holds so many weights as integers of few bits, and the scales that
turn them back into numbers. Layouts: https://github.com/ggml-org/ggml, ggml-common.h. Results have the bits of
gguf-py's `dequantize`: the same products and sums of float32 in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from microgpt.errors import ShapeError

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]

CHUNK = 1 << 16  # weights turned at a time: what lies between stays in the cache, and memory near the result
# The values that MXFP4 (E2M1, doubled) and IQ4 index.
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


@dataclass(frozen=True)
class GgmlType:
    """`weights` numbers of a row make a block of `layout`; `turn` makes (blocks, weights) float32 of blocks."""

    name: str
    number: int
    weights: int
    layout: np.dtype[Any]
    turn: Callable[[Array], Floats]

    @property
    def block_bytes(self) -> int:
        """Size of a block in bytes."""
        return self.layout.itemsize

    @property
    def plain(self) -> bool:
        """Whether the blocks are single numbers."""
        return self.weights == 1


TYPES: dict[int, GgmlType] = {}  # by their number in files
NAMED: dict[str, GgmlType] = {}


def _type(name: str, number: int, weights: int, *fields: Any) -> Callable[[Callable[[Array], Floats]], Any]:
    def register(turn: Callable[[Array], Floats]) -> Callable[[Array], Floats]:
        layout = np.dtype(fields[0]) if isinstance(fields[0], str) else np.dtype(list(fields))
        TYPES[number] = NAMED[name] = GgmlType(name, number, weights, layout, turn)
        return turn

    return register


def row_bytes(kind: GgmlType, length: int) -> int:
    """Bytes of a row of `length` weights. Raises ShapeError when it does not fill whole blocks."""
    if length % kind.weights:
        raise ShapeError(f"rows of {kind.name} expected a multiple of {kind.weights} numbers, got {length}")
    return length // kind.weights * kind.block_bytes


def dequantize(data: Array, kind: GgmlType, shape: Sequence[int], out: Floats | None = None) -> Floats:
    """The bytes `data` (uint8) of a tensor as float32 of `shape`, in `out` if given (C-contiguous, `shape`).

    Beside the result it takes a few times CHUNK numbers. Raises ShapeError when the sizes do not fit.
    """
    count = int(np.prod(shape, dtype=np.int64))
    row = shape[-1] if len(shape) else 1
    if row_bytes(kind, row) * (count // max(row, 1)) != data.size:
        raise ShapeError(f"{kind.name} of shape {tuple(shape)}: got {data.size} bytes")
    if out is None:
        out = np.empty(tuple(shape), np.float32)
    blocks = data.view(kind.layout)
    flat = out.reshape(-1, kind.weights)
    step = max(1, CHUNK // kind.weights)
    with np.errstate(all="ignore"):  # a hostile file may hold any bits; they stay what they are
        for start in range(0, len(blocks), step):
            flat[start : start + step] = kind.turn(blocks[start : start + step])
    return out


def _nibbles(bytes_: Array, group: int) -> Array:
    """(n, m) bytes -> (n, 2m) values 0..15: of each `group` bytes the low halves, then the high halves."""
    parts = bytes_.reshape(len(bytes_), -1, 1, group)
    return np.concatenate([parts & 15, parts >> 4], axis=2).reshape(len(bytes_), -1)


def _bits(bytes_: Array, width: int, group: int) -> Array:
    """(n, m) bytes -> (n, 8m / width) fields: of each `group` bytes the lowest fields, then the next ones."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    parts = (bytes_.reshape(len(bytes_), -1, 1, group) >> shifts) & np.uint8((1 << width) - 1)
    return parts.reshape(len(bytes_), -1)


def _wide(values: Array) -> Floats:
    """(n) float16 -> (n, 1) float32."""
    return values.astype(np.float32)[:, None]


def _grouped(scale: Floats, values: Array) -> Floats:
    """scale (n, g) and values (n, m) -> (n, g, m / g) products."""
    return scale[:, :, None] * values.reshape(*scale.shape, -1).astype(np.float32)


for _name, _number, _code in [
    ("F32", 0, "<f4"), ("F16", 1, "<f2"), ("I8", 24, "i1"), ("I16", 25, "<i2"), ("I32", 26, "<i4"), ("I64", 27, "<i8"),
    ("F64", 28, "<f8"),
]:  # fmt: skip
    _type(_name, _number, 1, _code)(lambda b: b[:, None].astype(np.float32))


@_type("BF16", 30, 1, "<u2")
def _bf16(b: Array) -> Floats:
    return (b.astype(np.uint32) << 16).view(np.float32)[:, None]


@_type("Q4_0", 2, 32, ("d", "<f2"), ("qs", "u1", 16))
def _q4_0(b: Array) -> Floats:
    return _wide(b["d"]) * (_nibbles(b["qs"], 16).view(np.int8) - np.int8(8)).astype(np.float32)


@_type("Q4_1", 3, 32, ("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16))
def _q4_1(b: Array) -> Floats:
    return _wide(b["d"]) * _nibbles(b["qs"], 16).astype(np.float32) + _wide(b["m"])


def _five(b: Array) -> Array:
    high = np.unpackbits(b["qh"], axis=1, bitorder="little")
    return _nibbles(b["qs"], 16) | (high << 4)


@_type("Q5_0", 6, 32, ("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16))
def _q5_0(b: Array) -> Floats:
    return _wide(b["d"]) * (_five(b).view(np.int8) - np.int8(16)).astype(np.float32)


@_type("Q5_1", 7, 32, ("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16))
def _q5_1(b: Array) -> Floats:
    return _wide(b["d"]) * _five(b).astype(np.float32) + _wide(b["m"])


@_type("Q8_0", 8, 32, ("d", "<f2"), ("qs", "i1", 32))
def _q8_0(b: Array) -> Floats:
    return b["qs"].astype(np.float32) * _wide(b["d"])


@_type("Q2_K", 10, 256, ("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2"))
def _q2_k(b: Array) -> Floats:
    scale = _wide(b["d"]) * (b["scales"] & 15).astype(np.float32)
    least = _wide(b["dmin"]) * (b["scales"] >> 4).astype(np.float32)
    return (_grouped(scale, _bits(b["qs"], 2, 32)) - least[:, :, None]).reshape(len(b), 256)


@_type("Q3_K", 11, 256, ("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2"))
def _q3_k(b: Array) -> Floats:
    # 16 scales of 6 bits: the low four of them in 8 bytes, the high two in 4; then minus 32.
    scales = _nibbles(b["scales"][:, :8], 8) | (_bits(b["scales"][:, 8:], 2, 4) << 4)
    scale = _wide(b["d"]) * (scales.view(np.int8) - np.int8(32)).astype(np.float32)
    absent = _bits(b["hmask"], 1, 32) ^ 1  # where the mask has no bit, 4 is taken away
    values = _bits(b["qs"], 2, 32).view(np.int8) - (absent << 2).view(np.int8)
    return _grouped(scale, values).reshape(len(b), 256)


def _scales_and_mins(packed: Array) -> tuple[Floats, Floats]:
    """12 bytes -> 8 scales and 8 minima of 6 bits: four of each whole in bytes 0..7, whose top bits go with the halves
    of bytes 8..11 to make the other four."""
    low, high, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (rest & 15) | ((low >> 6) << 4)], axis=1)
    mins = np.concatenate([high & 63, (rest >> 4) | ((high >> 6) << 4)], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _scale_and_min(b: Array, values: Array) -> Floats:
    scales, mins = _scales_and_mins(b["scales"])
    return (_grouped(_wide(b["d"]) * scales, values) - (_wide(b["dmin"]) * mins)[:, :, None]).reshape(len(b), 256)


@_type("Q4_K", 12, 256, ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128))
def _q4_k(b: Array) -> Floats:
    return _scale_and_min(b, _nibbles(b["qs"], 32))


@_type("Q5_K", 13, 256, ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128))
def _q5_k(b: Array) -> Floats:
    return _scale_and_min(b, _nibbles(b["qs"], 32) | (_bits(b["qh"], 1, 32) << 4))


@_type("Q6_K", 14, 256, ("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2"))
def _q6_k(b: Array) -> Floats:
    values = (_nibbles(b["ql"], 64) | (_bits(b["qh"], 2, 32) << 4)).view(np.int8) - np.int8(32)
    return _grouped(_wide(b["d"]) * b["scales"].astype(np.float32), values).reshape(len(b), 256)


@_type("IQ4_NL", 20, 32, ("d", "<f2"), ("qs", "u1", 16))
def _iq4_nl(b: Array) -> Floats:
    return _wide(b["d"]) * IQ4_VALUES[_nibbles(b["qs"], 16)]


@_type("IQ4_XS", 23, 256, ("d", "<f2"), ("high", "<u2"), ("low", "u1", 4), ("qs", "u1", 128))
def _iq4_xs(b: Array) -> Floats:
    low = _bits(b["low"], 4, 1)
    high = (b["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    scale = _wide(b["d"]) * ((low | (high << 4)).view(np.int8) - np.int8(32)).astype(np.float32)
    return _grouped(scale, IQ4_VALUES[_nibbles(b["qs"], 16)]).reshape(len(b), 256)


@_type("MXFP4", 39, 32, ("e", "u1"), ("qs", "u1", 16))
def _mxfp4(b: Array) -> Floats:
    # 2^(e - 128) as float32's bits, half of what E8M0 says since the values are doubled; below 2 it is denormal.
    e = b["e"].astype(np.uint32)
    scale = np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23)).view(np.float32)
    return scale[:, None] * MXFP4_VALUES[_nibbles(b["qs"], 16)]

"""float32 weights to the blocks of GGUF: the inverse of io/ggml.py.

F16, BF16 and, without an importance of columns, Q8_0, Q4_0 and Q5_0 have the bytes of gguf-py's `quantize`. Else a
group's scale (and minimum) is searched for (io/scale_search.py), so that the squared error is small, each number's
weighted by its column's importance where there is one. Scales of a block that share a float16 are rounded by the same
search; integers are chosen last, for the scales as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from microgpt.errors import NonFiniteError, ShapeError
from microgpt.io import ggml
from microgpt.io.ggml import Array, Floats, GgmlType
from microgpt.io.scale_search import FINE_STEPS, IQ4, STEPS, best_lines, best_scales

Weights = Floats | None  # (blocks, weights of a block)
FEW_STEPS = np.arange(-0.75, 1.51, 0.25)  # of 3 bits
WIDE_STEPS = np.arange(-6.0, 1.01, 0.5)  # of 6 bits
BOOK_STEPS = np.arange(-20.0, 12.1, 4.0)  # of IQ4, whose entries end at -127 and 113
LINE_STEPS = np.arange(-1.0, 2.01, 0.25)  # with a minimum
LINE_ROUNDS = 3
SCALE_STEPS = 9  # of scales themselves, within 3 % of the largest


def quantize(
    values: npt.NDArray[Any], kind: GgmlType, importance: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.uint8]:
    """The bytes (uint8, 1-D) of an array of numbers, row after row; `importance` (row length): of each column, >= 0.

    Raises ShapeError where rows do not fill whole blocks, NonFiniteError for NaN or infinity in a quantized type (or a
    number too large for it).
    """
    row = values.shape[-1] if values.ndim else 1
    ggml.row_bytes(kind, row)
    if kind.plain:
        return _plain(values, kind)
    encode = ENCODERS[kind.name]
    if importance is not None and importance.shape != (row,):
        raise ShapeError(f"importance: expected a number for each of {row} columns, got shape {importance.shape}")
    blocks = values.reshape(-1, kind.weights)
    places = None if importance is None else importance.astype(np.float32).reshape(-1, kind.weights)
    out = np.empty(len(blocks), kind.layout)
    step = max(1, ggml.CHUNK // kind.weights)
    scales = [name for name in kind.layout.names or () if kind.layout[name] == np.float16]
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            piece = blocks[start : start + step].astype(np.float32)
            if not np.isfinite(piece).all():
                raise NonFiniteError(f"expected finite numbers for {kind.name}, got NaN or infinity")
            weights = None if places is None else places[np.arange(start, start + len(piece)) % len(places)]
            encode(piece, weights, out[start : start + step])
            if not all(np.isfinite(out[start : start + step][name]).all() for name in scales):
                raise NonFiniteError(f"numbers too large for {kind.name}: their scale is beyond float16")
    return out.view(np.uint8)


def _plain(values: npt.NDArray[Any], kind: GgmlType) -> npt.NDArray[np.uint8]:
    if kind.name == "BF16":
        import ml_dtypes

        if values.dtype != ml_dtypes.bfloat16:
            values = values.astype(np.float32).astype(ml_dtypes.bfloat16)  # to even, as gguf-py rounds
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=kind.layout).reshape(-1).view(np.uint8)


def _inverse(scale: Floats) -> Floats:
    return np.where(scale == 0, np.float32(0), np.float32(1) / scale).astype(np.float32)


def _half(values: Floats) -> Floats:
    """(n) as a block holds them, (n, 1)."""
    return values.astype(np.float16).astype(np.float32)[:, None]


def _pack_nibbles(values: Array, group: int) -> Array:
    """The inverse of ggml._nibbles: (n, 2m) values 0..15 -> (n, m) bytes."""
    parts = values.reshape(len(values), -1, 2, group)
    packed: Array = (parts[:, :, 0] | (parts[:, :, 1] << 4)).reshape(len(values), -1)
    return packed


def _pack_bits(values: Array, width: int, group: int) -> Array:
    """The inverse of ggml._bits."""
    parts = values.reshape(len(values), -1, 8 // width, group)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(parts << shifts, axis=2).reshape(len(values), -1)


def _whole(x: Floats, step: Floats, low: int, high: int) -> Array:
    """The nearest of low..high to x / step, less low."""
    q = np.rint(x * _inverse(step))
    np.clip(q, low, high, out=q)
    q -= low
    return q.astype(np.uint8)


_TWICE = np.arange(-256, 256)  # a number in halves, rounded down: what lies half way between two entries is among them
_ENTRIES = np.abs(_TWICE[:, None] / 2 + 0.25 - ggml.IQ4_VALUES).argmin(axis=1).astype(np.uint8)


def _entry(x: Floats, step: Floats) -> Array:
    """The nearest entry of IQ4 to x / step, by its place."""
    twice = np.fmin(np.fmax(np.floor(2 * (x * _inverse(step))), -256), 255)  # a number, too, where there is none
    return _ENTRIES[twice.astype(np.int32) + 256]


# --- blocks of 32 -----------------------------------------------------------------------------------------------------
def _store_codes(values: Array, bits: int, out: Array) -> None:
    if bits == 5:
        out["qh"] = np.packbits(values >> 4, axis=1, bitorder="little")
    out["qs"] = _pack_nibbles(values & 15, 16)


def _symmetric(bits: int) -> Callable[[Floats, Weights, Array], None]:
    half = 1 << (bits - 1)

    def encode(x: Floats, weights: Weights, out: Array) -> None:
        if weights is None:  # the largest weight becomes -half
            scale = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1) / np.float32(-half)
            values = np.trunc(x * _inverse(scale) + np.float32(half + 0.5)).astype(np.uint8).clip(0, 2 * half - 1)
            out["d"] = scale[:, 0]
            _store_codes(values, bits, out)
            return
        out["d"] = best_scales(x, -half, half - 1, STEPS, weights)
        _store_codes(_whole(x, _half(out["d"]), -half, half - 1), bits, out)

    return encode


def _affine(bits: int) -> Callable[[Floats, Weights, Array], None]:
    high = (1 << bits) - 1

    def encode(x: Floats, weights: Weights, out: Array) -> None:
        out["d"], least = best_lines(x, high, LINE_STEPS, weights, LINE_ROUNDS)
        out["m"] = -least
        _store_codes(_whole(x - _half(out["m"]), _half(out["d"]), 0, high), bits, out)

    return encode


def _q8_0(x: Floats, weights: Weights, out: Array) -> None:
    if weights is None:
        scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
        scaled = x * _inverse(scale)
        size = np.abs(scaled)
        whole = np.floor(size)
        out["qs"] = np.sign(scaled) * (whole + np.floor(2 * (size - whole)))  # halves away from zero, as C's roundf
        out["d"] = scale[:, 0]
        return
    out["d"] = best_scales(x, -127, 127, FINE_STEPS, weights, sides=1)
    out["qs"] = _whole(x, _half(out["d"]), -127, 127).astype(np.int16) - 127


def _iq4_nl(x: Floats, weights: Weights, out: Array) -> None:
    out["d"] = best_scales(x, -127, 127, BOOK_STEPS, weights, book=IQ4)
    out["qs"] = _pack_nibbles(_entry(x, _half(out["d"])), 16)


def _mxfp4(x: Floats, weights: Weights, out: Array) -> None:
    """Of the exponents around the one that holds the largest number the best."""
    size = np.abs(x)
    _, top = np.frexp(size.max(axis=1))  # below 2^top; entries are below 2^4, doubled
    best = np.full(len(x), np.inf, np.float32)
    exponent, codes = np.zeros(len(x), np.int32), np.zeros(x.shape, np.uint8)
    for tried in (top - 4, top - 3, top - 2):
        shown = np.clip(tried, -127, 126)
        step = np.ldexp(np.float32(1), shown)[:, None]
        v = size / step
        # 0 1 2 3 4 6 8 12: by what lies half way, ties down.
        code = sum((v > half).astype(np.uint8) for half in (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0))
        off = (size - ggml.MXFP4_VALUES[code] * step) ** 2
        error = (off if weights is None else off * weights).sum(axis=1)
        better = error < best
        best, exponent = np.where(better, error, best), np.where(better, shown, exponent)
        codes[better] = code[better]
    out["e"] = exponent + 128
    out["qs"] = _pack_nibbles(codes | ((x < 0) & (codes > 0)).astype(np.uint8) << 3, 16)


# --- blocks of 256, whose scales share a float16 ----------------------------------------------------------------------
def _parts(values: Weights, size: int) -> Any:
    """(n, 256) -> (n, parts, size)."""
    return None if values is None else values.reshape(len(values), -1, size)


def _flat(parts: Any) -> Any:
    return None if parts is None else parts.reshape(-1, parts.shape[-1])


def _squares(x: Floats, weights: Weights) -> Floats:
    """Weighted sums of squares of parts."""
    return np.einsum("npm,npm->np", x, x if weights is None else x * weights)


def _together(scale: Floats, cost: Floats, low: int, high: int) -> tuple[Floats, Floats]:
    """Scales (n, parts) as d (n, 1), a float16, times whole numbers low..high; `cost` of their squared errors."""
    steps = np.linspace(-0.03, 0.03, SCALE_STEPS) * high
    d = _half(best_scales(scale, low, high, steps, cost, 2 if low < 0 else 1))
    return d, np.clip(np.rint(scale * _inverse(d)), low, high)


def _signed(
    x: Floats, weights: Weights, size: int, low: int, high: int, steps: Array, most: int, out: Array, book: int = 0
) -> tuple[Floats, Floats, Array]:
    """x in parts, their step (n, parts, 1), and the whole scales -most..most - 1 behind it; d goes to `out`."""
    parts, places = _parts(x, size), _parts(weights, size)
    scale = best_scales(_flat(parts), low, high, steps, _flat(places), book=book).reshape(parts.shape[:2])
    # An error ds of a scale costs ds^2 sum w q^2, and q is near x / scale.
    d, whole = _together(scale, _squares(parts, places) * _inverse(scale * scale), -most, most - 1)
    out["d"] = d[:, 0]
    return parts, (d * whole)[:, :, None], whole.astype(np.int8)


def _q3_k(x: Floats, weights: Weights, out: Array) -> None:
    parts, step, whole = _signed(x, weights, 16, -4, 3, FEW_STEPS, 32, out)
    values, scales = _whole(parts, step, -4, 3).reshape(-1, 256), (whole + 32).view(np.uint8)
    out["scales"][:, :8] = _pack_nibbles(scales & 15, 8)
    out["scales"][:, 8:] = _pack_bits(scales >> 4, 2, 4)
    out["hmask"] = _pack_bits(values >> 2, 1, 32)
    out["qs"] = _pack_bits(values & 3, 2, 32)


def _q6_k(x: Floats, weights: Weights, out: Array) -> None:
    parts, step, out["scales"] = _signed(x, weights, 16, -32, 31, WIDE_STEPS, 128, out)
    values = _whole(parts, step, -32, 31).reshape(-1, 256)
    out["ql"] = _pack_nibbles(values & 15, 64)
    out["qh"] = _pack_bits(values >> 4, 2, 32)


def _iq4_xs(x: Floats, weights: Weights, out: Array) -> None:
    parts, step, whole = _signed(x, weights, 32, -127, 127, BOOK_STEPS, 32, out, IQ4)
    scales = (whole + 32).view(np.uint8)
    out["low"] = _pack_bits(scales & 15, 4, 1)
    out["high"] = ((scales >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=1)
    out["qs"] = _pack_nibbles(_entry(parts, step).reshape(-1, 256), 16)


def _lines(x: Floats, weights: Weights, size: int, high: int, most: int, out: Array) -> tuple[Array, Array, Array]:
    """Codes (n, 256), and the whole scales and minima 0..most of parts of `size`; d and dmin go to `out`."""
    parts, places = _parts(x, size), _parts(weights, size)
    shape = parts.shape[:2]
    scale, least = best_lines(_flat(parts), high, LINE_STEPS, _flat(places), LINE_ROUNDS, bounded=True)
    scale, least = scale.reshape(shape), least.reshape(shape)
    cost = _squares(parts + least[:, :, None], places) * _inverse(scale * scale)
    d, scales = _together(scale, cost, 0, most)
    dmin, mins = _together(least, np.ones_like(least) if places is None else places.sum(axis=2), 0, most)
    out["d"], out["dmin"] = d[:, 0], dmin[:, 0]
    values = _whole(parts + (dmin * mins)[:, :, None], (d * scales)[:, :, None], 0, high)
    return values.reshape(len(x), 256), scales.astype(np.uint8), mins.astype(np.uint8)


def _q2_k(x: Floats, weights: Weights, out: Array) -> None:
    values, scales, mins = _lines(x, weights, 16, 3, 15, out)
    out["scales"] = scales | (mins << 4)
    out["qs"] = _pack_bits(values, 2, 32)


def _store_lines(s: Array, m: Array, out: Array) -> None:
    out["scales"][:, :4] = s[:, :4] | ((s[:, 4:] >> 4) << 6)
    out["scales"][:, 4:8] = m[:, :4] | ((m[:, 4:] >> 4) << 6)
    out["scales"][:, 8:] = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)


def _q4_k(x: Floats, weights: Weights, out: Array) -> None:
    values, scales, mins = _lines(x, weights, 32, 15, 63, out)
    _store_lines(scales, mins, out)
    out["qs"] = _pack_nibbles(values, 32)


def _q5_k(x: Floats, weights: Weights, out: Array) -> None:
    values, scales, mins = _lines(x, weights, 32, 31, 63, out)
    _store_lines(scales, mins, out)
    out["qh"] = _pack_bits(values >> 4, 1, 32)
    out["qs"] = _pack_nibbles(values & 15, 32)


ENCODERS: dict[str, Callable[[Floats, Weights, Array], None]] = {
    "Q4_0": _symmetric(4), "Q4_1": _affine(4), "Q5_0": _symmetric(5), "Q5_1": _affine(5), "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
}  # fmt: skip

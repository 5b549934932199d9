"""float32 weights to the blocks of GGUF: the inverse of io/ggml.py.

F16, BF16, Q8_0, Q4_0 and Q5_0 have the bytes of gguf-py's `quantize`. Q4_K and Q6_K are our own search: several scales
a sub-block, each with the integers that it rounds to and the least-squares scale (and minimum) for these integers; the
one with the least squared error is kept, and after the scales themselves are rounded the integers are chosen anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from microgpt.errors import ConfigError, NonFiniteError, nearest
from microgpt.io import ggml
from microgpt.io.ggml import Array, Floats, GgmlType

# How far beyond the range of the integers the largest weight may fall, in steps; from sweeps (docs/log.md).
Q4_K_STEPS = np.linspace(-1.2, 1.2, 13, dtype=np.float32)
Q4_K_ROUNDS = 2  # then integers and line are fitted to each other in turn
Q6_K_STEPS = np.linspace(-6.0, 1.0, 13, dtype=np.float32)


def quantize(values: npt.NDArray[Any], kind: GgmlType) -> npt.NDArray[np.uint8]:
    """The bytes (uint8, 1-D) of an array of numbers, row after row.

    Raises ShapeError where rows do not fill whole blocks, NonFiniteError for NaN or infinity in a quantized type (or a
    number too large for it), ConfigError for a type that is read only.
    """
    row = values.shape[-1] if values.ndim else 1
    ggml.row_bytes(kind, row)
    if kind.plain:
        return _plain(values, kind)
    encode = ENCODERS.get(kind.name)
    if encode is None:
        known = ", ".join(["F32", "F16", "BF16", *ENCODERS])
        raise ConfigError(
            f"type {kind.name!r} can be read but not written{nearest(kind.name, ENCODERS)}; known: {known}"
        )
    blocks = values.reshape(-1, kind.weights)
    out = np.empty(len(blocks), kind.layout)
    step = max(1, ggml.CHUNK // kind.weights)
    scales = [name for name in kind.layout.names or () if kind.layout[name] == np.float16]
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            piece = blocks[start : start + step].astype(np.float32)
            if not np.isfinite(piece).all():
                raise NonFiniteError(f"expected finite numbers for {kind.name}, got NaN or infinity")
            encode(piece, out[start : start + step])
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


def _pack_nibbles(values: Array, group: int) -> Array:
    """The inverse of ggml._nibbles: (n, 2m) values 0..15 -> (n, m) bytes."""
    parts = values.astype(np.uint8).reshape(len(values), -1, 2, group)
    packed: Array = (parts[:, :, 0] | (parts[:, :, 1] << 4)).reshape(len(values), -1)
    return packed


def _pack_bits(values: Array, width: int, group: int) -> Array:
    """The inverse of ggml._bits."""
    parts = values.astype(np.uint8).reshape(len(values), -1, 8 // width, group)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(parts << shifts, axis=2).reshape(len(values), -1)


def _q8_0(x: Floats, out: Array) -> None:
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(scale)
    # Halves away from zero, as C's roundf.
    size = np.abs(scaled)
    whole = np.floor(size)
    out["qs"] = np.sign(scaled) * (whole + np.floor(2 * (size - whole)))
    out["d"] = scale[:, 0]


def _symmetric(x: Floats, bits: int) -> tuple[Floats, Array]:
    """Scale (n) and integers 0..2^bits - 1 with zero in the middle: the largest weight becomes -2^(bits - 1)."""
    half = 1 << (bits - 1)
    most = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    scale = most / np.float32(-half)
    values = np.trunc(x * _inverse(scale) + np.float32(half + 0.5)).astype(np.uint8).clip(0, 2 * half - 1)
    return scale[:, 0], values


def _q4_0(x: Floats, out: Array) -> None:
    out["d"], values = _symmetric(x, 4)
    out["qs"] = _pack_nibbles(values, 16)


def _q5_0(x: Floats, out: Array) -> None:
    out["d"], values = _symmetric(x, 5)
    out["qs"] = _pack_nibbles(values & 15, 16)
    out["qh"] = np.packbits(values >> 4, axis=1, bitorder="little")


def _best_affine(x: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum (n, both >= 0) of x (n, 32) ~ scale q - minimum with q in 0..15, least squares."""
    low = np.minimum(x.min(axis=1), 0)
    span = x.max(axis=1) - low
    sum_x, sum_xx = x.sum(axis=1), (x * x).sum(axis=1)
    count = np.float32(x.shape[1])
    best = span / 15, -low, np.full(len(x), np.inf, np.float32)

    def fit(inverse: Floats, minimum: Floats) -> None:
        """Try the integers that this line rounds to, with the line that fits them best."""
        nonlocal best
        q = np.clip(np.rint((x + minimum[:, None]) * inverse[:, None]), 0, 15)
        sum_q, sum_qq, sum_qx = q.sum(axis=1), (q * q).sum(axis=1), (q * x).sum(axis=1)
        across = count * sum_qq - sum_q * sum_q
        slope = (count * sum_qx - sum_q * sum_x) * _inverse(across)
        shift = (sum_qx * sum_q - sum_qq * sum_x) * _inverse(across)
        # A minimum below zero cannot be stored: the best line through zero then.
        through = shift < 0
        slope = np.where(through, sum_qx * _inverse(sum_qq), slope)
        shift = np.where(through, np.float32(0), shift)
        error = sum_xx - 2 * (slope * sum_qx - shift * sum_x)
        error += slope * slope * sum_qq - 2 * slope * shift * sum_q + count * shift * shift
        better = (error < best[2]) & (across > 0) & (slope > 0)
        best = tuple(np.where(better, new, old) for new, old in zip((slope, shift, error), best, strict=True))

    for step in Q4_K_STEPS:
        fit((15 + step) * _inverse(span), -low)
    for _ in range(Q4_K_ROUNDS):
        fit(_inverse(best[0]), best[1])
    return best[0], best[1]


def _q4_k(x: Floats, out: Array) -> None:
    parts = x.reshape(-1, 32)
    scale, minimum = (each.reshape(-1, 8) for each in _best_affine(parts))
    out["d"] = scale.max(axis=1) / 63
    out["dmin"] = minimum.max(axis=1) / 63
    d, dmin = out["d"].astype(np.float32)[:, None], out["dmin"].astype(np.float32)[:, None]
    scales = np.clip(np.rint(scale * _inverse(d)), 0, 63)
    mins = np.clip(np.rint(minimum * _inverse(dmin)), 0, 63)
    step = (d * scales)[:, :, None]
    values = np.clip(np.rint((x.reshape(-1, 8, 32) + (dmin * mins)[:, :, None]) * _inverse(step)), 0, 15)
    s, m = scales.astype(np.uint8), mins.astype(np.uint8)
    out["scales"][:, :4] = s[:, :4] | ((s[:, 4:] >> 4) << 6)
    out["scales"][:, 4:8] = m[:, :4] | ((m[:, 4:] >> 4) << 6)
    out["scales"][:, 8:] = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    out["qs"] = _pack_nibbles(values.reshape(-1, 256), 32)


def _best_symmetric(x: Floats, half: int) -> Floats:
    """Scale (n, either sign) of x (n, m) ~ scale q with q in -half..half - 1, least squares."""
    most = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    scale = most[:, 0] / np.float32(-half)
    gain = np.zeros(len(x), np.float32)
    for step in Q6_K_STEPS:
        q = np.clip(np.rint(x * (-(half + step) * _inverse(most))), -half, half - 1)
        sum_qx, sum_qq = (q * x).sum(axis=1), (q * q).sum(axis=1)
        slope = sum_qx * _inverse(sum_qq)
        better = slope * sum_qx > gain  # the squared error is sum_xx less this
        gain = np.where(better, slope * sum_qx, gain)
        scale = np.where(better, slope, scale)
    return scale


def _q6_k(x: Floats, out: Array) -> None:
    scale = _best_symmetric(x.reshape(-1, 16), 32).reshape(-1, 16)
    most = np.take_along_axis(scale, np.abs(scale).argmax(axis=1, keepdims=True), axis=1)
    out["d"] = most[:, 0] / -128
    d = out["d"].astype(np.float32)[:, None]
    scales = np.clip(np.rint(scale * _inverse(d)), -128, 127)
    step = (d * scales)[:, :, None]
    values = np.clip(np.rint(x.reshape(-1, 16, 16) * _inverse(step)), -32, 31).reshape(-1, 256) + 32
    values = values.astype(np.uint8)
    out["scales"] = scales
    out["ql"] = _pack_nibbles(values & 15, 64)
    out["qh"] = _pack_bits(values >> 4, 2, 32)


ENCODERS: dict[str, Callable[[Floats, Array], None]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q5_0": _q5_0, "Q4_K": _q4_k, "Q6_K": _q6_k,
}  # fmt: skip

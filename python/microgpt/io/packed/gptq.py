"""GPTQ's and AWQ's four tensors: NAME.qweight, NAME.qzeros, NAME.scales, and GPTQ's NAME.g_idx.

Both keep matrices as (in, out). GPTQ packs codes along in, zero points along out, each as a stream of bits; its first
format stores zero points less one. AWQ packs both along out, eight to a word in the order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..stored import Stored
from .common import FLOATS, Array, Packed, Rows, fields, pop_parts, refuse, stream, whole_number, words

AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # the field in which a word has its first, second, ... number
GPTQ_BITS = (2, 3, 4, 8)


def opened(weights: Mapping[str, Stored], settings: Mapping[str, Any], where: str) -> dict[str, Stored]:
    """Each quantized matrix of GPTQ as one tensor NAME.weight."""
    bits = whole_number(settings, "bits", 2, 8, where)
    if bits not in GPTQ_BITS:
        raise ConfigError(f"{where}: bits expected {', '.join(map(str, GPTQ_BITS))}, got {bits}")
    version = settings.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        raise ConfigError(f"{where}: checkpoint_format expected gptq or gptq_v2, got {str(version)[:40]!r}")
    less = 1 if version == "gptq" else 0
    result = dict(weights)
    for name in _names(weights):
        qweight, qzeros, scales, places = pop_parts(
            result, name, {"qweight": ("int32",), "qzeros": ("int32",), "scales": FLOATS, "g_idx": ("int32",)}, where,
            ("g_idx",),
        )  # fmt: skip
        assert qweight is not None and qzeros is not None and scales is not None
        inner, group = _sizes(qweight, scales, qweight.shape[0] * 32 // bits, settings, where, name)
        groups, n = scales.shape
        if qweight.shape != (inner * bits // 32, n) or qzeros.shape != (groups, -(-n * bits // 32)):
            raise refuse(
                where, name, f"qweight {qweight.shape}, qzeros {qzeros.shape} do not fit scales {scales.shape}"
            )
        order = None
        if places is not None:
            if places.shape != (inner,):
                raise refuse(where, name, f"g_idx expected ({inner},), got {places.shape}")
            order = places.array().astype(np.int32)
            if order.min() < 0 or order.max() >= groups:
                raise refuse(where, name, f"g_idx expected 0 to {groups - 1}, got {order.min()} to {order.max()}")
            if np.array_equal(order, np.arange(inner) // group):
                order = None

        def codes(start: int, stop: int, stored: Stored = qweight) -> Array:
            return stream(words(stored.array()[:, start:stop].T), bits)

        def zeros(start: int, stop: int, stored: Stored = qzeros) -> Array:
            found = stream(words(stored.array()), bits)[:, start:stop]
            return np.ascontiguousarray(found.T).astype(np.float32) + np.float32(less)

        made = Packed((n, inner), bits, group, codes, _across(scales), scales.dtype, zeros, order=order, whole=True)
        result[f"{name}.weight"] = made.stored()
    return result


def awq_opened(weights: Mapping[str, Stored], settings: Mapping[str, Any], where: str) -> dict[str, Stored]:
    """Each quantized matrix of AWQ as one tensor NAME.weight."""
    bits = whole_number({"bits": settings.get("bits", settings.get("w_bit"))}, "bits", 4, 4, where)
    version = str(settings.get("version", "gemm")).lower()
    if version != "gemm":
        raise ConfigError(f"{where}: version expected 'gemm', got {version[:40]!r}")
    result = dict(weights)
    for name in _names(weights):
        qweight, qzeros, scales = pop_parts(
            result, name, {"qweight": ("int32",), "qzeros": ("int32",), "scales": FLOATS}, where
        )
        assert qweight is not None and qzeros is not None and scales is not None
        inner, group = _sizes(qweight, scales, qweight.shape[0], settings, where, name)
        groups, n = scales.shape
        if n % 8 or qweight.shape != (inner, n // 8) or qzeros.shape != (groups, n // 8):
            raise refuse(
                where, name, f"qweight {qweight.shape}, qzeros {qzeros.shape} do not fit scales {scales.shape}"
            )

        def codes(start: int, stop: int, stored: Stored = qweight) -> Array:
            return _columns(stored, start, stop)

        def zeros(start: int, stop: int, stored: Stored = qzeros) -> Array:
            return _columns(stored, start, stop).astype(np.float32)

        made = Packed((n, inner), bits, group, codes, _across(scales), scales.dtype, zeros, whole=True)
        result[f"{name}.weight"] = made.stored()
    return result


def _columns(stored: Stored, start: int, stop: int) -> Array:
    """Columns of what AWQ packs, as rows."""
    first, last = start // 8, -(-stop // 8)
    packed = words(stored.array()[:, first:last])
    found = fields(packed, 4).reshape(len(packed), -1, 8)[:, :, AWQ_PLACES].reshape(len(packed), -1)
    return np.ascontiguousarray(found[:, start - 8 * first : stop - 8 * first].T)


def _names(weights: Mapping[str, Stored]) -> list[str]:
    return [name.removesuffix(".qweight") for name in weights if name.endswith(".qweight")]


def _sizes(
    qweight: Stored, scales: Stored, inner: int, settings: Mapping[str, Any], where: str, name: str
) -> tuple[int, int]:
    """Columns of a matrix, and how many share a scale: `group_size`, -1 for all."""
    group = settings.get("group_size", settings.get("q_group_size"))
    if type(group) is not int or not (group == -1 or 1 <= group <= 1 << 20):
        raise ConfigError(f"{where}: group_size expected -1 or 1 to {1 << 20}, got {str(group)[:40]!r}")
    group = inner if group == -1 else min(group, inner)
    if len(qweight.shape) != 2 or len(scales.shape) != 2 or not inner or scales.shape[0] != -(-inner // group):
        raise refuse(where, name, f"qweight {qweight.shape} does not fit scales {scales.shape} of groups of {group}")
    return inner, group


def _across(scales: Stored) -> Rows:
    """Scales (groups, N) as rows (N, groups) in float32."""
    return lambda start, stop: np.ascontiguousarray(scales.array()[:, start:stop].T).astype(np.float32)

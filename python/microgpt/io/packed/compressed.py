"""compressed-tensors: NAME.weight_packed (or whole int8 numbers as NAME.weight) with NAME.weight_scale beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..stored import Stored
from .common import FLOATS, Array, Packed, Rows, fields, pop_parts, refuse, stream, whole_number, words

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")
OTHERS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "weight_observer")  # of activations


def opened(weights: Mapping[str, Stored], settings: Mapping[str, Any], where: str) -> dict[str, Stored]:
    """Each quantized matrix as one tensor NAME.weight."""
    groups = settings.get("config_groups")
    kinds = {str(each.get("format")) for each in groups.values() if isinstance(each, dict) and each.get("format")} if (
        isinstance(groups, dict)) else set()  # fmt: skip
    for kind in kinds or {str(settings.get("format"))}:
        if kind not in (*FORMATS, "dense"):
            raise ConfigError(f"{where}: format expected {', '.join(FORMATS)}, got {kind[:40]!r}")
    bits_of = _bits(groups, where)
    result = dict(weights)
    for name in [name.removesuffix(".weight_scale") for name in weights if name.endswith(".weight_scale")]:
        for other in OTHERS:
            result.pop(f"{name}.{other}", None)
        if f"{name}.weight_packed" in weights:
            result[f"{name}.weight"] = _packed(result, name, bits_of, where)
        else:
            result[f"{name}.weight"] = _whole(result, name, where)
    return result


def _bits(groups: Any, where: str) -> list[int]:
    """The numbers of bits that the configuration names."""
    found = []
    for each in groups.values() if isinstance(groups, dict) else ():
        weights = each.get("weights") if isinstance(each, dict) else None
        if isinstance(weights, dict):
            if weights.get("type", "int") != "int":
                raise ConfigError(f"{where}: weights of type {str(weights.get('type'))[:40]!r}: expected int")
            found.append(whole_number(weights, "num_bits", 2, 8, where))
    return sorted(set(found))


def _packed(result: dict[str, Stored], name: str, bits_of: list[int], where: str) -> Stored:
    packed, shape, scales, zeros, places = pop_parts(
        result, f"{name}", {"weight_packed": ("int32",), "weight_shape": ("int64", "int32"), "weight_scale": FLOATS,
        "weight_zero_point": ("int32",), "weight_g_idx": ("int32", "int64")}, where,
        ("weight_zero_point", "weight_g_idx"),
    )  # fmt: skip
    assert packed is not None and shape is not None and scales is not None
    if shape.shape != (2,) or len(packed.shape) != 2 or len(scales.shape) != 2:
        raise refuse(where, name, f"weight_packed {packed.shape}, weight_shape {shape.shape}, scales {scales.shape}")
    n, inner = (int(each) for each in shape.array())
    groups = scales.shape[1]
    if not (0 < n == packed.shape[0] == scales.shape[0] and 0 < inner <= 32 * packed.shape[1] and groups):
        raise refuse(where, name, f"weight_packed {packed.shape} and scales {scales.shape} do not fit ({n}, {inner})")
    # Fields used to stay within words of 32 bits; they are one stream of bits today. For 4 and 8 bits that is the same.
    fitting = [(bits, dense) for bits in bits_of for dense, count in (
        (True, -(-inner * bits // 32)), (False, -(-inner // (32 // bits)))) if count == packed.shape[1]]  # fmt: skip
    if not fitting or len({bits for bits, _ in fitting}) > 1:
        raise refuse(where, name, f"{packed.shape[1]} words do not hold {inner} numbers of {bits_of} bits")
    bits, dense = fitting[0]
    group = -(-inner // groups)
    order = None
    if places is not None:
        order = places.array().astype(np.int32)
        if order.shape != (inner,) or order.min() < 0 or order.max() >= groups:
            raise refuse(where, name, f"weight_g_idx expected {inner} numbers of 0 to {groups - 1}")
    split = stream if dense else fields
    rows = packed.rows or (lambda start, stop: packed.array()[start:stop])

    def codes(start: int, stop: int) -> Array:
        return split(words(rows(start, stop)), bits)[:, :inner]

    points: Rows | None = None
    if zeros is not None:
        if len(zeros.shape) != 2 or zeros.shape[1] != groups:
            raise refuse(where, name, f"weight_zero_point {zeros.shape} does not fit {groups} groups")
        counts = [-(-n * bits // 32), -(-n // (32 // bits))]  # of the two ways, the weight's own first
        ways = list(zip(counts, (stream, fields), strict=True))[:: 1 if dense else -1]
        apart = next((way for count, way in ways if count == zeros.shape[0]), None)
        if apart is None:
            raise refuse(where, name, f"weight_zero_point {zeros.shape} does not fit {n} rows")

        def points(start: int, stop: int) -> Array:
            found = apart(words(zeros.array().T), bits)[:, start:stop]
            return np.ascontiguousarray(found.T).astype(np.float32)

    made = Packed(
        (n, inner), bits, group, codes, _floats(scales), scales.dtype, points, offset=1 << (bits - 1), order=order
    )
    return made.stored()


def _whole(result: dict[str, Stored], name: str, where: str) -> Stored:
    weight, scales, zeros = pop_parts(
        result, name, {"weight": ("int8",), "weight_scale": FLOATS, "weight_zero_point": ("int8",)}, where,
        ("weight_zero_point",),
    )  # fmt: skip
    assert weight is not None and scales is not None
    if len(weight.shape) != 2 or len(scales.shape) != 2 or scales.shape[0] != weight.shape[0] or not scales.shape[1]:
        raise refuse(where, name, f"weight {weight.shape} and scales {scales.shape}")
    n, inner = weight.shape
    group = -(-inner // scales.shape[1])
    if zeros is not None and zeros.shape != scales.shape:
        raise refuse(where, name, f"weight_zero_point {zeros.shape} does not fit scales {scales.shape}")
    rows = weight.rows or (lambda start, stop: weight.array()[start:stop])

    def codes(start: int, stop: int) -> Array:
        return rows(start, stop).view(np.uint8) ^ np.uint8(128)

    points: Rows | None = None
    if zeros is not None:

        def points(start: int, stop: int) -> Array:
            return zeros.array()[start:stop].astype(np.float32) + np.float32(128)

    return Packed((n, inner), 8, group, codes, _floats(scales), scales.dtype, points, offset=128).stored()


def _floats(stored: Stored) -> Rows:
    rows = stored.rows or (lambda start, stop: stored.array()[start:stop])
    return lambda start, stop: rows(start, stop).astype(np.float32)

"""MLX's affine triples: NAME.weight, NAME.scales, NAME.biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ConfigError, FormatError
from ..stored import Stored
from .common import FLOATS, Array, Packed, Rows, stream, whole_number


def opened(weights: Mapping[str, Stored], config: Mapping[str, Any], where: str) -> dict[str, Stored]:
    """Each triple as one tensor. `config.json` has group_size and bits in `quantization`, for all or for a NAME."""
    settings = config.get("quantization", config.get("quantization_config"))
    names = [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]
    if not names:
        return dict(weights)
    if not isinstance(settings, dict):
        raise ConfigError(f"{where}: the weights are quantized, but config.json has no 'quantization'")
    result = dict(weights)
    for name in names:
        own = settings.get(name)
        bits, group = _setting(own if isinstance(own, dict) else settings, f"{where}: quantization")
        parts = [result.pop(f"{name}.{part}", None) for part in ("weight", "scales", "biases")]
        packed, scales, biases = parts
        if packed is None or scales is None or biases is None:
            raise FormatError(f"{where}: {name} expected weight, scales and biases")
        if packed.dtype != "uint32" or len(packed.shape) != 2 or scales.shape != biases.shape or not packed.shape[1]:
            raise FormatError(f"{where}: {name}: weight {packed.dtype} {packed.shape}, scales {scales.shape}, biases "
                              f"{biases.shape} do not make a quantized matrix")  # fmt: skip
        if scales.dtype not in FLOATS or biases.dtype != scales.dtype:
            raise FormatError(f"{where}: {name}: scales {scales.dtype} and biases {biases.dtype}: expected one of "
                              f"{', '.join(FLOATS)}")  # fmt: skip
        rows, count = packed.shape
        columns = count * 32 // bits
        if columns * bits != count * 32 or columns % group or scales.shape != (rows, columns // group):
            raise FormatError(f"{where}: {name}: {count} words of {bits} bits a row do not fit {scales.shape} scales "
                              f"of {group} numbers each")  # fmt: skip
        made = Packed(
            (rows, columns), bits, group, _codes(packed, bits), floats(scales), scales.dtype, minimums=floats(biases)
        )
        result[f"{name}.weight"] = made.stored()
    return result


def _setting(values: Mapping[str, Any], where: str) -> tuple[int, int]:
    mode = values.get("mode", "affine")
    if mode != "affine":
        raise ConfigError(f"{where}: mode expected 'affine', got {str(mode)[:40]!r}")
    return whole_number(values, "bits", 2, 8, where), whole_number(values, "group_size", 1, 1 << 16, where)


def rows_of(stored: Stored) -> Rows:
    """Rows of a tensor as they lie in the file."""
    return stored.rows if stored.rows is not None else lambda start, stop: stored.array()[start:stop]


def floats(stored: Stored) -> Rows:
    """Rows as float32."""
    rows = rows_of(stored)
    return lambda start, stop: rows(start, stop).astype(np.float32)


def _codes(packed: Stored, bits: int) -> Rows:
    rows = rows_of(packed)

    def codes(start: int, stop: int) -> Array:
        return stream(rows(start, stop), bits)

    return codes

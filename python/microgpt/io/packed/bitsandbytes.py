"""bitsandbytes' 4-bit weights: NAME.weight (bytes), its absmax and quant_map, and with double quantization nested ones.

Blocks run over the matrix row after row; a byte has two codes, the upper half first. Double quantization keeps absmax
as codes of 8 bits: absmax = nested_quant_map[code] * nested_absmax + offset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..stored import Stored
from .common import Array, Packed, pop_parts, refuse, whole_number

KINDS = ("nf4", "fp4")
NESTED = 256  # absmax that share a nested one, as a rule
STATE = "quant_state.bitsandbytes__"


def opened(weights: Mapping[str, Stored], settings: Mapping[str, Any], where: str) -> dict[str, Stored]:
    """Each quantized matrix as one tensor of its name."""
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        raise ConfigError(f"{where}: bitsandbytes' 8-bit weights are not read; 4-bit ones are")
    result = dict(weights)
    for key in [key for key in weights if f".{STATE}" in key]:
        name, kind = key.split(f".{STATE}", 1)
        if kind not in KINDS:
            raise ConfigError(f"{where}: {name}: expected {' or '.join(KINDS)}, got {kind[:40]!r}")
        result[name] = _matrix(result, name, kind, where)
    return result


def _matrix(result: dict[str, Stored], name: str, kind: str, where: str) -> Stored:
    nested_parts = ("nested_absmax", "nested_quant_map")
    state, absmax, table, nested, nested_table = pop_parts(
        result, name, {f"{STATE}{kind}": ("uint8",), "absmax": ("uint8", "float32"), "quant_map": ("float32",),
        "nested_absmax": ("float32",), "nested_quant_map": ("float32",)}, where, nested_parts,
    )  # fmt: skip
    weight = result.pop(name, None)
    assert state is not None and absmax is not None and table is not None
    if weight is None or weight.dtype != "uint8" or table.shape != (16,):
        raise refuse(where, name, "expected bytes and a quant_map of 16 numbers")
    values = _state(state, where, name)
    block = whole_number(values, "blocksize", 1, 1 << 20, f"{where}: {name}")
    shape = values.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(s) is int and 0 < s < 1 << 31 for s in shape)):
        raise refuse(where, name, f"shape expected two sizes, got {str(shape)[:40]!r}")
    n, inner = shape
    blocks = -(-n * inner // block)
    if weight.size != -(-n * inner // 2) or absmax.shape != (blocks,):
        raise refuse(
            where, name, f"{weight.size} bytes and {absmax.shape} absmax do not fit {n} x {inner} in blocks of {block}"
        )
    double = absmax.dtype == "uint8"
    if double != (nested is not None) or double != (nested_table is not None):
        raise refuse(where, name, "absmax of 8 bits expected nested_absmax and nested_quant_map, and no others do")

    def scale_of() -> Array:
        """absmax (blocks) as float32."""
        found = absmax.array()
        if nested is None or nested_table is None:
            return found
        spread = nested.array()[np.arange(blocks) // outer]
        return nested_table.array()[found] * spread + np.float32(offset)

    offset, outer = 0.0, 1
    if nested is not None and nested_table is not None:
        outer = whole_number(values, "nested_blocksize", 1, 1 << 20, f"{where}: {name}")
        offset = values.get("nested_offset", 0.0)
        if not isinstance(offset, (int, float)) or nested_table.shape != (256,):
            raise refuse(where, name, "expected a nested_offset and a nested_quant_map of 256 numbers")
        if nested.shape != (-(-blocks // outer),):
            raise refuse(where, name, f"nested_absmax {nested.shape} does not fit {blocks} blocks of {outer}")

    def codes(start: int, stop: int) -> Array:
        first, last = start * inner, stop * inner
        packed = weight.array().reshape(-1)[first // 2 : -(-last // 2)]
        both = np.stack([packed >> 4, packed & np.uint8(15)], axis=1).reshape(-1)
        return both[first % 2 :][: last - first].reshape(stop - start, inner)

    values_of = table.array()
    if inner % block == 0:

        def scales(start: int, stop: int) -> Array:
            return scale_of().reshape(n, -1)[start:stop]

        inside = None
        if nested is not None and nested_table is not None and outer == NESTED:
            inside = (lambda a, b: absmax.array().reshape(n, -1)[a:b]), nested_table.array(), offset, nested.array()
        return Packed((n, inner), 4, block, codes, scales, "float32", table=values_of, nested=inside).stored()

    def rows(start: int, stop: int) -> Array:  # blocks go on in the next row
        scale = scale_of()[np.arange(start * inner, stop * inner) // block].reshape(stop - start, inner)
        found: Array = values_of[codes(start, stop)] * scale
        return found

    return Stored((n, inner), "float32", lambda: rows(0, n), rows)


def _state(stored: Stored, where: str, name: str) -> dict[str, Any]:
    try:
        values = json.loads(stored.array().reshape(-1).tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise refuse(where, name, f"its quant_state is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise refuse(where, name, "its quant_state expected a JSON object")
    return values

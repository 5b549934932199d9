"""What a layer asks to be remembered for each sequence. The pool owns the memory; layers only declare."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import ConfigError, nearest

ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "int8": 1}
KV_TYPES = {"f32": "float32", "bf16": "bfloat16", "int8": "int8"}  # as users name what a cache may hold


def kv_type(name: str | None) -> str | None:
    """float32, bfloat16 or int8 of f32, bf16 or int8; None of None. Raises ConfigError."""
    if name is not None and name not in KV_TYPES:
        raise ConfigError(f"kv_dtype: expected {', '.join(KV_TYPES)}, got {name!r}{nearest(str(name), KV_TYPES)}")
    return None if name is None else KV_TYPES[name]


@dataclass(frozen=True)
class KVSpec:
    """Keys and values of every past token, which the layer computes in `dtype`.

    `stored`: what they are kept as where that is another type; int8 has a float32 scale for each token and head.
    `fixed`: the layer itself works on what is stored (differential attention joins values), so that keeps its type.
    """

    kv_heads: int
    k_dim: int
    v_dim: int
    dtype: str
    stored: str | None = None
    fixed: bool = False

    def kept(self, kv_dtype: str | None) -> KVSpec:
        """The same, stored as float32, bfloat16 or int8 (None: as it is computed)."""
        other = None if self.fixed or kv_dtype == self.dtype else kv_dtype
        return replace(self, stored=other)

    def bytes(self, tokens: int) -> int:
        """Memory of a sequence."""
        numbers = tokens * self.kv_heads * (self.k_dim + self.v_dim)
        scales = 2 * tokens * self.kv_heads * ITEM["float32"] if self.stored == "int8" else 0
        return numbers * ITEM[self.stored or self.dtype] + scales


@dataclass(frozen=True)
class RecurrentSpec:
    """Arrays that have the same size at any length: (name, shape, dtype) each. They begin as zeros."""

    arrays: tuple[tuple[str, tuple[int, ...], str], ...]

    def bytes(self, tokens: int) -> int:
        """Memory of a sequence, whatever its length."""
        return sum(math.prod(shape) * ITEM[dtype] for _, shape, dtype in self.arrays)


StateSpec = KVSpec | RecurrentSpec

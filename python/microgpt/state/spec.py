"""What a layer asks to be remembered for each sequence. The pool owns the memory; layers only declare."""

from __future__ import annotations

import math
from dataclasses import dataclass

ITEM = {"float64": 8, "float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class KVSpec:
    """Keys and values of every past token."""

    kv_heads: int
    k_dim: int
    v_dim: int
    dtype: str

    def bytes(self, tokens: int) -> int:
        """Memory of a sequence."""
        return tokens * self.kv_heads * (self.k_dim + self.v_dim) * ITEM[self.dtype]


@dataclass(frozen=True)
class RecurrentSpec:
    """Arrays that have the same size at any length: (name, shape, dtype) each. They begin as zeros."""

    arrays: tuple[tuple[str, tuple[int, ...], str], ...]

    def bytes(self, tokens: int) -> int:
        """Memory of a sequence, whatever its length."""
        return sum(math.prod(shape) * ITEM[dtype] for _, shape, dtype in self.arrays)


StateSpec = KVSpec | RecurrentSpec

"""What a layer asks to be remembered for each sequence. The pool owns the memory; layers only declare."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KVSpec:
    """Keys and values of every past token."""

    kv_heads: int
    k_dim: int
    v_dim: int
    dtype: str

    def bytes_per_token(self) -> int:
        """Memory of one token."""
        return self.kv_heads * (self.k_dim + self.v_dim) * {"float64": 8, "float32": 4, "bfloat16": 2}[self.dtype]

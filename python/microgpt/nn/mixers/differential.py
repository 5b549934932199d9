"""Differential attention: the difference of two softmax attentions over the same values (arXiv:2410.05258)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ... import ops
from ...state.spec import KVSpec
from ...tensors import Tensor
from ..checks import number, require
from ..context import Ctx
from ..module import Parameter
from ..place import Place
from ..spec import Shapes
from . import mixer
from .attention import Attention, AttentionSpec


@dataclass(frozen=True)
class DifferentialSpec(AttentionSpec):
    """Differential attention (Ye et al. 2024, arXiv:2410.05258) in DiffLlama's layout: the heads' second half is
    subtracted from the first, times a learned lambda; both see values twice as wide. `eps` of the norm that follows."""

    kind: ClassVar[str] = "differential"
    eps: float = 1e-5
    lambda_std: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kv_heads % 2 == 0, "differential kv_heads", "an even number", self.kv_heads)
        number("differential eps", self.eps, 0.0)
        number("differential lambda_std", self.lambda_std, 0.0)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        return super().shapes(width) | {f"lambda_{x}": (self.head_dim,) for x in ("q1", "k1", "q2", "k2")}

    def flops(self, context: int) -> int:
        """FLOPs of a token that sees `context` others, beyond its weights."""
        return 6 * self.heads * self.head_dim * min(context, self.window or context)

    def cache_bytes(self, stored: str) -> int:
        """As attention's, but never int8: what is stored is what values are joined of."""
        return super().cache_bytes("bfloat16" if stored == "int8" else stored)


@mixer(DifferentialSpec)
class Differential(Attention):
    """Heads h and h + H/2 are a pair; both read values that are twice a head wide, two key/value heads' side by side.

    Keys and values are cached as plain attention's, and values are joined at each call.
    """

    spec: DifferentialSpec

    def __init__(self, spec: DifferentialSpec, place: Place) -> None:
        super().__init__(spec, place)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            Parameter((spec.head_dim,), place.dtype, std=spec.lambda_std) for _ in range(4)
        )
        self.start = 0.8 - 0.6 * math.exp(-0.3 * place.index)  # section 2.1

    def state_spec(self) -> KVSpec:
        """As attention's, in the type that values are joined in."""
        return replace(super().state_spec(), fixed=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx) -> Tensor:
        """q (T, H, K), all keys and values (rows, G, K) -> (T, H/2, 2K)."""
        half, pairs = self.spec.kv_heads // 2, self.spec.heads // 2
        joined = ops.concat([v[:, :half], v[:, half:]], axis=2)
        y = super().attend(q, k, ops.concat([joined, joined], axis=1), ctx)
        one, two = (ops.exp((a * b).sum()) for a, b in ((self.lambda_q1, self.lambda_k1),
                                                        (self.lambda_q2, self.lambda_k2)))  # fmt: skip
        z: Tensor = ops.rms_norm(y[:, :pairs] - y[:, pairs:] * (one - two + self.start), eps=self.spec.eps)
        return z * (1.0 - self.start)

"""Differential attention: the difference of two softmax attentions over the same values (arXiv:2410.05258)."""

from __future__ import annotations

import math

from ... import ops
from ...tensor import Tensor
from ..context import Ctx
from ..module import Parameter
from ..spec import DifferentialSpec
from . import MIXERS
from .attention import Attention


class Differential(Attention):
    """Heads h and h + H/2 are a pair; both read values that are twice a head wide, two key/value heads' side by side.

    Keys and values are cached as plain attention's, and values are joined at each call.
    """

    spec: DifferentialSpec

    def __init__(
        self, spec: DifferentialSpec, width: int, index: int, std: float, out_std: float, dtype: str, max_positions: int
    ) -> None:
        super().__init__(spec, width, index, std, out_std, dtype, max_positions)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            Parameter((spec.head_dim,), dtype, std=spec.lambda_std) for _ in range(4)
        )
        self.start = 0.8 - 0.6 * math.exp(-0.3 * index)  # section 2.1

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx) -> Tensor:
        """q (T, H, K), all keys and values (rows, G, K) -> (T, H/2, 2K)."""
        half, pairs = self.spec.kv_heads // 2, self.spec.heads // 2
        joined = ops.concat([v[:, :half], v[:, half:]], axis=2)
        y = super().attend(q, k, ops.concat([joined, joined], axis=1), ctx)
        one, two = (ops.exp((a * b).sum()) for a, b in ((self.lambda_q1, self.lambda_k1),
                                                        (self.lambda_q2, self.lambda_k2)))  # fmt: skip
        z: Tensor = ops.rms_norm(y[:, :pairs] - y[:, pairs:] * (one - two + self.start), eps=self.spec.eps)
        return z * (1.0 - self.start)


MIXERS.add(DifferentialSpec.kind, Differential)

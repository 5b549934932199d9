"""Softmax attention: MHA, GQA, MQA; rotary, ALiBi or no positions; causal, bidirectional or sliding window."""

from __future__ import annotations

from ... import ops
from ...state.spec import KVSpec
from ...tensor import Tensor, full, wide
from ..context import Ctx
from ..linear import Linear, project
from ..module import Module, Parameter
from ..norm import HeadNorm, Norm
from ..positions import alibi_array, rope_tables, temperature_table
from ..spec import AttentionSpec
from . import MIXERS


class Attention(Module):
    """q, k, v projections, positions, attention over the packed sequences of ctx.layout, output projection."""

    def __init__(
        self, spec: AttentionSpec, width: int, index: int, std: float, out_std: float, dtype: str, max_positions: int
    ) -> None:
        self.spec = spec
        self.index = index
        self.max_positions = max_positions
        q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q = Linear(width, q_width, spec.bias, std, dtype)
        self.k = Linear(width, kv_width, spec.bias, std, dtype)
        self.v = Linear(width, kv_width, spec.bias, std, dtype)
        self.gate = Linear(width, q_width, False, std, dtype) if spec.gate else None
        self.o = Linear(q_width, width, spec.out_bias, out_std, dtype)
        if spec.qk_norm is not None:
            self.q_norm, self.k_norm = self._norm(spec.heads, dtype), self._norm(spec.kv_heads, dtype)
        self.sinks = Parameter((spec.heads,), dtype, std=std) if spec.sinks else None

    def _norm(self, heads: int, dtype: str) -> Norm | HeadNorm:
        norm, over = self.spec.qk_norm, self.spec.qk_norm_over
        assert norm is not None
        if over == "heads":
            return HeadNorm(norm, heads, self.spec.head_dim, dtype)
        return Norm(norm, self.spec.head_dim * (heads if over == "width" else 1), dtype)

    def state_spec(self) -> KVSpec:
        """What a sequence must remember of this layer."""
        return KVSpec(self.spec.kv_heads, self.spec.head_dim, self.spec.head_dim, self.q.weight.dtype)

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec = self.spec
        q, k, v, *gates = project(x, ctx, [self.q, self.k, self.v, *([self.gate] if self.gate else [])])
        if spec.clip is not None:
            q, k, v = (_clip(each, spec.clip) for each in (q, k, v))
        q = q.reshape(-1, spec.heads, spec.head_dim)
        k = k.reshape(-1, spec.kv_heads, spec.head_dim)
        v = v.reshape(-1, spec.kv_heads, spec.head_dim)
        q, k = self._place(q, k, ctx)
        if ctx.states is not None:
            k, v = ctx.states.update(self.index, k, v)
        y = self.attend(q, k, v, ctx).reshape(-1, spec.heads * spec.head_dim)
        if gates:
            y = y * ops.sigmoid(gates[0])
        return self.o(y, ctx, residual=residual)

    def _place(self, q: Tensor, k: Tensor, ctx: Ctx) -> tuple[Tensor, Tensor]:
        """Norms and positions of queries and keys."""
        spec, positions = self.spec, ctx.layout.positions
        if spec.qk_norm is not None and not spec.qk_norm_last:
            q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        if spec.rope is not None:
            cos, sin = rope_tables(spec.rope, spec.head_dim, self.max_positions, wide(q.dtype))
            q = ops.rope(q, positions, cos, sin, interleaved=spec.rope.interleaved)
            k = ops.rope(k, positions, cos, sin, interleaved=spec.rope.interleaved)
        if spec.qk_norm is not None and spec.qk_norm_last:
            q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        if spec.temperature is not None:
            factors = ops.embedding(temperature_table(*spec.temperature, self.max_positions, q.dtype), positions)
            q = q * factors.reshape(-1, 1, 1)
        return q, k

    def _normed(self, x: Tensor, norm: Norm | HeadNorm) -> Tensor:
        if self.spec.qk_norm_over == "width":
            return norm(x.reshape(x.shape[0], -1)).reshape(*x.shape)
        return norm(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx) -> Tensor:
        """q (T, H, K), all keys and values (rows, G, K) -> (T, H, K)."""
        spec, layout = self.spec, ctx.layout
        mask = ctx.mask or spec.mask
        alibi = alibi_array(spec.heads, spec.alibi_scale, wide(q.dtype)) if spec.alibi else None
        where = (layout.q_start, layout.k_start, layout.k_len)
        options = {"scale": spec.scale, "causal": mask.causal, "window": mask.window, "soft_cap": spec.soft_cap,
                   "alibi": alibi}  # fmt: skip
        if self.sinks is not None:
            y: Tensor = ops.sink_attention(q, k, v, self.sinks, *where, **options)
        else:
            y = ops.attention(q, k, v, *where, **options)
        return y


def _clip(x: Tensor, bound: float) -> Tensor:
    y: Tensor = ops.maximum(ops.minimum(x, full((), bound, x.dtype)), full((), -bound, x.dtype))
    return y


MIXERS.add(AttentionSpec.kind, Attention)

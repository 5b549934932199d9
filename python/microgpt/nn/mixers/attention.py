"""Softmax attention: MHA, GQA, MQA; rotary, ALiBi or no positions; causal, bidirectional or sliding window."""

from __future__ import annotations

from ... import ops
from ...state.spec import KVSpec
from ...tensor import Tensor, wide
from ..context import Ctx
from ..linear import Linear, project
from ..module import Module
from ..positions import alibi_array, rope_tables
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
        self.q = Linear(width, spec.heads * spec.head_dim, spec.bias, std, dtype)
        self.k = Linear(width, spec.kv_heads * spec.head_dim, spec.bias, std, dtype)
        self.v = Linear(width, spec.kv_heads * spec.head_dim, spec.bias, std, dtype)
        self.o = Linear(spec.heads * spec.head_dim, width, spec.out_bias, out_std, dtype)

    def state_spec(self) -> KVSpec:
        """What a sequence must remember of this layer."""
        return KVSpec(self.spec.kv_heads, self.spec.head_dim, self.spec.head_dim, self.q.weight.dtype)

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec, layout = self.spec, ctx.layout
        q, k, v = project(x, ctx, [self.q, self.k, self.v])
        q = q.reshape(-1, spec.heads, spec.head_dim)
        k = k.reshape(-1, spec.kv_heads, spec.head_dim)
        v = v.reshape(-1, spec.kv_heads, spec.head_dim)
        if spec.rope is not None:
            cos, sin = rope_tables(spec.rope, spec.head_dim, self.max_positions, wide(x.dtype))
            q = ops.rope(q, layout.positions, cos, sin, interleaved=spec.rope.interleaved)
            k = ops.rope(k, layout.positions, cos, sin, interleaved=spec.rope.interleaved)
        if ctx.states is not None:
            k, v = ctx.states.update(self.index, k, v)
        mask = ctx.mask or spec.mask
        y = ops.attention(
            q,
            k,
            v,
            layout.q_start,
            layout.k_start,
            layout.k_len,
            scale=spec.scale,
            causal=mask.causal,
            window=mask.window,
            soft_cap=spec.soft_cap,
            alibi=alibi_array(spec.heads, wide(x.dtype)) if spec.alibi else None,
        )
        return self.o(y.reshape(-1, spec.heads * spec.head_dim), ctx, residual=residual)


MIXERS.add(AttentionSpec.kind, Attention)

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
        own = spec.kv_from is None
        self.k = Linear(width, kv_width, spec.bias, std, dtype) if own else None
        self.v = Linear(width, kv_width, spec.bias, std, dtype) if own else None
        self.gate = Linear(width, q_width, False, std, dtype) if spec.gate else None
        self.o = Linear(q_width, width, spec.out_bias, out_std, dtype)
        if spec.qk_norm is not None:
            self.q_norm = self._norm(spec.heads, dtype)
            self.k_norm = self._norm(spec.kv_heads, dtype) if own else None
        self.sinks = Parameter((spec.heads,), dtype, std=std) if spec.sinks else None
        self.shared = False  # whether a later block uses these keys and values

    @property
    def crosses(self) -> bool:
        """Whether keys and values go from here to another block or the other way."""
        return self.shared or self.spec.kv_from is not None

    def _norm(self, heads: int, dtype: str) -> Norm | HeadNorm:
        norm, over = self.spec.qk_norm, self.spec.qk_norm_over
        assert norm is not None
        if over == "heads":
            return HeadNorm(norm, heads, self.spec.head_dim, dtype)
        return Norm(norm, self.spec.head_dim * (heads if over == "width" else 1), dtype)

    def state_spec(self) -> KVSpec:
        """What a sequence must remember of this layer."""
        return KVSpec(self.spec.kv_heads if self.k else 0, self.spec.head_dim, self.spec.head_dim, self.q.weight.dtype)

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec = self.spec
        if self.k is None or self.v is None:
            q, *gates = project(x, ctx, [self.q, *([self.gate] if self.gate else [])])
            k, v = ctx.extra[f"kv{spec.kv_from}"]
        else:
            q, k, v, *gates = project(x, ctx, [self.q, self.k, self.v, *([self.gate] if self.gate else [])])
            k, v = (self._heads(each, spec.kv_heads) for each in (k, v))
            k = self._place(k, self.k_norm if spec.qk_norm else None, ctx)
            if ctx.states is not None:
                k, v = ctx.states.update(self.index, k, v)
            if self.shared:
                ctx.extra[f"kv{self.index}"] = k, v
        q = self._place(self._heads(q, spec.heads), self.q_norm if spec.qk_norm else None, ctx)
        if spec.temperature is not None:
            table = temperature_table(*spec.temperature, self.max_positions, q.dtype)
            q = q * ops.embedding(table, ctx.layout.positions).reshape(-1, 1, 1)
        y = self.attend(q, k, v, ctx).reshape(-1, spec.heads * spec.head_dim)
        if gates:
            y = y * ops.sigmoid(gates[0])
        return self.o(y, ctx, residual=residual)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(T, heads * K) -> (T, heads, K), within the bound."""
        bound = self.spec.clip
        return (x if bound is None else _clip(x, bound)).reshape(-1, heads, self.spec.head_dim)

    def _place(self, x: Tensor, norm: Norm | HeadNorm | None, ctx: Ctx) -> Tensor:
        """Norm and rotary positions of queries or keys, in the spec's order."""
        rope, last = self.spec.rope, self.spec.qk_norm_last
        if norm is not None and not last:
            x = self._normed(x, norm)
        if rope is not None:
            cos, sin = rope_tables(rope, self.spec.head_dim, self.max_positions, wide(x.dtype))
            x = ops.rope(x, ctx.layout.positions, cos, sin, interleaved=rope.interleaved)
        return self._normed(x, norm) if norm is not None and last else x

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

"""Softmax attention: MHA, GQA, MQA; rotary, ALiBi or no positions; causal, bidirectional or sliding window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ... import _kernels as kernels
from ... import ops
from ...state.spec import ITEM, KVSpec
from ...tensors import Tensor, full, wide
from ..checks import number, require, whole
from ..context import Ctx
from ..linear import Linear, project, side_by_side
from ..module import Module, Parameter
from ..norm import HeadNorm, Norm
from ..place import Place
from ..positions import alibi_array, covered, rope_tables, temperature_table
from ..rope import RopeSpec
from ..spec import LayerSpec, Mask, NormSpec, Shapes, below, linear
from . import mixer


@dataclass(frozen=True)
class AttentionSpec(LayerSpec):
    """Softmax attention: `kv_heads` = heads is MHA, fewer GQA, 1 MQA. `scale` None is 1/sqrt(head_dim).

    `alibi`: distances times `alibi_scale` and the slopes of their paper. `clip` bounds q, k and v. `qk_norm` normalizes
    queries and keys, before rotary positions or after (`qk_norm_last`): "head" with one weight vector for all heads,
    "heads" with one each, "width" over all heads together. `sinks`: one learned score a head that takes part in the
    softmax and has no value (gpt-oss). `gate` multiplies the output by sigmoid(x W) before its projection.
    `kv_from`: the number of an earlier block whose keys and values are used instead of own ones (arXiv:2405.12981).
    `temperature` (beta, n) multiplies queries at position p by 1 + beta * log(1 + floor(p / n)) (Llama 4).
    """

    kind: ClassVar[str] = "attention"
    heads: int
    head_dim: int
    kv_heads: int
    bias: bool = True
    out_bias: bool = True
    causal: bool = True
    window: int | None = None
    rope: RopeSpec | None = None
    alibi: bool = False
    soft_cap: float | None = None
    scale: float | None = None
    alibi_scale: float = 1.0
    clip: float | None = None
    qk_norm: NormSpec | None = None
    qk_norm_over: str = "head"
    qk_norm_last: bool = False
    sinks: bool = False
    gate: bool = False
    temperature: tuple[float, int] | None = None
    kv_from: int | None = None

    def __post_init__(self) -> None:
        whole("attention heads", self.heads, 1, 2**16)
        whole("attention head_dim", self.head_dim, 1, 2**16)
        whole("attention kv_heads", self.kv_heads, 1, self.heads)
        require(
            self.heads % self.kv_heads == 0, "attention kv_heads", f"a divisor of the {self.heads} heads", self.kv_heads
        )
        if self.window is not None:
            whole("attention window", self.window)
        for name in ("soft_cap", "clip", "scale"):
            if getattr(self, name) is not None:
                number(f"attention {name}", getattr(self, name), 1e-6)
        number("attention alibi_scale", self.alibi_scale, 1e-6)
        places = ("head", "heads", "width")
        require(self.qk_norm_over in places, "attention qk_norm_over", "head, heads or width", self.qk_norm_over)
        if self.kv_from is not None:
            whole("attention kv_from", self.kv_from, 0, 1023)
        if self.temperature is not None:
            require(len(self.temperature) == 2, "attention temperature", "two numbers", self.temperature)
            number("attention temperature", self.temperature[0], 0.0)
            whole("attention temperature", self.temperature[1])
            object.__setattr__(self, "temperature", tuple(self.temperature))
        if self.rope is not None:
            self.rope.check(self.head_dim)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        own = self.kv_from is None
        made = linear("q", width, q, self.bias)
        if own:
            made |= linear("k", width, kv, self.bias) | linear("v", width, kv, self.bias)
        if self.gate:
            made |= linear("gate", width, q, False)
        made |= linear("o", q, width, self.out_bias)
        if self.qk_norm is not None:
            for name, heads in (("q_norm", self.heads), *([("k_norm", self.kv_heads)] if own else [])):
                if self.qk_norm_over == "heads":
                    made |= {
                        f"{name}.{each}": (heads, *shape) for each, shape in self.qk_norm.shapes(self.head_dim).items()
                    }
                else:
                    made |= below(
                        name, self.qk_norm.shapes(self.head_dim * (heads if self.qk_norm_over == "width" else 1))
                    )
        return made | ({"sinks": (self.heads,)} if self.sinks else {})

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: q, k, v, their norms, the two that turned, what attention gave."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (2 + 2 * self.gate) * q + 2 * kv + (q + kv) * ((self.rope is not None) + (self.qk_norm is not None))

    def flops(self, context: int) -> int:
        """FLOPs of a token that sees `context` others, beyond its weights."""
        return 4 * self.heads * self.head_dim * min(context, self.window or context)

    def state_numbers(self) -> int:
        """Numbers of cached keys and values a token."""
        return 2 * self.kv_heads * self.head_dim if self.kv_from is None else 0

    def cache_bytes(self, stored: str) -> int:
        """Of cached keys and values a token; int8 has a float32 scale for each and head."""
        scales = 2 * self.kv_heads * ITEM["float32"] if stored == "int8" and self.kv_from is None else 0
        return super().cache_bytes(stored) + scales

    @property
    def mask(self) -> Mask:
        """The layer's own mask."""
        return Mask(self.causal, self.window)


@mixer(AttentionSpec)
class Attention(Module):
    """q, k, v projections, positions, attention over the packed sequences of ctx.layout, output projection."""

    slot = 0  # its number among the layers that remember something

    def __init__(self, spec: AttentionSpec, place: Place) -> None:
        width, std, out_std, dtype = place.width, place.std, place.out_std, place.dtype
        self.spec = spec
        self.index = place.index
        self.max_positions = place.max_positions
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
        packed = self._packed(x, ctx)
        if packed is not None:
            return self.o(packed, ctx, residual=residual)
        if self.k is None or self.v is None:
            q, *gates = project(x, ctx, [self.q, *([self.gate] if self.gate else [])])
            k, v = ctx.extra[f"kv{spec.kv_from}"]
            tables = self._tables(q.dtype, ctx)
        else:
            q, k, v, *gates = project(x, ctx, [self.q, self.k, self.v, *([self.gate] if self.gate else [])])
            k, v = (self._heads(each, spec.kv_heads) for each in (k, v))
            tables = self._tables(k.dtype, ctx)
            k = self._place(k, self.k_norm if spec.qk_norm else None, ctx, tables)
            if ctx.states is not None:
                k, v = ctx.states.update(self.slot, k, v)
            if self.shared:
                ctx.extra[f"kv{self.index}"] = k, v
        q = self._place(self._heads(q, spec.heads), self.q_norm if spec.qk_norm else None, ctx, tables)
        if spec.temperature is not None:
            table = temperature_table(*spec.temperature, self.max_positions, q.dtype)
            q = q * ops.embedding(table, ctx.layout.positions).reshape(-1, 1, 1)
        y = self.attend(q, k, v, ctx).reshape(-1, spec.heads * spec.head_dim)
        if gates:
            y = y * ops.sigmoid(gates[0])
        return self.o(y, ctx, residual=residual)

    def _packed(self, x: Tensor, ctx: Ctx) -> Tensor | None:
        """(T, H * K) of q, k and v from one product; None where something stands between or weights lie apart."""
        spec = self.spec
        if ctx.states is not None or self.crosses or not self._plain or self.k is None or self.v is None:
            return None
        joined = side_by_side([self.q, self.k, self.v])
        if joined is None:
            return None
        qkv = ops.linear(x, *joined).reshape(-1, spec.heads + 2 * spec.kv_heads, spec.head_dim)
        where, options = self._options(qkv.dtype, ctx)
        y: Tensor = ops.packed_attention(qkv, spec.kv_heads, *where, *options)
        return y.reshape(-1, spec.heads * spec.head_dim)

    @property
    def _plain(self) -> bool:
        """Whether attention takes q, k and v as they were projected."""
        spec = self.spec
        changes = (spec.gate, spec.clip, spec.qk_norm, spec.rope, spec.temperature, self.sinks)
        own = all(
            getattr(method, "__func__", None) is of
            for method, of in ((self.attend, Attention.attend), (self._place, Attention._place))
        )
        return own and all(each is None or each is False for each in changes)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(T, heads * K) -> (T, heads, K), within the bound."""
        bound = self.spec.clip
        return (x if bound is None else _clip(x, bound)).reshape(-1, heads, self.spec.head_dim)

    def _tables(self, dtype: str, ctx: Ctx) -> tuple[Any, Any] | None:
        """Cosines and sines of the positions that a call can reach, where there are rotary positions."""
        if self.spec.rope is None:
            return None
        length = covered(ctx.layout.reach, self.max_positions)
        return rope_tables(self.spec.rope, self.spec.head_dim, self.max_positions, length, wide(dtype))

    def _place(self, x: Tensor, norm: Norm | HeadNorm | None, ctx: Ctx, tables: tuple[Any, Any] | None) -> Tensor:
        """Norm and rotary positions of queries or keys, in the spec's order."""
        rope, last = self.spec.rope, self.spec.qk_norm_last
        if norm is not None and not last:
            x = self._normed(x, norm)
        if rope is not None and tables is not None:
            x = ops.rope(x, ctx.layout.positions, *tables, rope.interleaved)
        return self._normed(x, norm) if norm is not None and last else x

    def _normed(self, x: Tensor, norm: Norm | HeadNorm) -> Tensor:
        if self.spec.qk_norm_over == "width":
            return norm(x.reshape(-1, x.shape[1] * x.shape[2])).reshape(*x.shape)
        return norm(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx) -> Tensor:
        """q (T, H, K), all keys and values (rows, G, K) -> (T, H, K)."""
        where, options = self._options(q.dtype, ctx)
        y: Tensor
        if self.sinks is not None:
            names = ("scale", "causal", "window", "soft_cap", "alibi")
            y = ops.sink_attention(q, k, v, self.sinks, *where, **dict(zip(names, options, strict=True)))
        else:
            y = ops.attention(q, k, v, *where, *options)
        return y

    def _options(self, dtype: str, ctx: Ctx) -> tuple[tuple[kernels.Array, ...], tuple[Any, ...]]:
        """What the ops take after keys and values: whose they are; scale, mask, cap and slopes."""
        spec, layout = self.spec, ctx.layout
        mask = ctx.mask or spec.mask
        alibi = alibi_array(spec.heads, spec.alibi_scale, wide(dtype)) if spec.alibi else None
        where = (layout.q_start, layout.k_start, layout.k_len)
        return where, (spec.scale, mask.causal, mask.window, spec.soft_cap, alibi)


def _clip(x: Tensor, bound: float) -> Tensor:
    y: Tensor = ops.maximum(ops.minimum(x, full((), bound, x.dtype)), full((), -bound, x.dtype))
    return y

"""RWKV-7's time mixing (Peng et al. 2025, arXiv:2503.14456)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ... import ops
from ...state.spec import RecurrentSpec
from ...tensors import Tensor, full, wide
from ..checks import number, require, whole
from ..context import Ctx
from ..linear import Linear
from ..module import Module, Parameter
from ..place import Place
from ..shift import mixed, shifted
from ..spec import LayerSpec, Shapes, linear
from . import mixer
from .mamba2 import widened

STRIDE = 32  # tokens from one kept state to the next
FLOOR = math.exp(-0.5)  # the logarithm of a decay is at least -exp(-0.5)


@dataclass(frozen=True)
class Rwkv7Spec(LayerSpec):
    """S_t = (diag(w) - k' a k'^T) S + k v^T and y = S^T r in `heads` of `head_dim`, each normed, with r k bonus v
    added, gated and projected. r, w, k, v, a and the gate come from the token and the one before, in shares that are
    learned; w, a, v's share of the first layer's v and the gate through `decay`, `rate`, `value` and `gate` numbers.

    `first`: its v is what later layers mix in; it has no share itself. The heads together are as wide as the stream.
    """

    kind: ClassVar[str] = "rwkv7"
    heads: int
    head_dim: int
    decay: int
    rate: int
    value: int
    gate: int
    first: bool = True
    out_bias: bool = False
    eps: float = 64e-5

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "decay", "rate", "value", "gate"):
            whole(f"rwkv7 {name}", getattr(self, name), 1, 2**16)
        number("rwkv7 eps", self.eps, 0.0)

    @property
    def ranks(self) -> dict[str, int]:
        """Widths of its projections of low rank."""
        own = {} if self.first else {"v": self.value}
        return {"w": self.decay, "a": self.rate, **own, "g": self.gate}

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        inner = self.heads * self.head_dim
        made: Shapes = {f"x_{name}": (width,) for name in "rwkvag"}
        for name in "rkv":
            made |= linear(name, width, inner, False)
        for name, rank in self.ranks.items():
            made |= linear(f"{name}1", width, rank, False) | linear(f"{name}2", rank, inner, False)
        made |= {f"{name}0": (inner,) for name in self.ranks if name != "g"}
        made |= {"k_k": (inner,), "k_a": (inner,), "r_k": (self.heads, self.head_dim)}
        return made | {"norm_weight": (inner,), "norm_bias": (inner,)} | linear("o", inner, width, self.out_bias)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: mixed streams, projections and what is made of them, kept states."""
        inner = self.heads * self.head_dim
        return 13 * width + 30 * inner + 3 * sum(self.ranks.values()) + inner * self.head_dim // STRIDE

    def flops(self, context: int) -> int:
        """FLOPs of a token beyond its weights: the state is read twice, multiplied, and added to twice."""
        return 9 * self.heads * self.head_dim**2

    def fixed_state_numbers(self) -> int:
        """The state, and the last token."""
        return self.heads * self.head_dim * (self.head_dim + 1)

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """See LayerSpec."""
        # A small eps would bend the loss beyond finite differences where a head's output is nearly constant.
        return {"plain": cls(width // 8, 8, 5, 4, 3, 6, eps=1e-2)}


@mixer(Rwkv7Spec)
class Rwkv7(Module):
    """Token shift, projections, the recurrence, norm, bonus and gate, output projection."""

    slot = 0  # its number among the layers that remember something
    crosses = True  # v goes to later layers

    def __init__(self, spec: Rwkv7Spec, place: Place) -> None:
        width, std, dtype = place.width, place.std, place.dtype
        inner = spec.heads * spec.head_dim
        require(inner == width, "rwkv7 heads", f"heads that are {width} wide together, as the stream", inner)
        self.spec = spec
        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = (
            Parameter((width,), dtype, fill=0.5) for _ in range(6)
        )
        self.r, self.k, self.v = (Linear(width, inner, False, std, dtype) for _ in range(3))
        for name, rank in spec.ranks.items():
            setattr(self, f"{name}1", Linear(width, rank, False, std, dtype))
            setattr(self, f"{name}2", Linear(rank, inner, False, std, dtype))
            if name != "g":
                # Decays begin spread from slow to fast, rates in the middle, shares of the first v small.
                spread = [-6.0 + 6.0 * i / max(1, inner - 1) for i in range(inner)]
                values = {"w": spread, "a": [0.0] * inner, "v": [1.0] * inner}[name]
                setattr(self, f"{name}0", Parameter((inner,), dtype, values=values))
        self.k_k = Parameter((inner,), dtype, fill=0.85)
        self.k_a = Parameter((inner,), dtype, fill=1.0)
        self.r_k = Parameter((spec.heads, spec.head_dim), dtype, std=std)
        self.norm_weight = Parameter((inner,), dtype, fill=1.0)
        self.norm_bias = Parameter((inner,), dtype)
        self.o = Linear(inner, width, spec.out_bias, place.out_std, dtype)

    def state_spec(self) -> RecurrentSpec:
        """What a sequence must remember of this layer."""
        spec, sums = self.spec, wide(self.o.weight.dtype)
        width = self.x_r.size
        return RecurrentSpec((("state", (spec.heads, spec.head_dim, spec.head_dim), sums), ("last", (1, width), sums)))

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec, q_start = self.spec, ctx.layout.q_start
        states = {} if ctx.states is None else ctx.states.recurrent(self.slot)
        before = shifted(x, q_start, states.get("last"))
        xr, xw, xk, xv, xa, xg = (
            mixed(x, before, share) for share in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        )
        r, k, v = self.r(xr, ctx), self.k(xk, ctx), self.v(xv, ctx)
        decay = widened(self._low("w", ops.tanh(self._lower("w", xw, ctx)), ctx)) + widened(self._base("w"))
        w = ops.exp(ops.sigmoid(decay) * -FLOOR)
        rate = ops.sigmoid(self._low("a", self._lower("a", xa, ctx), ctx) + self._base("a"))
        gate = self._low("g", ops.sigmoid(self._lower("g", xg, ctx)), ctx)
        if spec.first:
            ctx.extra["rwkv7 v"] = v
        else:
            share = ops.sigmoid(self._low("v", self._lower("v", xv, ctx), ctx) + self._base("v"))
            v = v + (ctx.extra["rwkv7 v"] - v) * share
        unit = self._unit(k * self.k_k)
        k = k * ((rate - 1.0) * self.k_a + 1.0)
        r, w, k, v, rate = (self._heads(each) for each in (r, w, k, v, rate))
        y = ops.rwkv7(r, w, k, v, -unit, unit * rate, q_start, state=states.get("state"))
        y = ops.layer_norm(y, eps=spec.eps).reshape(-1, spec.heads * spec.head_dim) * self.norm_weight + self.norm_bias
        bonus = ((r * k * self.r_k).sum(2, keepdims=True) * v).reshape(-1, spec.heads * spec.head_dim)
        return self.o((y + bonus) * gate, ctx, residual=residual)

    def _lower(self, name: str, x: Tensor, ctx: Ctx) -> Tensor:
        y: Tensor = getattr(self, f"{name}1")(x, ctx)
        return y

    def _low(self, name: str, x: Tensor, ctx: Ctx) -> Tensor:
        y: Tensor = getattr(self, f"{name}2")(x, ctx)
        return y

    def _base(self, name: str) -> Tensor:
        y: Tensor = getattr(self, f"{name}0")
        return y

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.spec.heads, self.spec.head_dim)

    def _unit(self, x: Tensor) -> Tensor:
        """Heads of length one; a head of zeros stays."""
        x = self._heads(x)
        length = (x * x).sum(2, keepdims=True)
        tiny = 1e-24  # of the square, as torch.nn.functional.normalize has it
        y: Tensor = x * ops.rsqrt(ops.maximum(length, full((), tiny, x.dtype)))
        return y

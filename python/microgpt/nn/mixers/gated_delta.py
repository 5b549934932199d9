"""Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464) as Qwen3-Next has it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ... import ops
from ...state.spec import RecurrentSpec
from ...tensors import Tensor, full, wide
from ..checks import require, whole
from ..context import Ctx
from ..conv import CONV_ERROR, Conv, conv
from ..linear import Linear, project
from ..module import Module, Parameter
from ..norm import Norm
from ..place import Place
from ..spec import LayerSpec, NormSpec, Shapes, linear
from . import mixer
from .mamba2 import CHUNK, time_steps, widened


@dataclass(frozen=True)
class GatedDeltaSpec(LayerSpec):
    """q, k (`key_heads` of `key_dim`) and v (`heads` of `value_dim`) through convolutions of `taps` tokens and SiLU;
    S_t = e^g S + beta k (v - e^g S^T k)^T, o = S^T q, with q and k of unit length, beta = sigmoid(x W) and
    g = -exp(a_log) softplus(x W + dt_bias); then each head normed and gated by silu(z), and projected.
    """

    kind: ClassVar[str] = "gated_delta"
    # As Mamba-2's: chains over the keys and over 64 rows that a chunk solves for, on a state that keeps its norm.
    piece_error: ClassVar[float] = 2 * 8 * 10 * 2.0**-24 + CONV_ERROR
    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    taps: int = 4
    norm: NormSpec = field(default_factory=lambda: NormSpec("rms", 1e-6, bias=False))

    def __post_init__(self) -> None:
        for name in ("heads", "key_heads", "key_dim", "value_dim"):
            whole(f"gated_delta {name}", getattr(self, name), 1, 2**16)
        whole("gated_delta taps", self.taps, 2, 2**8)
        divides = self.heads % self.key_heads == 0
        require(divides, "gated_delta key_heads", f"a divisor of the {self.heads} heads", self.key_heads)
        require(self.norm is not None and self.norm.kind == "rms", "gated_delta norm", "an RMS norm", self.norm)

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of what goes through convolutions."""
        keys = self.key_heads * self.key_dim
        return {"q": keys, "k": keys, "v": self.heads * self.value_dim}

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        values = self.widths["v"]
        made: Shapes = {}
        for name, outputs in {**self.widths, "z": values, "b": self.heads, "a": self.heads}.items():
            made |= linear(name, width, outputs, False)
        for name, channels in self.widths.items():
            made |= conv(f"conv_{name}", channels, self.taps, False)
        made |= {"dt_bias": (self.heads,), "a_log": (self.heads,)}
        made |= {f"norm.{name}": shape for name, shape in self.norm.shapes(self.value_dim).items()}
        return made | linear("o", values, width, False)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: what was projected, convolved, came out, was normed and gated, and
        the kept states."""
        values = self.widths["v"]
        kept = values * self.key_dim // CHUNK
        return 2 * sum(self.widths.values()) + 4 * values + 8 * self.heads + kept

    def flops(self, context: int) -> int:
        """FLOPs of a token beyond its weights: the state is read twice, multiplied, and added to."""
        return 7 * self.widths["v"] * self.key_dim

    def fixed_state_numbers(self) -> int:
        """The state, and the last rows of the convolutions."""
        return self.widths["v"] * self.key_dim + (self.taps - 1) * sum(self.widths.values())

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """See LayerSpec."""
        # A head's first output is q . k times v: near zero, a small eps would bend the loss beyond finite differences.
        norm = NormSpec("rms", 1e-2, bias=False)
        return {"plain": cls(2, 2, 8, 6, norm=norm), "shared": cls(4, 2, 5, 7, taps=3, norm=norm)}


@mixer(GatedDeltaSpec)
class GatedDelta(Module):
    """Projections, convolutions, the gated delta rule, norm and gate, output projection."""

    slot = 0  # its number among the layers that remember something

    def __init__(self, spec: GatedDeltaSpec, place: Place) -> None:
        width, std, dtype = place.width, place.std, place.dtype
        values = spec.widths["v"]
        self.spec = spec
        self.q, self.k, self.v, self.z, self.b, self.a = (
            Linear(width, outputs, False, std, dtype)
            for outputs in (*spec.widths.values(), values, spec.heads, spec.heads)
        )
        self.conv_q, self.conv_k, self.conv_v = (
            Conv(channels, spec.taps, False, dtype) for channels in spec.widths.values()
        )
        self.dt_bias = Parameter((spec.heads,), dtype, values=time_steps(spec.heads))
        # The middles of equal parts of (0, 16), which the paper's code draws from.
        rates = [16.0 * (h + 0.5) / spec.heads for h in range(spec.heads)]
        self.a_log = Parameter((spec.heads,), dtype, values=[math.log(rate) for rate in rates])
        self.norm = Norm(spec.norm, spec.value_dim, dtype)
        self.o = Linear(values, width, False, place.out_std, dtype)

    def state_spec(self) -> RecurrentSpec:
        """What a sequence must remember of this layer."""
        spec, sums = self.spec, wide(self.o.weight.dtype)
        rows = (("conv_" + name, (spec.taps - 1, channels), sums) for name, channels in spec.widths.items())
        return RecurrentSpec((("state", (spec.heads, spec.key_dim, spec.value_dim), sums), *rows))

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec, q_start = self.spec, ctx.layout.q_start
        states = {} if ctx.states is None else ctx.states.recurrent(self.slot)
        *three, z, b, a = project(x, ctx, [self.q, self.k, self.v, self.z, self.b, self.a])
        convs = (("conv_q", self.conv_q), ("conv_k", self.conv_k), ("conv_v", self.conv_v))
        q, k, v = (each(y, q_start, states.get(name)) for (name, each), y in zip(convs, three, strict=True))
        g = softplus(widened(a) + widened(self.dt_bias)) * -ops.exp(widened(self.a_log))
        y = ops.gated_delta(
            *(each.reshape(-1, spec.key_heads, spec.key_dim) for each in (q, k)),
            v.reshape(-1, spec.heads, spec.value_dim), g, ops.sigmoid(b), q_start, normalize=True,
            state=states.get("state"),
        )  # fmt: skip
        y = self.norm(y).reshape(-1, spec.heads * spec.value_dim)
        return self.o(ops.glu(z, y, act="silu"), ctx, residual=residual)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), of an exponential that stays small."""
    size = ops.maximum(x, -x)
    y: Tensor = ops.maximum(x, full((), 0.0, x.dtype)) + ops.log(ops.exp(-size) + 1.0)
    return y

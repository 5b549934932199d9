"""Griffin's recurrent block (De et al. 2024, arXiv:2402.19427): a short convolution and the RG-LRU beside a gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ... import ops
from ...ops.layers import act_code
from ...state.spec import RecurrentSpec
from ...tensors import Tensor, wide
from ..checks import require, whole
from ..context import Ctx
from ..conv import Conv, conv
from ..linear import Linear, project
from ..module import Module, Parameter
from ..place import Place
from ..spec import LayerSpec, Shapes, linear
from . import mixer


@dataclass(frozen=True)
class RgLruSpec(LayerSpec):
    """x, y = projections of the stream to `inner` channels; x goes through a convolution of `taps` tokens and the
    RG-LRU (ops.rg_lru), whose two gates are products with a matrix for each of `heads` groups of channels; times
    act(y), it is projected back.
    """

    kind: ClassVar[str] = "rglru"
    inner: int
    heads: int
    taps: int = 4
    act: str = "gelu_tanh"

    def __post_init__(self) -> None:
        whole("rglru inner", self.inner, 1, 2**20)
        whole("rglru heads", self.heads, 1, self.inner)
        whole("rglru taps", self.taps, 2, 2**8)
        require(self.inner % self.heads == 0, "rglru heads", f"a divisor of the {self.inner} channels", self.heads)
        act_code(self.act)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.inner // self.heads

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made = linear("x", width, self.inner, True) | linear("y", width, self.inner, True)
        made |= conv("conv", self.inner, self.taps, True) | {"decay": (self.inner,)}
        for name in ("input", "recurrent"):
            made |= {
                f"{name}.weight": (self.heads, self.head_dim, self.head_dim),
                f"{name}.bias": (self.heads, self.head_dim),
            }
        return made | linear("o", self.inner, width, True)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: x, y, what was convolved, its heads, gates twice, h, gated."""
        return 9 * self.inner

    def flops(self, context: int) -> int:
        """FLOPs of a token beyond its weights: gates, decay, scale and state."""
        return 16 * self.inner

    def fixed_state_numbers(self) -> int:
        """The state, and the last rows of the convolution."""
        return self.inner * self.taps

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """See LayerSpec."""
        return {"plain": cls(width, 4), "wide": cls(3 * width // 2, 2, taps=3, act="silu")}


class HeadLinear(Module):
    """A product with a matrix of its own for each head, (H, T, K) -> (H, T, K): weight (H, in, out), bias (H, out)."""

    def __init__(self, heads: int, head_dim: int, dtype: str) -> None:
        self.weight = Parameter((heads, head_dim, head_dim), dtype, std=0.1 * head_dim**-0.5)
        self.bias = Parameter((heads, head_dim), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        heads, width = self.bias.shape
        return ops.matmul(x, self.weight) + self.bias.reshape(heads, 1, width)


@mixer(RgLruSpec)
class RgLru(Module):
    """Projections, convolution, gates, recurrence, output projection."""

    slot = 0  # its number among the layers that remember something

    def __init__(self, spec: RgLruSpec, place: Place) -> None:
        width, std, dtype = place.width, place.std, place.dtype
        self.spec = spec
        self.x, self.y = (Linear(width, spec.inner, True, std, dtype) for _ in range(2))
        self.conv = Conv(spec.inner, spec.taps, True, dtype)
        self.input, self.recurrent = (HeadLinear(spec.heads, spec.head_dim, dtype) for _ in range(2))
        self.decay = Parameter((spec.inner,), dtype, values=_decays(spec.inner))
        self.o = Linear(spec.inner, width, True, place.out_std, dtype)

    def state_spec(self) -> RecurrentSpec:
        """What a sequence must remember of this layer."""
        spec, sums = self.spec, wide(self.decay.dtype)
        return RecurrentSpec((("conv", (spec.taps - 1, spec.inner), sums), ("h", (spec.inner,), sums)))

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec, layout = self.spec, ctx.layout
        states = {} if ctx.states is None else ctx.states.recurrent(self.slot)
        x, y = project(x, ctx, [self.x, self.y])
        weight = self.conv.weight.reshape(spec.inner, spec.taps)
        x = ops.causal_conv1d(x, weight, self.conv.bias, q_start=layout.q_start, state=states.get("conv"))
        heads = x.reshape(-1, spec.heads, spec.head_dim).permute(1, 0, 2)
        gates = (gate(heads).permute(1, 0, 2).reshape(-1, spec.inner) for gate in (self.input, self.recurrent))
        h = ops.rg_lru(x, *gates, self.decay, positions=layout.positions, q_start=layout.q_start, state=states.get("h"))
        return self.o(ops.glu(y, h, act=spec.act), ctx, residual=residual)


def _decays(channels: int, low: float = 0.9, high: float = 0.999) -> list[float]:
    """Parameters for which exp(-softplus) runs from `low` to `high`, with even squares."""
    squares = [low**2 + (high**2 - low**2) * (i + 0.5) / channels for i in range(channels)]
    return [math.log(math.expm1(-0.5 * math.log(square))) for square in squares]

"""Short convolution (LFM2, Liquid AI 2025): a causal convolution of a few taps between two gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...state.spec import RecurrentSpec
from ...tensors import Tensor, wide
from ..checks import whole
from ..context import Ctx
from ..conv import CONV_ERROR, Conv, conv
from ..linear import Linear, project
from ..module import Module
from ..place import Place
from ..spec import LayerSpec, Shapes, linear
from . import mixer


@dataclass(frozen=True)
class ShortConvSpec(LayerSpec):
    """(C * conv(B * x)) Wo; B, C and x are projections to `width` channels, each convolved with its own `taps`."""

    kind: ClassVar[str] = "short_conv"
    piece_error: ClassVar[float] = CONV_ERROR
    width: int
    taps: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        whole("short_conv width", self.width)
        whole("short_conv taps", self.taps, 1, 1024)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made: Shapes = {}
        for name in ("gate_in", "gate_out", "inner"):
            made |= linear(name, width, self.width, self.bias)
        return made | conv("conv", self.width, self.taps, self.bias) | linear("out", self.width, width, self.bias)

    @property
    def window(self) -> int:  # type: ignore[override]
        """A token sees as many as there are taps."""
        return self.taps

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: three projections, what is convolved, what comes out, gated."""
        return 6 * self.width

    def fixed_state_numbers(self) -> int:
        """What the last taps but one saw."""
        return (self.taps - 1) * self.width

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """As in LFM2, and with everything else."""
        return {"plain": cls(width), "bias": cls(2 * width, 4, True), "pointwise": cls(width, 1)}


@mixer(ShortConvSpec)
class ShortConv(Module):
    """Remembers the last taps - 1 rows of what it convolves."""

    slot = 0

    def __init__(self, spec: ShortConvSpec, place: Place) -> None:
        width, std, dtype = place.width, place.std, place.dtype
        self.spec = spec
        self.dtype = dtype
        self.gate_in = Linear(width, spec.width, spec.bias, std, dtype)
        self.gate_out = Linear(width, spec.width, spec.bias, std, dtype)
        self.inner = Linear(width, spec.width, spec.bias, std, dtype)
        self.conv = Conv(spec.width, spec.taps, spec.bias, dtype, act="none")
        self.out = Linear(spec.width, width, spec.bias, place.out_std, dtype)

    def state_spec(self) -> RecurrentSpec:
        """What a sequence must remember of this layer."""
        return RecurrentSpec((("last", (self.spec.taps - 1, self.spec.width), wide(self.dtype)),))

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        state = None if ctx.states is None else ctx.states.recurrent(self.slot)["last"]
        gate_in, gate_out, inner = project(x, ctx, [self.gate_in, self.gate_out, self.inner])
        y = self.conv(gate_in * inner, ctx.layout.q_start, state)
        return self.out(gate_out * y, ctx, residual=residual)

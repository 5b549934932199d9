"""RWKV-7's channel mixing (Peng et al. 2025, arXiv:2503.14456)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...state.spec import RecurrentSpec
from ...tensors import Tensor, wide
from ..checks import whole
from ..context import Ctx
from ..linear import Linear
from ..module import Module, Parameter
from ..place import Place
from ..shift import mixed, shifted
from ..spec import LayerSpec, Shapes, linear
from . import feed_forward


@dataclass(frozen=True)
class Rwkv7FfnSpec(LayerSpec):
    """relu(x' W1)^2 W2 with `width` hidden units; x' has a share of the token before. `stream`: the stream's width."""

    kind: ClassVar[str] = "rwkv7_ffn"
    width: int
    stream: int

    def __post_init__(self) -> None:
        whole("rwkv7_ffn width", self.width)
        whole("rwkv7_ffn stream", self.stream)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made: Shapes = {"x_k": (width,)}
        return made | linear("up", width, self.width, False) | linear("down", self.width, width, False)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: the streams, before and after the activation."""
        return 4 * width + 2 * self.width

    def fixed_state_numbers(self) -> int:
        """The last token."""
        return self.stream

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """See LayerSpec."""
        return {"plain": cls(40, width)}


@feed_forward(Rwkv7FfnSpec)
class Rwkv7Ffn(Module):
    """Token shift and an MLP with squared ReLU."""

    slot = 0  # its number among the layers that remember something

    def __init__(self, spec: Rwkv7FfnSpec, place: Place) -> None:
        width, dtype = place.width, place.dtype
        self.spec = spec
        self.x_k = Parameter((width,), dtype, fill=0.5)
        self.up = Linear(width, spec.width, False, place.std, dtype)
        self.down = Linear(spec.width, width, False, place.out_std, dtype)

    def state_spec(self) -> RecurrentSpec:
        """What a sequence must remember of this layer."""
        return RecurrentSpec((("last", (1, self.x_k.size), wide(self.up.weight.dtype)),))

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        state = None if ctx.states is None else ctx.states.recurrent(self.slot)["last"]
        x = mixed(x, shifted(x, ctx.layout.q_start, state), self.x_k)
        return self.down(self.up(x, ctx, act="relu2"), ctx, residual=residual)

"""The two dense feed-forward layers: MLP and gated linear unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ... import ops
from ...ops.layers import act_code
from ...qtensor import QTensor
from ...tensors import Tensor
from ..checks import number, whole
from ..context import Ctx
from ..linear import Linear, project
from ..module import Module
from ..place import Place
from ..spec import LayerSpec, Shapes, linear
from . import feed_forward


@dataclass(frozen=True)
class MlpSpec(LayerSpec):
    """act(x W1) W2 with `width` hidden units."""

    kind: ClassVar[str] = "mlp"
    width: int
    act: str = "gelu_tanh"
    bias: bool = True

    def __post_init__(self) -> None:
        whole("mlp width", self.width)
        act_code(self.act)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        return linear("up", width, self.width, self.bias) | linear("down", self.width, width, self.bias)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: the activation and its slope."""
        return 2 * self.width


@feed_forward(MlpSpec)
class Mlp(Module):
    """act(x W1 + b1) W2 + b2."""

    def __init__(self, spec: MlpSpec, place: Place) -> None:
        width, std, out_std, dtype = place.width, place.std, place.out_std, place.dtype
        self.spec = spec
        self.up = Linear(width, spec.width, spec.bias, std, dtype)
        self.down = Linear(spec.width, width, spec.bias, out_std, dtype)

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        up, down = self.up, self.down
        if any(each.adapters or isinstance(each.weight, QTensor) for each in (up, down)):
            return down(up(x, ctx, act=self.spec.act), ctx, residual=residual)
        y: Tensor = ops.mlp(x, up.weight, down.weight, up.bias, down.bias, residual, self.spec.act)
        return y


@dataclass(frozen=True)
class GluSpec(LayerSpec):
    """(act(x Wg) * x Wu) Wd with `width` hidden units: SwiGLU for silu, GeGLU for gelu. `gate_scale` multiplies x Wg,
    `out_scale` the output (Falcon-H1)."""

    kind: ClassVar[str] = "glu"
    width: int
    act: str = "silu"
    bias: bool = False
    gate_scale: float = 1.0
    out_scale: float = 1.0

    def __post_init__(self) -> None:
        whole("glu width", self.width)
        number("glu gate_scale", self.gate_scale, 1e-9)
        number("glu out_scale", self.out_scale, 1e-9)
        act_code(self.act)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        gate, up = (linear(name, width, self.width, self.bias) for name in ("gate", "up"))
        return gate | up | linear("down", self.width, width, self.bias)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: gate, up and their product."""
        return 3 * self.width

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """With multipliers."""
        return {"scales": cls(24, gate_scale=1.5, out_scale=0.5)}


@feed_forward(GluSpec)
class Glu(Module):
    """(act(x Wg) * x Wu) Wd."""

    def __init__(self, spec: GluSpec, place: Place) -> None:
        width, std, out_std, dtype = place.width, place.std, place.out_std, place.dtype
        self.spec = spec
        self.gate = Linear(width, spec.width, spec.bias, std, dtype)
        self.up = Linear(width, spec.width, spec.bias, std, dtype)
        self.down = Linear(spec.width, width, spec.bias, out_std, dtype)

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec = self.spec
        gate, up = project(x, ctx, [self.gate, self.up])
        if spec.gate_scale != 1.0:
            gate = gate * spec.gate_scale
        hidden = ops.glu(gate, up, spec.act)
        if spec.out_scale == 1.0:
            return self.down(hidden, ctx, residual=residual)
        y = self.down(hidden, ctx) * spec.out_scale
        return y if residual is None else residual + y

"""The two dense feed-forward layers: MLP and gated linear unit."""

from __future__ import annotations

from ... import ops
from ...tensor import Tensor
from ..context import Ctx
from ..linear import Linear, project
from ..module import Module
from ..spec import GluSpec, MlpSpec
from . import FFNS


class Mlp(Module):
    """act(x W1 + b1) W2 + b2."""

    def __init__(self, spec: MlpSpec, width: int, std: float, out_std: float, dtype: str) -> None:
        self.spec = spec
        self.up = Linear(width, spec.width, spec.bias, std, dtype)
        self.down = Linear(spec.width, width, spec.bias, out_std, dtype)

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        return self.down(self.up(x, ctx, act=self.spec.act), ctx, residual=residual)


class Glu(Module):
    """(act(x Wg) * x Wu) Wd."""

    def __init__(self, spec: GluSpec, width: int, std: float, out_std: float, dtype: str) -> None:
        self.spec = spec
        self.gate = Linear(width, spec.width, spec.bias, std, dtype)
        self.up = Linear(width, spec.width, spec.bias, std, dtype)
        self.down = Linear(spec.width, width, spec.bias, out_std, dtype)

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        gate, up = project(x, ctx, [self.gate, self.up])
        return self.down(ops.glu(gate, up, act=self.spec.act), ctx, residual=residual)


FFNS.add(MlpSpec.kind, Mlp)
FFNS.add(GluSpec.kind, Glu)

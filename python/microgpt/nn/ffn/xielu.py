"""The MLP with xIELU, an activation of two learned numbers (Huang & Schlag 2024, arXiv:2411.13010)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ... import ops
from ...tensors import Tensor, full
from ..checks import number, whole
from ..context import Ctx
from ..linear import Linear
from ..module import Module, Parameter
from ..place import Place
from ..spec import LayerSpec, Shapes, linear
from . import feed_forward


@dataclass(frozen=True)
class XieluSpec(LayerSpec):
    """xielu(x W1) W2, whose activation has two learned numbers (Huang & Schlag 2024, arXiv:2411.13010)."""

    kind: ClassVar[str] = "xielu"
    width: int
    bias: bool = False
    beta: float = 0.5

    def __post_init__(self) -> None:
        whole("xielu width", self.width)
        number("xielu beta", self.beta, 0.0)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made = linear("up", width, self.width, self.bias) | linear("down", self.width, width, self.bias)
        return made | {"alpha_p": (1,), "alpha_n": (1,)}

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: the steps of the activation."""
        return 8 * self.width


@feed_forward(XieluSpec)
class XieluMlp(Module):
    """xielu(x W1 + b1) W2 + b2, with a_p = softplus(alpha_p) and a_n = beta + softplus(alpha_n):

    a_p x^2 + beta x for x > 0, a_n (e^x - 1 - x) + beta x elsewhere. Composed of plain ops.
    """

    def __init__(self, spec: XieluSpec, place: Place) -> None:
        width, std, out_std, dtype = place.width, place.std, place.out_std, place.dtype
        self.spec = spec
        self.up = Linear(width, spec.width, spec.bias, std, dtype)
        self.down = Linear(spec.width, width, spec.bias, out_std, dtype)
        self.alpha_p = Parameter((1,), dtype, fill=math.log(math.expm1(0.8)))
        self.alpha_n = Parameter((1,), dtype, fill=math.log(math.expm1(0.8 - spec.beta)) if spec.beta < 0.8 else 0.0)

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        return self.down(self.act(self.up(x, ctx)), ctx, residual=residual)

    def act(self, x: Tensor) -> Tensor:
        """The activation alone."""
        zero = full((), 0.0, x.dtype)
        above, below = ops.maximum(x, zero), ops.minimum(x, zero)
        a_p, a_n = (ops.log(ops.exp(each) + 1.0) for each in (self.alpha_p, self.alpha_n))
        y: Tensor = ops.square(above) * a_p + (ops.exp(below) - 1.0 - below) * (a_n + self.spec.beta)
        return y + x * self.spec.beta

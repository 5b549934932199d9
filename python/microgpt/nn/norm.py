"""LayerNorm and RMSNorm as modules."""

from __future__ import annotations

from .. import ops
from ..tensor import Tensor
from .module import Module, Parameter
from .spec import NormSpec


class Norm(Module):
    """The norm that a NormSpec describes, over a last axis of `width`."""

    def __init__(self, spec: NormSpec, width: int, dtype: str = "float32") -> None:
        self.spec = spec
        self.weight = Parameter((width,), dtype, fill=1.0) if spec.weight else None
        self.bias = Parameter((width,), dtype) if spec.bias else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.spec.kind == "rms":
            y: Tensor = ops.rms_norm(x, self.weight, eps=self.spec.eps)
        else:
            y = ops.layer_norm(x, self.weight, self.bias, eps=self.spec.eps)
        return y

"""LayerNorm and RMSNorm as modules."""

from __future__ import annotations

import dataclasses

from .. import ops
from ..tensors import Tensor
from .module import Module, Parameter
from .spec import NormSpec


class Norm(Module):
    """The norm that a NormSpec describes, over a last axis of `width`."""

    def __init__(self, spec: NormSpec, width: int, dtype: str = "float32") -> None:
        self.spec = spec
        self.weight = Parameter((width,), dtype, fill=0.0 if spec.plus_one else 1.0) if spec.weight else None
        self.bias = Parameter((width,), dtype) if spec.bias else None

    def __call__(self, x: Tensor) -> Tensor:
        weight: Tensor | None = self.weight
        if self.spec.plus_one and weight is not None:
            weight = weight + 1.0
        if self.spec.kind == "rms":
            y: Tensor = ops.rms_norm(x, weight, self.spec.eps)
        else:
            y = ops.layer_norm(x, weight, self.bias, self.spec.eps)
        return y


class HeadNorm(Module):
    """A norm of each head of (T, heads, head_dim) with a weight of its own, (heads, head_dim)."""

    def __init__(self, spec: NormSpec, heads: int, head_dim: int, dtype: str = "float32") -> None:
        self.spec = dataclasses.replace(spec, weight=False, bias=False, plus_one=False)
        fill = 0.0 if spec.plus_one else 1.0
        self.plus_one = spec.plus_one
        self.weight = Parameter((heads, head_dim), dtype, fill=fill) if spec.weight else None
        self.bias = Parameter((heads, head_dim), dtype) if spec.bias else None

    def __call__(self, x: Tensor) -> Tensor:
        norm = ops.rms_norm if self.spec.kind == "rms" else ops.layer_norm
        y: Tensor = norm(x, eps=self.spec.eps)
        if self.weight is not None:
            y = y * (self.weight + 1.0 if self.plus_one else self.weight)
        return y if self.bias is None else y + self.bias

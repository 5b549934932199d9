"""Short causal convolutions, channel by channel, as modules."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..tensors import Tensor
from .module import Module, Parameter
from .spec import Shapes

CONV_ERROR = 0.0  # an element is one chain over its taps, wherever its sequence is cut


def conv(name: str, channels: int, taps: int, bias: bool) -> Shapes:
    """Parameters of a Conv."""
    return {f"{name}.weight": (channels, 1, taps), **({f"{name}.bias": (channels,)} if bias else {})}


class Conv(Module):
    """act(bias + sum of the last `taps` rows times weights); weight is (channels, 1, taps) as in PyTorch."""

    def __init__(self, channels: int, taps: int, bias: bool = True, dtype: str = "float32", act: str = "silu") -> None:
        self.act = act
        # The spread of PyTorch's uniform initial values, whose bound is 1 / sqrt(taps).
        self.weight = Parameter((channels, 1, taps), dtype, std=(3.0 * taps) ** -0.5)
        self.bias = Parameter((channels,), dtype) if bias else None

    def __call__(self, x: Tensor, q_start: Any, state: Any = None) -> Tensor:
        channels, _, taps = self.weight.shape
        weight = self.weight.reshape(channels, taps)
        y: Tensor = ops.causal_conv1d(x, weight, self.bias, q_start=q_start, act=self.act, state=state)
        return y

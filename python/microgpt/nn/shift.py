"""Token shift: what the token before was, as RWKV's layers see it."""

from __future__ import annotations

from typing import Any

from .. import _kernels as k
from .. import ops
from ..tensors import Tensor


def shifted(x: Tensor, q_start: Any, state: Any = None) -> Tensor:
    """(T, D) -> each row's predecessor; of a sequence's first row that is zero, or `state` (S, 1, D), which becomes the
    sequence's last row."""
    weight = k.empty((x.shape[1], 2), x.dtype)  # a convolution that takes the row before
    k.copy(_taps(x.dtype), weight, [x.shape[1], 2], [0, 1])
    y: Tensor = ops.causal_conv1d(x, Tensor(weight), q_start=q_start, state=state)
    return y


def _taps(dtype: str) -> k.Array:
    taps = k.empty((2,), dtype)
    k.fill(taps.view((1,), 0), 1.0)
    k.fill(taps.view((1,), 1), 0.0)
    return taps


def mixed(x: Tensor, before: Tensor, share: Tensor) -> Tensor:
    """x and the token before, `share` (D) of the latter."""
    return x + (before - x) * share

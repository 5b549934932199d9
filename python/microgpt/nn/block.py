"""Block: a mixer and a feed-forward around the residual stream."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..tensor import Tensor
from .context import Ctx
from .ffn import FFNS
from .linear import drop
from .mixers import MIXERS
from .module import Module
from .norm import Norm
from .spec import BlockSpec


class Block(Module):
    """pre: x + f(norm(x)). post: norm(x + f(x)). sandwich: x + norm(f(norm(x))). For f the mixer, then the ffn."""

    def __init__(
        self, spec: BlockSpec, width: int, index: int, std: float, out_std: float, dtype: str, max_positions: int
    ) -> None:
        self.spec = spec
        self.index = index
        mixer: Any = MIXERS.get(spec.mixer.kind)
        ffn: Any = FFNS.get(spec.ffn.kind)
        self.mixer_norm = Norm(spec.norm, width, dtype)
        self.mixer = mixer(spec.mixer, width, index, std, out_std, dtype, max_positions)
        self.ffn_norm = Norm(spec.norm, width, dtype)
        self.ffn = ffn(spec.ffn, width, std, out_std, dtype)
        if spec.placement == "sandwich":
            self.mixer_post_norm = Norm(spec.norm, width, dtype)
            self.ffn_post_norm = Norm(spec.norm, width, dtype)

    def __call__(self, x: Tensor, ctx: Ctx) -> Tensor:
        x = self._add(x, self.mixer, self.mixer_norm, getattr(self, "mixer_post_norm", None), ctx, 0)
        return self._add(x, self.ffn, self.ffn_norm, getattr(self, "ffn_post_norm", None), ctx, 1)

    def _add(self, x: Tensor, layer: Any, norm: Norm, post_norm: Norm | None, ctx: Ctx, half: int) -> Tensor:
        placement, p = self.spec.placement, self.spec.dropout
        inner = x if placement == "post" else norm(x)
        dropping = p > 0.0 and ctx.dropout is not None
        if post_norm is None and not dropping:
            y: Tensor = layer(inner, ctx, residual=x)  # the sum rides along in the layer's last product
        else:
            z = layer(inner, ctx)
            if post_norm is not None:
                z = post_norm(z)
            y = ops.add(x, drop(z, ctx, p, stream=1 + 2 * self.index + half))
        return norm(y) if placement == "post" else y

"""Block: a mixer and a feed-forward around the residual stream."""

from __future__ import annotations

from typing import Any

from ..tensor import Tensor
from .context import Ctx
from .ffn import FFNS
from .linear import drop
from .mixers import MIXERS
from .module import Module
from .norm import Norm
from .spec import BlockSpec


class Block(Module):
    """A BlockSpec's mixer and feed-forward, each as f around the stream x.

    pre: x + f(norm(x)). post: norm(x + f(x)). res_post: x + norm(f(x)). sandwich: x + post_norm(f(norm(x))).
    parallel: x + mixer(norm(x)) + ffn(norm(x)).
    """

    def __init__(
        self, spec: BlockSpec, width: int, index: int, std: float, out_std: float, dtype: str, max_positions: int
    ) -> None:
        self.spec = spec
        self.index = index
        mixer: Any = MIXERS.get(spec.mixer.kind)
        ffn: Any = FFNS.get(spec.ffn.kind)
        self.mixer_norm = None if spec.bare_mixer else Norm(spec.norm, width, dtype)
        self.mixer = mixer(spec.mixer, width, index, std, out_std, dtype, max_positions)
        self.ffn_norm = None if spec.shared_norm else Norm(spec.norm, width, dtype)
        self.ffn = ffn(spec.ffn, width, std, out_std, dtype)
        if spec.placement == "sandwich":
            self.mixer_post_norm = Norm(spec.norm, width, dtype)
            self.ffn_post_norm = Norm(spec.norm, width, dtype)

    def __call__(self, x: Tensor, ctx: Ctx) -> Tensor:
        if self.spec.parallel:
            assert self.mixer_norm is not None
            first = self.mixer_norm(x)
            second = first if self.ffn_norm is None else self.ffn_norm(x)
            return self._add(self._add(x, self.mixer, first, None, ctx, 0), self.ffn, second, None, ctx, 1)
        x = self._half(x, self.mixer, self.mixer_norm, getattr(self, "mixer_post_norm", None), ctx, 0)
        return self._half(x, self.ffn, self.ffn_norm, getattr(self, "ffn_post_norm", None), ctx, 1)

    def _half(self, x: Tensor, layer: Any, norm: Norm | None, post_norm: Norm | None, ctx: Ctx, half: int) -> Tensor:
        placement = self.spec.placement
        if placement == "res_post":
            return self._add(x, layer, x, norm, ctx, half)
        if placement == "post":
            assert norm is not None
            return norm(self._add(x, layer, x, None, ctx, half))
        return self._add(x, layer, x if norm is None else norm(x), post_norm, ctx, half)

    def _add(self, x: Tensor, layer: Any, inner: Tensor, post_norm: Norm | None, ctx: Ctx, half: int) -> Tensor:
        """x + what the layer makes of `inner`, normed, scaled and dropped."""
        scale, p = self.spec.residual_scale, self.spec.dropout
        if post_norm is None and scale == 1.0 and (p == 0.0 or ctx.dropout is None):
            y: Tensor = layer(inner, ctx, residual=x)  # the sum rides along in the layer's last product
            return y
        z: Tensor = layer(inner, ctx)
        if post_norm is not None:
            z = post_norm(z)
        if scale != 1.0:
            z = z * scale
        return x + drop(z, ctx, p, stream=1 + 2 * self.index + half)

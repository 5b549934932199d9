"""Block: a mixer and a feed-forward around the residual stream."""

from __future__ import annotations

from typing import Any

from ..tensors import Tensor
from .context import Ctx
from .ffn import FFNS
from .linear import drop
from .mixers import MIXERS
from .module import Module
from .norm import Norm
from .place import Place
from .spec import BlockSpec


class Block(Module):
    """A BlockSpec's mixer and feed-forward, each as f around the stream x.

    pre: x + f(norm(x)). post: norm(x + f(x)). res_post: x + norm(f(x)). sandwich: x + post_norm(f(norm(x))).
    parallel: x + mixer(norm(x)) + ffn(norm(x)).
    """

    def __init__(self, spec: BlockSpec, place: Place) -> None:
        self.spec = spec
        self.index = place.index
        norms = {name: Norm(spec.norm, place.width, place.dtype) for name in spec.norms}
        mixer: Any = None if spec.mixer is None else MIXERS.get(spec.mixer.kind)
        ffn: Any = None if spec.ffn is None else FFNS.get(spec.ffn.kind)
        self.mixer_norm = norms.get("mixer_norm")
        self.mixer = None if mixer is None else mixer(spec.mixer, place)
        self.ffn_norm = norms.get("ffn_norm")
        self.ffn = None if ffn is None else ffn(spec.ffn, place)
        self.mixer_post_norm, self.ffn_post_norm = (norms.get(f"{half}_post_norm") for half in ("mixer", "ffn"))

    def __call__(self, x: Tensor, ctx: Ctx) -> Tensor:
        if self.spec.parallel:
            assert self.mixer_norm is not None
            first = self.mixer_norm(x)
            second = first if self.ffn_norm is None else self.ffn_norm(x)
            return self._add(self._add(x, self.mixer, first, None, ctx, 0), self.ffn, second, None, ctx, 1)
        if self.mixer is not None:
            x = self._half(x, self.mixer, self.mixer_norm, self.mixer_post_norm, ctx, 0)
        return x if self.ffn is None else self._half(x, self.ffn, self.ffn_norm, self.ffn_post_norm, ctx, 1)

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

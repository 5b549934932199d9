"""Two mixers side by side (Hymba, arXiv:2411.13676; Falcon-H1, arXiv:2507.22448)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...tensors import Tensor
from ..checks import number, require
from ..context import Ctx
from ..module import Module
from ..place import Place
from ..rope import RopeSpec
from ..spec import LayerSpec, Shapes, below
from . import MIXERS, mixer
from .attention import AttentionSpec
from .mamba2 import Mamba2Spec
from .short_conv import ShortConvSpec


@dataclass(frozen=True)
class ParallelSpec(LayerSpec):
    """The sum of what `left` and `right`, specs of mixers, make of the same stream.

    `left_scales` and `right_scales` are two numbers each: what the stream is multiplied by before that mixer, and what
    its output is after it.
    """

    kind: ClassVar[str] = "parallel"
    left: LayerSpec
    right: LayerSpec
    left_scales: tuple[float, float] = (1.0, 1.0)
    right_scales: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            known = isinstance(part, LayerSpec) and part.kind in MIXERS and not part.parts
            require(known, f"parallel {name}", "a mixer of one part", part)
            require(getattr(part, "kv_from", None) is None, f"parallel {name}", "keys and values of its own", "kv_from")
            scales = tuple(getattr(self, f"{name}_scales"))
            require(len(scales) == 2, f"parallel {name}_scales", "two numbers", scales)
            for scale in scales:
                number(f"parallel {name}_scales", scale, 1e-9)
            object.__setattr__(self, f"{name}_scales", scales)

    @property
    def parts(self) -> dict[str, LayerSpec]:
        """See LayerSpec."""
        return {"left": self.left, "right": self.right}

    @property
    def causal(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.causal and self.right.causal

    @property
    def window(self) -> int | None:  # type: ignore[override]
        """The wider window; None where one sees everything."""
        windows = [part.window for part in self.parts.values()]
        return None if None in windows else max(window for window in windows if window is not None)

    @property
    def piece_error(self) -> float:  # type: ignore[override]
        """That of the sum."""
        return self.left.piece_error + self.right.piece_error

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        return below("left", self.left.shapes(width)) | below("right", self.right.shapes(width))

    def idle(self, width: int) -> int:
        """Those of both."""
        return self.left.idle(width) + self.right.idle(width)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: those of both, and the stream once for each of its multiples."""
        multiples = sum(scales[0] != 1.0 for scales in (self.left_scales, self.right_scales))
        return self.left.activations(width) + self.right.activations(width) + multiples * width

    def flops(self, context: int) -> int:
        """FLOPs of a token that sees `context` others, beyond its weights."""
        return self.left.flops(context) + self.right.flops(context)

    def state_numbers(self) -> int:
        """Numbers that a sequence keeps for each token."""
        return self.left.state_numbers() + self.right.state_numbers()

    def cache_bytes(self, stored: str) -> int:
        """Bytes that a sequence keeps for each token."""
        return self.left.cache_bytes(stored) + self.right.cache_bytes(stored)

    def fixed_state_numbers(self) -> int:
        """Numbers that a sequence keeps whatever its length."""
        return self.left.fixed_state_numbers() + self.right.fixed_state_numbers()

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """Falcon-H1's, and two of other kinds."""
        attention = AttentionSpec(2, 8, 1, rope=RopeSpec())
        return {
            "plain": cls(ShortConvSpec(width), attention),
            "scales": cls(Mamba2Spec(3, 6, 8), attention, (1.5, 0.5), (0.8, 1.2)),
        }


@mixer(ParallelSpec)
class Parallel(Module):
    """left(x) + right(x); each keeps its own states."""

    def __init__(self, spec: ParallelSpec, place: Place) -> None:
        self.spec = spec
        made: list[Any] = [MIXERS.get(part.kind) for part in spec.parts.values()]
        self.left, self.right = (each(part, place) for each, part in zip(made, spec.parts.values(), strict=True))

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        y = residual
        for part, (before, after) in ((self.left, self.spec.left_scales), (self.right, self.spec.right_scales)):
            inner = x if before == 1.0 else x * before
            if after == 1.0:
                y = part(inner, ctx, residual=y)  # the sum rides along in the mixer's last product
            else:
                z = part(inner, ctx) * after
                y = z if y is None else y + z
        assert y is not None
        return y

"""Mamba (Gu & Dao 2023, arXiv:2312.00752): a short convolution and the selective scan, gated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ... import ops
from ...state.spec import RecurrentSpec
from ...tensors import Tensor, wide
from ..checks import require, whole
from ..context import Ctx
from ..conv import Conv, conv
from ..linear import Linear, project
from ..module import Module, Parameter
from ..norm import Norm
from ..place import Place
from ..spec import LayerSpec, NormSpec, Shapes, below, linear
from . import mixer
from .mamba2 import time_steps, widened

CHUNK = 32  # tokens from one kept state to the next


@dataclass(frozen=True)
class MambaSpec(LayerSpec):
    """x, z = projections of the stream to `inner` channels; x goes through a convolution of `taps` tokens and SiLU, and
    gives delta (through `rank` numbers), b and c; each channel has `state` states: h = exp(d a) h + d x b,
    d = softplus(delta), a = -exp(a_log); y = (h c + skip x) silu(z) is projected back.

    `norm`: of the `rank` numbers, of b and of c (Jamba; Falcon-Mamba's has no weights).
    """

    kind: ClassVar[str] = "mamba"
    inner: int
    state: int
    rank: int
    taps: int = 4
    bias: bool = False
    conv_bias: bool = True
    norm: NormSpec | None = None

    def __post_init__(self) -> None:
        for name in ("inner", "rank"):
            whole(f"mamba {name}", getattr(self, name), 1, 2**20)
        whole("mamba state", self.state, 1, 2**12)
        whole("mamba taps", self.taps, 2, 2**8)
        if self.norm is not None:
            require(self.norm.kind == "rms" and not self.norm.plus_one, "mamba norm", "a plain RMS norm", self.norm)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made = linear("x", width, self.inner, self.bias) | linear("z", width, self.inner, self.bias)
        made |= conv("conv", self.inner, self.taps, self.conv_bias)
        made |= linear("select", self.inner, self.rank + 2 * self.state, False)
        made |= linear("delta", self.rank, self.inner, True)
        made |= {"a_log": (self.inner, self.state), "skip": (self.inner,)}
        if self.norm is not None:
            for name, size in (("delta_norm", self.rank), ("b_norm", self.state), ("c_norm", self.state)):
                made |= below(name, self.norm.shapes(size))
        return made | linear("out", self.inner, width, self.bias)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: x, z, what was convolved, delta, y; what selects; kept states."""
        selected = self.rank + 2 * self.state
        return 5 * self.inner + (3 if self.norm else 2) * selected + self.inner * self.state // CHUNK

    def flops(self, context: int) -> int:
        """FLOPs of a token beyond its weights: d a, its exponential, d x b, what the state becomes, and its reading."""
        return 7 * self.inner * self.state

    def fixed_state_numbers(self) -> int:
        """The states, and the last rows of the convolution."""
        return self.inner * (self.state + self.taps - 1)

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """See LayerSpec."""
        return {
            "plain": cls(2 * width, 4, 3),
            "normed": cls(width, 5, 2, taps=3, bias=True, conv_bias=False, norm=NormSpec("rms", bias=False)),
            "bare_norm": cls(width + 3, 3, 4, norm=NormSpec("rms", weight=False, bias=False)),
        }


@mixer(MambaSpec)
class Mamba(Module):
    """Projections, convolution, selective scan with its gate, output projection."""

    slot = 0  # its number among the layers that remember something

    def __init__(self, spec: MambaSpec, place: Place) -> None:
        width, std, dtype = place.width, place.std, place.dtype
        self.spec = spec
        self.x, self.z = (Linear(width, spec.inner, spec.bias, std, dtype) for _ in range(2))
        self.conv = Conv(spec.inner, spec.taps, spec.conv_bias, dtype)
        self.select = Linear(spec.inner, spec.rank + 2 * spec.state, False, std, dtype)
        # As its authors have it: delta keeps its variance, and begins between 0.001 and 0.1.
        self.delta = Linear(spec.rank, spec.inner, True, (3.0 * spec.rank) ** -0.5, dtype)
        self.delta.bias = Parameter((spec.inner,), dtype, values=time_steps(spec.inner))
        if spec.norm is not None:
            sizes = (spec.rank, spec.state, spec.state)
            self.delta_norm, self.b_norm, self.c_norm = (Norm(spec.norm, size, dtype) for size in sizes)
        decays = np.tile(np.log(np.arange(1.0, spec.state + 1)), spec.inner)
        self.a_log = Parameter((spec.inner, spec.state), dtype, values=decays.tolist())
        self.skip = Parameter((spec.inner,), dtype, fill=1.0)
        self.out = Linear(spec.inner, width, spec.bias, place.out_std, dtype)

    def state_spec(self) -> RecurrentSpec:
        """What a sequence must remember of this layer."""
        spec, sums = self.spec, wide(self.skip.dtype)
        return RecurrentSpec((("conv", (spec.taps - 1, spec.inner), sums), ("scan", (spec.state, spec.inner), sums)))

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec, q_start = self.spec, ctx.layout.q_start
        states = {} if ctx.states is None else ctx.states.recurrent(self.slot)
        x, z = project(x, ctx, [self.x, self.z])
        x = self.conv(x, q_start, states.get("conv"))
        selected = self.select(x, ctx)
        low, high = spec.rank, spec.rank + spec.state
        delta, b, c = selected[:, :low], selected[:, low:high], selected[:, high:]
        if spec.norm is not None:
            delta, b, c = self.delta_norm(delta), self.b_norm(b), self.c_norm(c)
        y = ops.selective_scan(
            x, self.delta(delta, ctx), -ops.exp(widened(self.a_log)), b, c, self.skip, z,
            q_start=q_start, softplus=True, state=states.get("scan"),
        )  # fmt: skip
        return self.out(y, ctx, residual=residual)

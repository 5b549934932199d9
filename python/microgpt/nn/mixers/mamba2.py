"""Mamba-2 (Dao & Gu 2024, arXiv:2405.21060): short convolutions, state-space duality, a gated norm."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ... import ops
from ...state.spec import RecurrentSpec
from ...tensors import Tensor, wide
from ..checks import number, require, whole
from ..context import Ctx
from ..conv import CONV_ERROR, Conv, conv
from ..linear import Linear, project
from ..module import Module, Parameter
from ..norm import Norm
from ..place import Place
from ..spec import LayerSpec, NormSpec, Shapes, linear
from . import mixer

CHUNK = 64  # tokens from one kept state to the next


@dataclass(frozen=True)
class Mamba2Spec(LayerSpec):
    """z, x, b, c, dt = projections of the stream; x, b, c through convolutions of `taps` tokens and SiLU; then
    S_t = exp(d a) S_(t-1) + d x b^T and y = S c + skip x in `heads` of `head_dim`, whose states are (head_dim, state).

    b and c serve the heads of a group. d = softplus(dt + dt_bias) within `limits` (None: no upper one). y is gated by
    silu(z) and normed, in parts of a group; `norm_first`: normed and then gated; `norm` None: gated only. `scales` of
    z, x, b, c, dt are numbers that are multiplied in (Falcon-H1).
    """

    kind: ClassVar[str] = "mamba2"
    # Rows one by one and in chunks are sums in other orders: a product over the state and over 64 rows, a state that is
    # multiplied and added to at each token: about 100 roundings of 2^-24 that may lie eight deviations out, twice.
    piece_error: ClassVar[float] = 2 * 8 * 10 * 2.0**-24 + CONV_ERROR
    heads: int
    head_dim: int
    state: int
    groups: int = 1
    taps: int = 4
    bias: bool = False
    conv_bias: bool = True
    norm: NormSpec | None = field(default_factory=lambda: NormSpec("rms", bias=False))
    norm_first: bool = False
    limits: tuple[float, float | None] = (0.0, None)
    scales: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "state"):
            whole(f"mamba2 {name}", getattr(self, name), 1, 2**16)
        whole("mamba2 taps", self.taps, 2, 2**8)
        whole("mamba2 groups", self.groups, 1, self.heads)
        require(self.heads % self.groups == 0, "mamba2 groups", f"a divisor of the {self.heads} heads", self.groups)
        require(len(self.limits) == 2, "mamba2 limits", "two numbers", self.limits)
        low, high = self.limits
        number("mamba2 limits", low, 0.0)
        high = None if high == math.inf else high
        if high is not None:
            number("mamba2 limits", high, low)
        object.__setattr__(self, "limits", (low, high))
        require(len(self.scales) == 5, "mamba2 scales", "five numbers", self.scales)
        for scale in self.scales:
            number("mamba2 scales", scale, 1e-9)
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.norm is not None:
            require(self.norm.kind == "rms" and self.norm.weight and not self.norm.plus_one, "mamba2 norm",
                    "an RMS norm with a plain weight", self.norm)  # fmt: skip

    @property
    def inner(self) -> int:
        """Numbers of x."""
        return self.heads * self.head_dim

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of what goes through convolutions."""
        return {"x": self.inner, "b": self.groups * self.state, "c": self.groups * self.state}

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made = linear("z", width, self.inner, self.bias)
        for name, outputs in {**self.widths, "dt": self.heads}.items():
            made |= linear(name, width, outputs, self.bias)
        for name, channels in self.widths.items():
            made |= conv(f"conv_{name}", channels, self.taps, self.conv_bias)
        made |= dict.fromkeys(("dt_bias", "a_log", "skip"), (self.heads,))
        if self.norm is not None:
            made |= {"norm.weight": (self.inner,)}
        return made | linear("o", self.inner, width, self.bias)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: what was projected, convolved, came out, was gated and normed, and
        the kept states."""
        return 2 * sum(self.widths.values()) + 4 * self.inner + self.heads + self.inner * self.state // CHUNK

    def flops(self, context: int) -> int:
        """FLOPs of a token beyond its weights: the state is multiplied, added to, and read."""
        return 5 * self.inner * self.state

    def fixed_state_numbers(self) -> int:
        """The state, and the last rows of the convolutions."""
        return self.inner * self.state + (self.taps - 1) * sum(self.widths.values())

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """See LayerSpec."""
        return {
            "plain": cls(3, 6, 8),
            "groups": cls(4, 4, 5, groups=2, taps=3, bias=True, conv_bias=False, norm_first=True, limits=(0.01, 0.9)),
            "bare": cls(2, 8, 4, norm=None, scales=(1.1, 0.9, 0.8, 1.2, 0.7)),
        }


@mixer(Mamba2Spec)
class Mamba2(Module):
    """Projections, convolutions, recurrence, gated norm, output projection."""

    slot = 0  # its number among the layers that remember something

    def __init__(self, spec: Mamba2Spec, place: Place) -> None:
        width, std, dtype = place.width, place.std, place.dtype
        self.spec = spec
        self.z, self.x, self.b, self.c, self.dt = (
            Linear(width, outputs, spec.bias, std, dtype) for outputs in (spec.inner, *spec.widths.values(), spec.heads)
        )
        self.conv_x, self.conv_b, self.conv_c = (
            Conv(channels, spec.taps, spec.conv_bias, dtype) for channels in spec.widths.values()
        )
        self.dt_bias = Parameter((spec.heads,), dtype, values=time_steps(spec.heads))
        self.a_log = Parameter((spec.heads,), dtype, values=[math.log(1 + h) for h in range(spec.heads)])
        self.skip = Parameter((spec.heads,), dtype, fill=1.0)
        self.norm = None if spec.norm is None else Norm(spec.norm, spec.inner, dtype)
        self.o = Linear(spec.inner, width, spec.bias, place.out_std, dtype)

    def state_spec(self) -> RecurrentSpec:
        """What a sequence must remember of this layer."""
        spec, sums = self.spec, wide(self.o.weight.dtype)
        rows = (("conv_" + name, (spec.taps - 1, channels), sums) for name, channels in spec.widths.items())
        return RecurrentSpec((("state", (spec.heads, spec.head_dim, spec.state), sums), *rows))

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec, q_start = self.spec, ctx.layout.q_start
        states = {} if ctx.states is None else ctx.states.recurrent(self.slot)
        parts = project(x, ctx, [self.z, self.x, self.b, self.c, self.dt])
        z, *three, dt = (y if scale == 1.0 else y * scale for y, scale in zip(parts, spec.scales, strict=True))
        convs = (("conv_x", self.conv_x), ("conv_b", self.conv_b), ("conv_c", self.conv_c))
        x, b, c = (each(y, q_start, states.get(name)) for (name, each), y in zip(convs, three, strict=True))
        low, high = spec.limits
        y = ops.ssd(
            x.reshape(-1, spec.heads, spec.head_dim), dt, -ops.exp(widened(self.a_log)),
            *(each.reshape(-1, spec.groups, spec.state) for each in (b, c)), self.skip, self.dt_bias, q_start,
            softplus=True, limits=(low, math.inf if high is None else high), state=states.get("state"),
        ).reshape(-1, spec.inner)  # fmt: skip
        return self.o(self._gated(y, z), ctx, residual=residual)

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        if self.norm is None or not self.spec.norm_first:
            y = ops.glu(z, y, act="silu")
        if self.norm is None:
            return y
        weight = self.norm.weight
        if self.spec.groups == 1 or weight is None:
            y = self.norm(y)
        else:
            eps = self.norm.spec.eps
            y = ops.rms_norm(y.reshape(-1, self.spec.groups, self.spec.inner // self.spec.groups), eps=eps)
            y = y.reshape(-1, self.spec.inner) * weight
        gated: Tensor = ops.glu(z, y, act="silu") if self.spec.norm_first else y
        return gated


def widened(x: Tensor) -> Tensor:
    """x in the type that sums have."""
    y: Tensor = x if x.dtype == wide(x.dtype) else ops.cast(x, wide(x.dtype))
    return y


def time_steps(heads: int, low: float = 1e-3, high: float = 0.1) -> list[float]:
    """Biases whose softplus runs from `low` to `high` in equal ratios."""
    steps = [low * (high / low) ** ((h + 0.5) / heads) for h in range(heads)]
    return [step + math.log(-math.expm1(-step)) for step in steps]

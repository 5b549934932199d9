"""Specs: frozen descriptions of layers. A model is a list of blocks; a family turns a config.json into one.

Every spec goes to JSON and back by field name; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from ..errors import ConfigError, nearest
from ..registry import Registry

S = TypeVar("S")


def require(condition: bool, what: str, expected: object, got: object) -> None:
    """Raise ConfigError unless `condition`."""
    if not condition:
        raise ConfigError(f"{what}: expected {expected}, got {_shown(got)}")


_short = reprlib.Repr()  # a configuration file can name one list a billion times
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 2, 8, 8, 8
_short.maxstring = _short.maxother = _short.maxlong = 200


def _shown(value: object) -> str:
    try:
        return _short.repr(value)
    except ValueError:  # a number too long for Python to write
        return f"a very long {type(value).__name__}"


def whole(what: str, value: object, least: int = 1, most: int = 2**31 - 1) -> None:
    """Raise ConfigError unless value is an int in [least, most]."""
    ok = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    require(ok, what, f"a whole number from {least} to {most}", value)


def number(what: str, value: object, least: float, most: float = math.inf) -> None:
    """Raise ConfigError unless value is a finite number in [least, most]."""
    ok = False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        ok = abs(value) <= sys.float_info.max and least <= value <= most
    require(ok, what, f"a number from {least} to {most}", value)


@dataclass(frozen=True)
class NormSpec:
    """`kind` layer (mean subtracted) or rms; with or without weight and bias."""

    kind: str = "layer"
    eps: float = 1e-5
    weight: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        require(self.kind in ("layer", "rms"), "norm kind", "layer or rms", self.kind)
        require(not (self.kind == "rms" and self.bias), "norm bias", "False for rms", self.bias)
        number("norm eps", self.eps, 0.0)

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return width * (self.weight + self.bias)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions were stretched to a longer context; fields that a `kind` does not use are ignored.

    linear (arXiv:2306.15595) divides frequencies by `factor`; dynamic raises theta beyond the original context; yarn
    (arXiv:2309.00071) and llama3 divide the slow ones; longrope (arXiv:2402.13753) divides each by a factor of its own.
    `attention_factor` multiplies queries and keys; None derives it as the method says.
    """

    kind: str
    factor: float = 1.0
    original: int = 0  # positions the model was first trained on; 0: its max_positions
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    KINDS: ClassVar[tuple[str, ...]] = ("linear", "dynamic", "yarn", "longrope", "llama3")

    def __post_init__(self) -> None:
        require(self.kind in self.KINDS, "rope scaling kind", "one of " + ", ".join(self.KINDS), self.kind)
        number("rope scaling factor", self.factor, 1e-6)
        whole("rope scaling original", self.original, 0)
        for name in ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"):
            number(f"rope scaling {name}", getattr(self, name), 1e-6)
        for name in ("mscale", "mscale_all_dim"):
            number(f"rope scaling {name}", getattr(self, name), 0.0)
        if self.attention_factor is not None:
            number("rope scaling attention_factor", self.attention_factor, 1e-6)
        for name in ("short_factor", "long_factor"):
            values = getattr(self, name)
            require(isinstance(values, (tuple, list)), f"rope scaling {name}", "a list of numbers", values)
            for value in values:
                number(f"rope scaling {name}", value, 1e-6)
            object.__setattr__(self, name, tuple(values))
        if self.kind == "llama3":
            require(self.high_freq_factor > self.low_freq_factor, "rope scaling high_freq_factor",
                    f"more than low_freq_factor {self.low_freq_factor}", self.high_freq_factor)  # fmt: skip
        if self.kind == "longrope":
            require(len(self.short_factor) == len(self.long_factor) > 0, "rope scaling long_factor",
                    f"as many numbers as short_factor, {len(self.short_factor)}", len(self.long_factor))  # fmt: skip
            require(self.original != 1, "rope scaling original", "at least 2 for longrope", self.original)


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions: the first `dims` components of each head turn, at frequencies theta^(-2i/dims), scaled."""

    theta: float = 10000.0
    dims: int = 0  # 0: the whole head
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        number("rope theta", self.theta, 1e-6)
        whole("rope dims", self.dims, 0)
        require(self.dims % 2 == 0, "rope dims", "an even number", self.dims)
        if self.scaling is not None and self.scaling.kind == "yarn":
            require(self.theta > 1.0, "rope theta", "more than 1 for yarn", self.theta)


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: those at or before it (`causal`), and none further away than `window` - 1 positions.

    A layer has its own; `ctx.mask` replaces it for a call.
    """

    causal: bool = True
    window: int | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """Softmax attention: `kv_heads` = heads is MHA, fewer GQA, 1 MQA. `scale` None is 1/sqrt(head_dim)."""

    kind: ClassVar[str] = "attention"
    heads: int
    head_dim: int
    kv_heads: int
    bias: bool = True
    out_bias: bool = True
    causal: bool = True
    window: int | None = None
    rope: RopeSpec | None = None
    alibi: bool = False
    soft_cap: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        whole("attention heads", self.heads, 1, 2**16)
        whole("attention head_dim", self.head_dim, 1, 2**16)
        whole("attention kv_heads", self.kv_heads, 1, self.heads)
        require(
            self.heads % self.kv_heads == 0, "attention kv_heads", f"a divisor of the {self.heads} heads", self.kv_heads
        )
        if self.window is not None:
            whole("attention window", self.window)
        if self.soft_cap is not None:
            number("attention soft_cap", self.soft_cap, 1e-6)
        if self.rope is not None:
            require(
                self.rope.dims <= self.head_dim, "rope dims", f"at most the head width {self.head_dim}", self.rope.dims
            )
            require(
                self.rope.dims > 0 or self.head_dim % 2 == 0,
                "attention head_dim",
                "an even width for rope",
                self.head_dim,
            )
            scaling, half = self.rope.scaling, (self.rope.dims or self.head_dim) // 2
            if scaling is not None and scaling.kind == "longrope":
                require(len(scaling.long_factor) == half, "rope scaling long_factor", f"{half} numbers, one a pair",
                        len(scaling.long_factor))  # fmt: skip

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (2 * width * (q + kv)) + self.bias * (q + 2 * kv) + self.out_bias * width

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: q, k, v, the two that turned, what attention gave."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return 2 * q + 2 * kv + (q + kv if self.rope else 0)

    def flops(self, context: int) -> int:
        """FLOPs of a token that sees `context` others, beyond its weights."""
        return 4 * self.heads * self.head_dim * min(context, self.window or context)

    @property
    def mask(self) -> Mask:
        """The layer's own mask."""
        return Mask(self.causal, self.window)


@dataclass(frozen=True)
class MlpSpec:
    """act(x W1) W2 with `width` hidden units."""

    kind: ClassVar[str] = "mlp"
    width: int
    act: str = "gelu_tanh"
    bias: bool = True

    def __post_init__(self) -> None:
        whole("mlp width", self.width)
        from ..ops.layers import act_code

        act_code(self.act)

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return 2 * width * self.width + self.bias * (width + self.width)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: before and after the activation."""
        return 2 * self.width


@dataclass(frozen=True)
class GluSpec:
    """(act(x Wg) * x Wu) Wd with `width` hidden units: SwiGLU for silu, GeGLU for gelu."""

    kind: ClassVar[str] = "glu"
    width: int
    act: str = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        whole("glu width", self.width)
        from ..ops.layers import act_code

        act_code(self.act)

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return 3 * width * self.width + self.bias * (width + 2 * self.width)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: gate, up and their product."""
        return 3 * self.width


@dataclass(frozen=True)
class BlockSpec:
    """Mixer and feed-forward around a residual stream; norms stand before (pre), after (post) or both (sandwich)."""

    mixer: Any
    ffn: Any
    norm: NormSpec = field(default_factory=NormSpec)
    placement: str = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.placement in ("pre", "post", "sandwich"), "norm placement", "pre, post or sandwich", self.placement
        )
        number("block dropout", self.dropout, 0.0, 1.0)

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        norms = 4 if self.placement == "sandwich" else 2
        count: int = self.mixer.parameters(width) + self.ffn.parameters(width) + norms * self.norm.parameters(width)
        return count

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: those of the layers, the norms' outputs and the stream twice."""
        norms = 4 if self.placement == "sandwich" else 2
        count: int = self.mixer.activations(width) + self.ffn.activations(width) + (norms + 2) * width
        return count


# kind -> spec class; the modules that build them register beside it (nn/mixers, nn/ffn).
SPECS: Registry[type] = Registry("layer kind")
for _spec in (AttentionSpec, MlpSpec, GluSpec):
    SPECS.add(_spec.kind, _spec)


def to_dict(spec: Any) -> Any:
    """A spec as plain JSON values; layer specs carry their kind."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        fields = {f.name: to_dict(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
        tags = {cls: kind for kind, cls in SPECS.items()}
        return {"type": tags[type(spec)], **fields} if type(spec) in tags else fields
    if isinstance(spec, (list, tuple)):
        return [to_dict(each) for each in spec]
    return spec


def from_dict(cls: type[S], values: Any, where: str) -> S:
    """The inverse of to_dict. Raises ConfigError naming unknown, missing or impossible keys and where they stand."""
    require(isinstance(values, dict), where, "an object", values)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    given = {}
    for key, value in values.items():
        if key == "type" and key not in fields:
            continue
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, fields)}; known: {', '.join(fields)}")
        given[key] = _read(key, value, f"{where}.{key}")
    lacking = [
        name
        for name, f in fields.items()
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if lacking:
        raise ConfigError(f"{where}: missing {', '.join(lacking)}")
    try:
        return cls(**given)
    except TypeError as error:  # a value of the wrong type that a comparison choked on
        raise ConfigError(f"{where}: {error}") from None


def _read(key: str, value: Any, where: str) -> Any:
    if key == "blocks":
        require(isinstance(value, list), where, "a list of blocks", value)
        return tuple(from_dict(BlockSpec, each, f"{where}[{i}]") for i, each in enumerate(value))
    if key in ("mixer", "ffn"):
        require(isinstance(value, dict) and "type" in value, where, "an object with a type", value)
        return from_dict(SPECS.get(str(value["type"])), value, where)
    if key in ("norm", "final_norm", "embed_norm"):
        return None if value is None else from_dict(NormSpec, value, where)
    if key == "rope":
        return None if value is None else from_dict(RopeSpec, value, where)
    if key == "scaling":
        return None if value is None else from_dict(RopeScaling, value, where)
    return value

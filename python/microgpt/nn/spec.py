"""Specs: frozen descriptions of layers. A model is a list of blocks; a family turns a config.json into one.

Every spec goes to JSON and back by field name; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from ..errors import ConfigError, nearest
from ..registry import Registry
from .checks import number, require, whole
from .rope import RopeScaling, RopeSpec

S = TypeVar("S")
Shapes = dict[str, tuple[int, ...]]  # name of a parameter -> its shape


def count(shapes: Shapes) -> int:
    """Numbers in all parameters."""
    return sum(math.prod(shape) for shape in shapes.values())


def below(name: str, shapes: Shapes) -> Shapes:
    """The same under a module called `name`."""
    return {f"{name}.{each}": shape for each, shape in shapes.items()}


def linear(name: str, inputs: int, outputs: int, bias: bool) -> Shapes:
    """Parameters of a Linear."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


@dataclass(frozen=True)
class NormSpec:
    """`kind` layer (mean subtracted) or rms; with or without weight and bias. `plus_one` multiplies by 1 + weight."""

    kind: str = "layer"
    eps: float = 1e-5
    weight: bool = True
    bias: bool = True
    plus_one: bool = False

    def __post_init__(self) -> None:
        require(self.kind in ("layer", "rms"), "norm kind", "layer or rms", self.kind)
        require(not (self.kind == "rms" and self.bias), "norm bias", "False for rms", self.bias)
        number("norm eps", self.eps, 0.0)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a last axis of `width`."""
        return {name: (width,) for name in ("weight", "bias") if getattr(self, name)}

    def parameters(self, width: int) -> int:
        """Numbers it learns over a last axis of `width`."""
        return count(self.shapes(width))


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: those at or before it (`causal`), and none further away than `window` - 1 positions.

    A layer has its own; `ctx.mask` replaces it for a call.
    """

    causal: bool = True
    window: int | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """Softmax attention: `kv_heads` = heads is MHA, fewer GQA, 1 MQA. `scale` None is 1/sqrt(head_dim).

    `alibi`: distances times `alibi_scale` and the slopes of their paper. `clip` bounds q, k and v. `qk_norm` normalizes
    queries and keys, before rotary positions or after (`qk_norm_last`): "head" with one weight vector for all heads,
    "heads" with one each, "width" over all heads together. `sinks`: one learned score a head that takes part in the
    softmax and has no value (gpt-oss). `gate` multiplies the output by sigmoid(x W) before its projection.
    `kv_from`: the number of an earlier block whose keys and values are used instead of own ones (arXiv:2405.12981).
    `temperature` (beta, n) multiplies queries at position p by 1 + beta * log(1 + floor(p / n)) (Llama 4).
    """

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
    alibi_scale: float = 1.0
    clip: float | None = None
    qk_norm: NormSpec | None = None
    qk_norm_over: str = "head"
    qk_norm_last: bool = False
    sinks: bool = False
    gate: bool = False
    temperature: tuple[float, int] | None = None
    kv_from: int | None = None

    def __post_init__(self) -> None:
        whole("attention heads", self.heads, 1, 2**16)
        whole("attention head_dim", self.head_dim, 1, 2**16)
        whole("attention kv_heads", self.kv_heads, 1, self.heads)
        require(
            self.heads % self.kv_heads == 0, "attention kv_heads", f"a divisor of the {self.heads} heads", self.kv_heads
        )
        if self.window is not None:
            whole("attention window", self.window)
        for name in ("soft_cap", "clip", "scale"):
            if getattr(self, name) is not None:
                number(f"attention {name}", getattr(self, name), 1e-6)
        number("attention alibi_scale", self.alibi_scale, 1e-6)
        places = ("head", "heads", "width")
        require(self.qk_norm_over in places, "attention qk_norm_over", "head, heads or width", self.qk_norm_over)
        if self.kv_from is not None:
            whole("attention kv_from", self.kv_from, 0, 1023)
        if self.temperature is not None:
            require(len(self.temperature) == 2, "attention temperature", "two numbers", self.temperature)
            number("attention temperature", self.temperature[0], 0.0)
            whole("attention temperature", self.temperature[1])
            object.__setattr__(self, "temperature", tuple(self.temperature))
        if self.rope is not None:
            self.rope.check(self.head_dim)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        own = self.kv_from is None
        made = linear("q", width, q, self.bias)
        if own:
            made |= linear("k", width, kv, self.bias) | linear("v", width, kv, self.bias)
        if self.gate:
            made |= linear("gate", width, q, False)
        made |= linear("o", q, width, self.out_bias)
        if self.qk_norm is not None:
            for name, heads in (("q_norm", self.heads), *([("k_norm", self.kv_heads)] if own else [])):
                if self.qk_norm_over == "heads":
                    made |= {
                        f"{name}.{each}": (heads, *shape) for each, shape in self.qk_norm.shapes(self.head_dim).items()
                    }
                else:
                    made |= below(
                        name, self.qk_norm.shapes(self.head_dim * (heads if self.qk_norm_over == "width" else 1))
                    )
        return made | ({"sinks": (self.heads,)} if self.sinks else {})

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return count(self.shapes(width))

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: q, k, v, their norms, the two that turned, what attention gave."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (2 + 2 * self.gate) * q + 2 * kv + (q + kv) * ((self.rope is not None) + (self.qk_norm is not None))

    def flops(self, context: int) -> int:
        """FLOPs of a token that sees `context` others, beyond its weights."""
        return 4 * self.heads * self.head_dim * min(context, self.window or context)

    def state_numbers(self) -> int:
        """Numbers of cached keys and values a token."""
        return 2 * self.kv_heads * self.head_dim if self.kv_from is None else 0

    @property
    def mask(self) -> Mask:
        """The layer's own mask."""
        return Mask(self.causal, self.window)


@dataclass(frozen=True)
class DifferentialSpec(AttentionSpec):
    """Differential attention (Ye et al. 2024, arXiv:2410.05258) in DiffLlama's layout: the heads' second half is
    subtracted from the first, times a learned lambda; both see values twice as wide. `eps` of the norm that follows."""

    kind: ClassVar[str] = "differential"
    eps: float = 1e-5
    lambda_std: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kv_heads % 2 == 0, "differential kv_heads", "an even number", self.kv_heads)
        number("differential eps", self.eps, 0.0)
        number("differential lambda_std", self.lambda_std, 0.0)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        return super().shapes(width) | {f"lambda_{x}": (self.head_dim,) for x in ("q1", "k1", "q2", "k2")}

    def flops(self, context: int) -> int:
        """FLOPs of a token that sees `context` others, beyond its weights."""
        return 6 * self.heads * self.head_dim * min(context, self.window or context)


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

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        return linear("up", width, self.width, self.bias) | linear("down", self.width, width, self.bias)

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return count(self.shapes(width))

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

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        gate, up = (linear(name, width, self.width, self.bias) for name in ("gate", "up"))
        return gate | up | linear("down", self.width, width, self.bias)

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return count(self.shapes(width))

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: gate, up and their product."""
        return 3 * self.width


@dataclass(frozen=True)
class XieluSpec:
    """xielu(x W1) W2, whose activation has two learned numbers (Huang & Schlag 2024, arXiv:2411.13010)."""

    kind: ClassVar[str] = "xielu"
    width: int
    bias: bool = False
    beta: float = 0.5

    def __post_init__(self) -> None:
        whole("xielu width", self.width)
        number("xielu beta", self.beta, 0.0)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made = linear("up", width, self.width, self.bias) | linear("down", self.width, width, self.bias)
        return made | {"alpha_p": (1,), "alpha_n": (1,)}

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return count(self.shapes(width))

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: the steps of the activation."""
        return 8 * self.width


@dataclass(frozen=True)
class BlockSpec:
    """Mixer and feed-forward around a residual stream; norms stand before (pre), after the sum (post), on what is
    added (res_post) or before and on what is added (sandwich).

    `parallel`: both read the same stream and are added together, after a norm each or one for both (`shared_norm`).
    `residual_scale` multiplies what is added. `bare_mixer`: the mixer reads the stream without a norm (ModernBERT's
    first block, whose embeddings are normed).
    """

    mixer: Any
    ffn: Any
    norm: NormSpec = field(default_factory=NormSpec)
    placement: str = "pre"
    dropout: float = 0.0
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0
    bare_mixer: bool = False

    def __post_init__(self) -> None:
        places = ("pre", "post", "res_post", "sandwich")
        require(self.placement in places, "norm placement", ", ".join(places), self.placement)
        number("block dropout", self.dropout, 0.0, 1.0)
        number("block residual_scale", self.residual_scale, 1e-6)
        require(not self.parallel or self.placement == "pre", "parallel block's placement", "pre", self.placement)
        require(not self.bare_mixer or (self.placement == "pre" and not self.parallel), "bare_mixer",
                "False unless placement is pre", True)  # fmt: skip
        require(self.parallel or not self.shared_norm, "shared_norm", "False unless the block is parallel", True)

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of its norms."""
        if self.shared_norm:
            return ("mixer_norm",)
        if self.bare_mixer:
            return ("ffn_norm",)
        two = ("mixer_norm", "ffn_norm")
        return (*two, "mixer_post_norm", "ffn_post_norm") if self.placement == "sandwich" else two

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made: Shapes = {}
        for name in self.norms:
            made |= below(name, self.norm.shapes(width))
        return made | below("mixer", self.mixer.shapes(width)) | below("ffn", self.ffn.shapes(width))

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return count(self.shapes(width))

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: those of the layers, the norms' outputs and the stream twice."""
        made: int = self.mixer.activations(width) + self.ffn.activations(width) + (len(self.norms) + 2) * width
        return made


# kind -> spec class; the modules that build them register beside it (nn/mixers, nn/ffn).
SPECS: Registry[type] = Registry("layer kind")
for _spec in (AttentionSpec, DifferentialSpec, MlpSpec, GluSpec, XieluSpec):
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
    if key in ("norm", "final_norm", "embed_norm", "qk_norm"):
        return None if value is None else from_dict(NormSpec, value, where)
    if key == "rope":
        return None if value is None else from_dict(RopeSpec, value, where)
    if key == "scaling":
        return None if value is None else from_dict(RopeScaling, value, where)
    return value

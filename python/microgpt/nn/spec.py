"""Specs: frozen descriptions of layers. A model is a list of blocks; a family turns a config.json into one.

The spec of a mixer or a feed-forward stands beside its module, in nn/mixers or nn/ffn.

Every spec goes to JSON and back by field name; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, TypeVar, cast, get_args, get_origin, get_type_hints

from ..errors import ConfigError, nearest
from ..registry import Registry
from ..state.spec import ITEM
from .checks import number, require
from .rope import RopeScaling, RopeSpec

S = TypeVar("S")
M = TypeVar("M")
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
        check_types(self, "norm")
        require(self.kind in ("layer", "rms"), "norm kind", "layer or rms", self.kind)
        require(not (self.kind == "rms" and self.bias), "norm bias", "False for rms", self.bias)
        number("norm eps", self.eps, 0.0)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a last axis of `width`."""
        return {name: (width,) for name in ("weight", "bias") if getattr(self, name)}

    def parameters(self, width: int) -> int:
        """Numbers it learns over a last axis of `width`."""
        return count(self.shapes(width))


@functools.cache
def _kinds(spec: Any) -> dict[str, tuple[type, ...]]:
    """Name of a field -> the types that it may have; those of numbers are checked with their ranges."""
    found = {}
    hints = get_type_hints(spec)
    for each in dataclasses.fields(spec):
        hint = hints[each.name]
        parts = [get_origin(part) or part for part in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
        if Any not in parts and not {*parts} <= {int, float, type(None)}:
            found[each.name] = tuple(parts)
    return found


def check_types(spec: object, what: str) -> None:
    """Raise ConfigError unless the fields of a dataclass that are no numbers have the types that they are declared
    with; a list is taken for a tuple."""
    for name, kinds in _kinds(cast(Hashable, type(spec))).items():
        value = getattr(spec, name)
        good = isinstance(value, (*kinds, *([list] if tuple in kinds else []), *([int] if float in kinds else [])))
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        require(good, f"{what} {name}", names, value)


class LayerSpec:
    """Base of the frozen descriptions of mixers and feed-forwards; each stands in the file of the module it describes.

    A layer that cannot do with what is here (attention's masks, say) adds fields of its own.
    """

    kind: ClassVar[str]
    # How far, relative to the largest number of a result, results may lie apart when a sequence is processed in other
    # pieces. Zero: the same bits, however it is cut.
    piece_error: ClassVar[float] = 0.0
    causal = True
    window: int | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__post_init__")
        if own is not None:

            def checked(self: LayerSpec) -> None:
                check_types(self, self.kind)
                own(self)

            cls.__post_init__ = checked  # type: ignore[attr-defined]

    @property
    def parts(self) -> dict[str, LayerSpec]:
        """The layers that it consists of, by the names of their modules; none where it is one."""
        return {}

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        raise NotImplementedError(type(self).__name__)

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return count(self.shapes(width))

    def idle(self, width: int) -> int:
        """Numbers of its weights that a token is not multiplied with: experts that it does not visit, tables."""
        return 0

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs."""
        raise NotImplementedError(type(self).__name__)

    def flops(self, context: int) -> int:
        """FLOPs of a token that sees `context` others, beyond its weights."""
        return 0

    def state_numbers(self) -> int:
        """Numbers that a sequence keeps for each token."""
        return 0

    def cache_bytes(self, stored: str) -> int:
        """Bytes that a sequence keeps for each token where caches hold float32, bfloat16 or int8."""
        return ITEM[stored] * self.state_numbers()

    def fixed_state_numbers(self) -> int:
        """Numbers that a sequence keeps whatever its length."""
        return 0

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """Small ones by name, for a stream of `width` (a multiple of 8): the conformance suite runs them all."""
        return {}


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: those at or before it (`causal`), and none further away than `window` - 1 positions.

    A layer has its own; `ctx.mask` replaces it for a call.
    """

    causal: bool = True
    window: int | None = None


@dataclass(frozen=True)
class BlockSpec:
    """Mixer and feed-forward around a residual stream; norms stand before (pre), after the sum (post), on what is
    added (res_post) or before and on what is added (sandwich).

    Either may be missing: Mamba's blocks have no feed-forward. `parallel`: both read the same stream and are added
    together, after a norm each or one for both (`shared_norm`). `residual_scale` multiplies what is added.
    `bare_mixer`: the mixer reads the stream without a norm (ModernBERT's first block, whose embeddings are normed).
    """

    mixer: Any  # a LayerSpec, or None where there is none
    ffn: Any
    norm: NormSpec = field(default_factory=NormSpec)
    placement: str = "pre"
    dropout: float = 0.0
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0
    bare_mixer: bool = False

    def __post_init__(self) -> None:
        check_types(self, "block")
        places = ("pre", "post", "res_post", "sandwich")
        require(self.placement in places, "norm placement", ", ".join(places), self.placement)
        number("block dropout", self.dropout, 0.0, 1.0)
        number("block residual_scale", self.residual_scale, 1e-6)
        require(not self.parallel or self.placement == "pre", "parallel block's placement", "pre", self.placement)
        require(not self.bare_mixer or (self.placement == "pre" and not self.parallel), "bare_mixer",
                "False unless placement is pre", True)  # fmt: skip
        require(self.parallel or not self.shared_norm, "shared_norm", "False unless the block is parallel", True)
        both = self.mixer is not None and self.ffn is not None
        require(both or not self.parallel, "parallel", "False unless the block has a mixer and a feed-forward", True)
        require(bool(self.layers), "block", "a mixer or a feed-forward", None)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The mixer and the feed-forward, those that are there."""
        return tuple(each for each in (self.mixer, self.ffn) if each is not None)

    def find(self, kind: str | None, halves: tuple[str, ...] = ("mixer", "ffn")) -> tuple[str, Any] | None:
        """The layer of a kind among the mixer, the feed-forward and their parts, after its module's name."""
        for half in halves:
            whole: LayerSpec | None = getattr(self, half)
            if whole is not None and whole.kind == kind:
                return half, whole
            for name, part in ({} if whole is None else whole.parts).items():
                if part.kind == kind:
                    return f"{half}.{name}", part
        return None

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of its norms."""
        halves = [name for name in ("mixer", "ffn") if getattr(self, name) is not None]
        if self.shared_norm:
            halves = ["mixer"]
        if self.bare_mixer:
            halves.remove("mixer")
        after = [f"{half}_post_norm" for half in halves if self.placement == "sandwich"]
        return (*(f"{half}_norm" for half in halves), *after)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made: Shapes = {}
        for name in self.norms:
            made |= below(name, self.norm.shapes(width))
        for name in ("mixer", "ffn"):
            if getattr(self, name) is not None:
                made |= below(name, getattr(self, name).shapes(width))
        return made

    def parameters(self, width: int) -> int:
        """Numbers it learns over a stream of `width`."""
        return count(self.shapes(width))

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: what layers and norms keep, and the stream once a layer."""
        return sum(each.activations(width) for each in self.layers) + (len(self.norms) + len(self.layers)) * width


SPECS: Registry[type] = Registry("layer kind")  # kind -> spec class


def registrar(modules: Registry[M]) -> Callable[[type], Callable[[M], M]]:
    """A decorator of modules that says which spec describes them, and registers both under the spec's kind."""

    def describes(spec: type) -> Callable[[M], M]:
        def register(module: M) -> M:
            kind: str = spec.kind  # type: ignore[attr-defined]
            SPECS.add(kind, spec)
            return modules.add(kind, module)

        return register

    return describes


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
    except (ConfigError, TypeError) as error:  # a value of the wrong type that a comparison choked on
        raise ConfigError(f"{where}: {error}") from None


def _read(key: str, value: Any, where: str) -> Any:
    if key == "blocks":
        require(isinstance(value, list), where, "a list of blocks", value)
        return tuple(from_dict(BlockSpec, each, f"{where}[{i}]") for i, each in enumerate(value))
    if value is None:
        return None
    if key in ("mixer", "ffn") or (isinstance(value, dict) and "type" in value):
        require(isinstance(value, dict) and "type" in value, where, "an object with a type", value)
        return from_dict(SPECS.get(str(value["type"])), value, where)
    if key == "norm" or key.endswith("_norm"):
        return from_dict(NormSpec, value, where) if not isinstance(value, bool) else value
    if key in ("rope", "scaling"):
        return from_dict(RopeSpec if key == "rope" else RopeScaling, value, where)
    return value

"""A family as a declaration: one table of config.json's keys and one of weight names serve both directions.

A `Part` is a piece of config.json: it puts what it reads into a `Draft` and writes the same from a ModelConfig. `Key`
is one value; families add parts of their own for what is more than that. Places in a draft are dotted: "width" is a
field of ModelConfig, "layers" the number of blocks, "mixer.heads", "ffn.width", "norm.eps" or "block.dropout" a field
of every block, "mixer.qk_norm.eps" a field of a spec within it.

Blocks may be of several kinds. "mixer" and "ffn" are then those of the declared kind; "mamba.width" is a field of every
layer of kind mamba, and "mixer.type" and "ffn.type" say of which kind a block's layer is (None: it has none). Where a
field of a layer is a class of specs, it is filled from the places of that kind ("parallel.left": Mamba2Spec).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...io.names import Packing, Rule
from ...nn.checks import require
from ...nn.ffn.mlp import GluSpec
from ...nn.mixers.attention import AttentionSpec
from ...nn.spec import SPECS, BlockSpec, LayerSpec, NormSpec
from ..config import ModelConfig
from . import FAMILIES, Family
from .common import Reader

SLIDING, FULL = "sliding_attention", "full_attention"
RMS = NormSpec("rms", 1e-6, bias=False)


def in_block(place: str) -> bool:
    """Whether a place is a field of every block."""
    first = place.split(".")[0]
    return first in ("mixer", "ffn", "norm", "block") or first in SPECS


class Draft:
    """A ModelConfig in the making: fields of the model, and of each block by place."""

    def __init__(self, fixed: Mapping[str, Any]) -> None:
        self.model: dict[str, Any] = {}
        self.blocks: list[dict[str, Any]] = []
        self.fixed = fixed
        self.types: list[str] = []  # layer types, where config.json has them

    def set(self, place: str, value: Any) -> None:
        """Set a field of the model, or of every block."""
        if place == "layers":
            require(1 <= value <= 1024, "blocks", "1 to 1024 blocks", value)
            self.blocks = [{} for _ in range(value)]
            for name, constant in self.fixed.items():
                self.set(name, constant)
        elif in_block(place):
            for block in self.blocks:
                block[place] = value
        else:
            self.model[place] = value

    def get(self, place: str) -> Any:
        """What was set; of the first block where it is a block's."""
        return self.blocks[0][place] if in_block(place) else self.model[place]

    def check_types(self, get: Reader) -> None:
        """Raises ConfigError unless there is a layer type that is known for each block."""
        where, count = f"{get.where}: layer_types", len(self.blocks)
        require(len(self.types) == count, where, f"{count} names, one a layer", len(self.types))
        for kind in self.types:
            require(kind in (SLIDING, FULL), where, f"{SLIDING} or {FULL}", kind)


def made(kind: type, fields: Mapping[str, Any]) -> Any:
    """A spec from its fields; "norm.eps" replaces a field of the spec that was given as "norm"."""
    outer = {name: value for name, value in fields.items() if "." not in name}
    for name, value in fields.items():
        first, _, rest = name.partition(".")
        if rest and outer.get(first) is not None:
            outer[first] = dataclasses.replace(outer[first], **{rest: value})
    return kind(**outer)


def under(prefix: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields below a prefix, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in fields.items() if name.startswith(prefix + ".")}


def layer(block: BlockSpec, name: str, mains: tuple[str | None, str | None]) -> Any:
    """What a block has under the first name of a place: itself, its norm, or the layer of that kind, if it has one."""
    if name in ("block", "norm"):
        return block if name == "block" else block.norm
    kind = {"mixer": mains[0], "ffn": mains[1]}.get(name, name)
    found = block.find(kind, (name,)) if name in ("mixer", "ffn") else block.find(kind)
    return found[1] if found else None


def look(config: ModelConfig, place: str) -> Any:
    """What a configuration has at a place; of the first block that has it where it is a block's. LookupError if none
    does, AttributeError if there is no such field."""
    if place == "layers":
        return len(config.blocks)
    first, *rest = place.split(".")
    value: Any = config
    if in_block(place):
        mains = FAMILIES.get(config.family).kinds
        found = (layer(block, first, mains) for block in config.blocks)
        value = next((each for each in found if each is not None), None)
        if value is None:
            raise LookupError(f"no block has a {first}")
    else:
        rest = [first, *rest]
    for name in rest:
        value = getattr(value, name)
    return value


class Part:
    """A piece of config.json."""

    def read(self, get: Reader, draft: Draft) -> None:
        """Put what config.json says into the draft."""

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """Put what the configuration says into config.json."""


@dataclass(frozen=True)
class Key(Part):
    """config.json's `theirs` <-> the places `ours`, separated by spaces; the first that is there is written.

    A missing key or null is `default`, which may be a function of the draft. `values` translates theirs to ours.
    `to`, `back`: the two directions of a conversion. `quiet`: written only where it is not the default. `nullable`:
    null is None, not the default.
    """

    theirs: str
    ours: str
    default: Any = None
    kind: type | tuple[type, ...] = int
    values: Mapping[Any, Any] | None = None
    to: Callable[[Any], Any] = lambda value: value
    back: Callable[[Any], Any] = lambda value: value
    quiet: bool = False
    nullable: bool = False

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        value = get.get(self.theirs, (*kinds, type(None)), None)
        null = self.nullable and self.theirs in get.config
        if value is None and not null:
            value = self.default(draft) if callable(self.default) else self.default
        if value is not None:
            if self.values is not None:
                if value not in self.values:
                    known = ", ".join(map(str, self.values))
                    raise ConfigError(f"{get.where}: {self.theirs} {value!r}: known are {known}")
                value = self.values[value]
            value = self.to(value)
        for place in self.ours.split():
            draft.set(place, value)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        for place in self.ours.split():
            try:
                value = look(config, place)
                break
            except LookupError:  # no block has such a layer
                continue
        else:
            return
        if self.quiet and value == self.default:
            return
        if self.values is not None:
            value = {ours: theirs for theirs, ours in reversed([*self.values.items()])}.get(value, value)
        else:
            value = self.back(value)
        if isinstance(value, int) and self.kind == (float, int):
            value = float(value)
        out[self.theirs] = value


@dataclass(frozen=True)
class Derived(Part):
    """A place that has no key: it follows from others."""

    ours: str
    value: Callable[[Draft], Any]

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        draft.set(self.ours, self.value(draft))


def Bool(theirs: str, ours: str, default: bool = False, **options: Any) -> Key:
    """A Key of true or false."""
    return Key(theirs, ours, default, bool, **options)


def Float(theirs: str, ours: str, default: Any = None, **options: Any) -> Key:
    """A Key of a number."""
    return Key(theirs, ours, default, (float, int), **options)


ACTS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
        "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2"}  # fmt: skip


def Act(theirs: str, default: str, acts: Mapping[str, str] = ACTS, ours: str = "ffn.act") -> Key:
    """The activation's name."""
    return Key(theirs, ours, default, str, acts)


@dataclass(frozen=True)
class Only(Part):
    """A key that must have one value: others mean something that is not here."""

    theirs: str
    value: Any  # or a tuple of values that mean the same; the first is the default

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        expected = self.value if isinstance(self.value, tuple) else (self.value,)
        found = get.get(self.theirs, object, expected[0])
        require(found in expected, f"{get.where}: {self.theirs}", " or ".join(map(repr, expected)), found)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out[self.theirs] = self.value[0] if isinstance(self.value, tuple) else self.value


def head_width(draft: Draft) -> int:
    """The width divided by the heads."""
    width, heads = draft.get("width"), draft.get("mixer.heads")
    if heads < 1 or width % heads:
        raise ConfigError(f"config.json: hidden_size {width} is not divisible by num_attention_heads {heads}")
    return int(width // heads)


def all_heads(draft: Draft) -> Any:
    """As many as query heads."""
    return draft.get("mixer.heads")


def shape(vocab: int, width: int, layers: int, heads: int, positions: int, **names: str) -> list[Part]:
    """Keys of the model's size, in the order that others need. `names`: other names than the usual ones."""
    name = {each: names.get(each, each) for each in ("hidden_size", "num_hidden_layers", "num_attention_heads",
                                                     "max_position_embeddings")}  # fmt: skip
    return [
        Key(name["num_hidden_layers"], "layers", layers),
        Key("vocab_size", "vocab_size", vocab),
        Key(name["hidden_size"], "width", width),
        Key(name["num_attention_heads"], "mixer.heads", heads),
        Key(name["max_position_embeddings"], "max_positions", positions),
    ]


def heads(kv: Any = all_heads, head_dim: Any = head_width) -> list[Part]:
    """Keys of key/value heads and the width of a head, with the family's defaults."""
    return [Key("num_key_value_heads", "mixer.kv_heads", kv), Key("head_dim", "mixer.head_dim", head_dim)]


def ffn(width: int, act: str = "silu") -> list[Part]:
    """Keys of the feed-forward's width and activation, with the family's defaults."""
    return [Key("intermediate_size", "ffn.width", width), Act("hidden_act", act)]


ATTENTION_BIAS = Bool("attention_bias", "mixer.bias mixer.out_bias")


def ends(tied: bool, init: float = 0.02, block: str = "resid_pdrop", embed: str = "embd_pdrop",
         block_default: float = 0.0, embed_default: float = 0.0) -> list[Part]:  # fmt: skip
    """Tied embeddings, spread of initial values, dropout. Families without dropout keep ours under GPT-2's names."""
    quiet = block == "resid_pdrop" and not block_default
    return [
        Bool("tie_word_embeddings", "tie_embeddings", tied),
        Float("initializer_range", "init_std", init),
        Float(block, "block.dropout", block_default, quiet=quiet),
        Float(embed, "embed_dropout", embed_default, quiet=quiet or (embed == "embd_pdrop" and not embed_default)),
    ]


Names = Mapping[str, str] | Callable[[ModelConfig], Mapping[str, str]]


def weight_rules(config: ModelConfig, names: Mapping[str, str], transposed: bool, groups: int,
                 packings: Mapping[str, Packing]) -> list[Rule]:  # fmt: skip
    """Rules for every parameter of the model.

    `names` maps the name of a module (or parameter) to theirs; in blocks it is relative to "blocks". "mamba.x" there is
    x of the layers of kind mamba, "mixer.x" and "ffn.x" are those of all kinds. Several modules
    of ours that are one of theirs stand in one key, separated by spaces, and are joined in `groups` groups, or after
    "@" in as many as that field of the mixer says. A "*" in their name is the number of a row that is stored alone.
    `packings`: how the arrays of some keys lie in the file.
    """
    shapes = config.shapes()
    rules: list[Rule] = []
    prefix = names["blocks"]
    places: list[tuple[str, str, BlockSpec | None]] = [("", "", None)]
    places += [(f"blocks.{i}.", f"{prefix}.{i}.", block) for i, block in enumerate(config.blocks)]
    halves = {"mixer", "ffn", "mixer_norm", "ffn_norm", "mixer_post_norm", "ffn_post_norm"}
    inner = {each for each in names if (first := each.split(".")[0]) in halves or first in SPECS}
    for ours, theirs, block in places:
        for key, name in names.items():
            if key == "blocks" or (key in inner) != bool(ours):
                continue
            modules = key.split() if block is None else [_of_kind(part, block) for part in key.split()]
            for kind in (".weight", ".bias", ""):
                parts = [f"{ours}{part}{kind}" for part in modules]
                if not all(part in shapes for part in parts):
                    continue
                named, _, field = name.partition("@")
                if key in packings:
                    shape = packings[key].shape([shapes[part] for part in parts])
                    rules.append(Rule(tuple(parts), theirs + named + kind, shape=shape, packing=packings[key]))
                else:
                    many = getattr(block.mixer, field) if field and block is not None else groups
                    rules.append(_rule(parts, theirs + named + kind, shapes, transposed and kind == ".weight", many))
    return rules


def _of_kind(module: str, block: BlockSpec) -> str:
    """ "mamba.conv" -> "mixer.conv" where the block's mixer is a mamba; what no parameter is called where it is not."""
    first, _, rest = module.partition(".")
    found = block.find(first)
    return f"{found[0]}.{rest}" if found else module


def _rule(parts: list[str], name: str, shapes: Mapping[str, tuple[int, ...]], transposed: bool, groups: int) -> Rule:
    sizes = tuple(shapes[part][0] for part in parts)
    shape = (sum(sizes), *shapes[parts[0]][1:])
    if ".*" in name:  # one array a row in the file
        return Rule(parts[0], name.replace(".*", ".{}"), shape=shape[1:], stack=shape[0])
    transpose = transposed and len(shape) == 2 and parts[0].startswith("blocks.")
    if len(parts) == 1:
        return Rule(parts[0], name, transpose, shape=shape[::-1] if transpose else shape)
    qkv = ".mixer." in parts[0]
    return Rule(tuple(parts), name, transpose, sizes, groups if qkv else 1, shape[::-1] if transpose else shape)


def declare(
    name: str,
    architecture: str,
    keys: Sequence[Part],
    names: Names,
    *,
    mixer: type[LayerSpec] | None = AttentionSpec,
    ffn: type[LayerSpec] | None = GluSpec,
    norm: NormSpec = RMS,
    fixed: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    transposed: bool = False,
    groups: Callable[[Any], int] = lambda mixer: 1,
    ignored: str = "",
    buffers: Sequence[str] = (),
    loose: Sequence[str] = (),
    constants: Mapping[str, float] | None = None,
    older: Mapping[str, str] | None = None,
    finish: Callable[[Draft], None] | None = None,
    sized: Callable[[int, int, int], Mapping[str, Any]] | None = None,
    packings: Mapping[str, Packing] | None = None,
) -> Family:
    """Register a family.

    `norm` is that of blocks and the end; `fixed` and `model` hold fields of blocks and of the model that all its models
    have ("embed_norm": True is the blocks' norm). `transposed`: matrices in blocks are stored (in, out). `groups`: in
    how many groups fused q, k, v are interleaved. `ignored`: keys of config.json that change nothing. `buffers`: names
    in a block that files may hold, `loose` those outside; `constants`: numbers there that files must hold. `older`:
    names that keys once had, and theirs now. `finish` gets the complete draft. `sized(width, layers, heads)`: what else
    config.json must say for a model of another size. `packings`: how arrays of some keys of `names` lie in the file.
    """
    settings = {"norm": norm, **(fixed or {})}
    named = {place: key.theirs for key in reversed(keys) if isinstance(key, Key) for place in key.ours.split()}
    table: Callable[[ModelConfig], Mapping[str, str]] = names if callable(names) else lambda config: names

    def read(config: dict[str, Any]) -> ModelConfig:
        renamed = {now: config[then] for then, now in (older or {}).items() if then in config and now not in config}
        get, draft = Reader({**config, **renamed}), Draft(settings)
        get.used.update(older or ())
        try:
            for key in keys:
                key.read(get, draft)
            if finish is not None:
                finish(draft)
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            # A number that a formula cannot take, or a list where it expects an object.
            raise ConfigError(f"{get.where}: impossible values for {name}: {error}") from None
        blocks = [made_of(i, fields) for i, fields in enumerate(draft.blocks)]
        fields = {"learned_positions": False, **(model or {}), **draft.model}
        first = blocks[0].norm
        fields["embed_norm"] = first if fields.get("embed_norm") else None
        get.finish(ignored.split())
        # equal blocks are one object, as a list that is multiplied
        same = {block: block for block in blocks}
        fields.setdefault("final_norm", first)
        return ModelConfig(blocks=tuple(same[block] for block in blocks), family=name, **fields)

    def made_of(i: int, fields: Mapping[str, Any]) -> BlockSpec:
        try:
            return _block(fields, mixer, ffn)
        except ConfigError as error:  # "mamba2 heads: expected ..."
            what, _, rest = str(error).partition(":")
            kind, _, field = what.partition(" ")
            half = {each.kind: half for half, each in (("mixer", mixer), ("ffn", ffn)) if each}.get(kind, kind)
            theirs = named.get(f"{kind}.{field}") or named.get(f"{half}.{field}")
            raise ConfigError(f"config.json: block {i}: {what}{f' ({theirs})' if theirs else ''}:{rest}") from None

    def write(config: ModelConfig) -> dict[str, Any]:
        values: dict[str, Any] = {"pad_token_id": None}  # transformers' default may lie beyond the vocabulary
        wrong = ConfigError(f"this model is not a {name}: save it as family 'microgpt'")
        if config.family != name:
            raise wrong
        try:
            for key in keys:
                key.write(config, values)
        except (AttributeError, TypeError, LookupError, ArithmeticError):  # a field that the family has no key for
            raise wrong from None
        try:
            same = read(values) == config
        except ConfigError:
            raise wrong from None
        if not same:
            raise wrong
        return values

    def rules(config: ModelConfig) -> list[Rule]:
        found, prefix = table(config), table(config)["blocks"]
        mixers = (block.mixer for block in config.blocks)
        first = next((each for each in mixers if type(each) is mixer), None)
        rules = weight_rules(config, found, transposed, 1 if first is None else groups(first), packings or {})
        for i in range(len(config.blocks)):
            rules += [Rule((), f"{prefix}.{i}.{each}", constant=value) for each, value in (constants or {}).items()]
        return rules

    def optional(config: ModelConfig) -> list[str]:
        prefix = table(config)["blocks"]
        found = [f"{prefix}.{i}.{each}" for i in range(len(config.blocks)) for each in buffers]
        found += loose
        return [*found, "lm_head.weight"] if config.tie_embeddings else found

    places = {key.ours.split()[0]: key.theirs for key in keys if isinstance(key, Key)}
    kinds = (mixer.kind if mixer else None, ffn.kind if ffn else None)
    return FAMILIES.add(name, Family(name, architecture, read, write, rules, optional, places, kinds, sized))


def _block(fields: Mapping[str, Any], mixer: type[LayerSpec] | None, ffn: type[LayerSpec] | None) -> BlockSpec:
    parts = {"mixer": _layer("mixer", fields, mixer), "ffn": _layer("ffn", fields, ffn)}
    norm = {name: value for name, value in fields.items() if name.split(".")[0] == "norm"}
    block: BlockSpec = made(BlockSpec, {**parts, **under("block", fields), **norm})
    return block


def _layer(half: str, fields: Mapping[str, Any], main: type[LayerSpec] | None) -> Any:
    """A block's mixer or feed-forward: of the declared kind unless "mixer.type" or "ffn.type" says another or None."""
    usual = main and main.kind
    kind = fields.get(f"{half}.type", usual)
    if kind is None:
        return None
    values = under(half if kind == usual else kind, fields)
    parts = {name: _layer(half, {**fields, f"{half}.type": value.kind}, main) for name, value in values.items()
             if isinstance(value, type) and issubclass(value, LayerSpec)}  # fmt: skip
    return made(SPECS.get(kind), {**{name: value for name, value in values.items() if name != "type"}, **parts})

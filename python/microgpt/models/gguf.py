"""Models in GGUF files: hyperparameters, weight names and layouts, both ways, from the families' tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, FormatError, nearest
from ..io import ggml, gguf_writer
from ..io.ggml import NAMED, GgmlType
from ..io.gguf import GgufFile
from ..io.mapped import Stored
from ..io.names import Rule, Shaped, to_file
from ..nn.checks import number, whole
from ..nn.positions import rope_frequencies
from ..nn.rope import RopeSpec
from ..nn.spec import AttentionSpec, BlockSpec
from .config import ModelConfig
from .decoder import Decoder
from .families import FAMILIES, Family
from .families.gguf import GGUF, Gguf

# What llama.cpp calls the mixture of types in a file (general.file_type), by our name of it.
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k": 14, "q6_k": 18, "bf16": 32}
# Where rows do not fill the blocks of a type, the nearest one that they fill; at last f16.
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q4_0": "F16", "Q5_0": "F16", "Q8_0": "F16"}
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Keys that change nothing of what is computed, or follow from others.
QUIET = frozenset("vocab_size attention.value_length attention.key_length rope.scaling.finetuned tensor_data_layout "
                  "attention.value_length_swa attention.key_length_swa rope.dimension_count_swa".split())  # fmt: skip


@dataclass(frozen=True)
class FoundGguf:
    """A GGUF file with the model that it holds: `rules` name its tensors, `optional` those that may be there."""

    file: GgufFile
    config: ModelConfig
    rules: Sequence[Rule]
    optional: Sequence[str]
    weights: Mapping[str, Stored]


def family_of(arch: str, keys: Container[str] = ()) -> Family:
    """The family of a general.architecture, and of the metadata `keys` where several share one. Raises ConfigError."""
    known = [name for name, facts in GGUF.items() if facts.arch == arch]
    if not known:
        archs = {facts.arch for _, facts in GGUF.items()}
        names = ", ".join(sorted(archs))
        raise ConfigError(f"unknown architecture {arch!r} of a GGUF file{nearest(arch, archs)}; known: {names}")
    told = [name for name in known if GGUF.get(name).told_by and f"{arch}.{GGUF.get(name).told_by}" in keys]
    return FAMILIES.get(told[0] if told else next(name for name in known if not GGUF.get(name).told_by))


def _less_one(stored: Stored) -> Stored:
    return replace(stored, array=lambda: stored.array().astype(np.float32) - 1)


def facts_of(config: ModelConfig) -> Gguf:
    """The table of a model's family. Raises ConfigError when GGUF files do not hold it."""
    if config.family not in GGUF:
        raise ConfigError(
            f"models of family {config.family!r} have no GGUF form; those of {', '.join(sorted(GGUF))} do"
        )
    facts = GGUF.get(config.family)
    return replace(facts, names={**facts.names, **facts.variant(config)})


def open_model(path: Path | str) -> FoundGguf:
    """A GGUF file and the ModelConfig in it; no weight is read. Raises FormatError, ConfigError."""
    file = GgufFile(path)
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ConfigError(f"{path}: one of {parts} parts of a model; llama-gguf-split --merge makes one file of them")
    try:
        family = family_of(file.get("general.architecture", str), file.metadata)
        config = family.read(config_json(file, GGUF.get(family.name)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    rules = rules_of(config)
    weights: dict[str, Stored] = {**file.weights(), **_numbers(file, config)}
    heads = _rotated_heads(config)
    for name, count in heads.items():
        if name in weights:
            weights[name] = halved(weights[name], count, f"{path}: {name}")
    if facts_of(config).plus_one:
        for name, stored in weights.items():
            if name.endswith("norm.weight"):
                weights[name] = _less_one(stored)
    optional = [*FACTORS, *([] if not config.tie_embeddings else ["output.weight"])]
    return FoundGguf(file, config, rules, optional, weights)


def _numbers(file: GgufFile, config: ModelConfig) -> dict[str, Stored]:
    """Parameters that stand in the metadata, as tensors of one number."""
    found: dict[str, Stored] = {}
    facts, count = facts_of(config), len(config.blocks)
    for key in [*facts.numbers.values(), *(key for key in facts.constants if key in file.metadata)]:
        values = file.get(key, (np.ndarray, float))
        values = np.full(count, values, np.float32) if isinstance(values, float) else values  # one for all
        if values.shape != (count,) or values.dtype.kind != "f":
            raise FormatError(f"{file.path}: metadata {key!r} expected {count} numbers, one a block")
        wanted = facts.constants.get(key)
        if wanted is not None and not np.array_equal(values, np.full(count, wanted, np.float32)):
            raise ConfigError(f"{file.path}: metadata {key!r}: expected {wanted} for every block")
        for i, value in enumerate(values.astype(np.float32) if wanted is None else ()):
            found[f"{key}[{i}]"] = Stored((1,), "float32", lambda value=value: np.array([value]))  # type: ignore[misc]
    return found


def rules_of(config: ModelConfig) -> list[Rule]:
    """Our parameters <-> GGUF names. Raises ConfigError for a family or a part that GGUF files do not hold."""
    facts, family = facts_of(config), FAMILIES.get(config.family)
    assert family.rules is not None
    found: dict[str, list[str]] = {}
    for ours in (part for rule in family.rules(config) for part in rule.parts()):
        theirs = facts.name(ours)
        if theirs is None:
            raise ConfigError(f"GGUF has no name for {ours!r} of a {config.family}")
        found.setdefault(theirs, []).append(ours)
    rules = []
    for theirs, parts in found.items():
        if len(parts) == 1:
            rules.append(Rule(parts[0], theirs))
            continue
        inner = {part.split(".", 2)[2].rpartition(".")[0]: part for part in parts}
        group = next(group.split() for group in facts.fused if group.split()[0] in inner)
        block = config.blocks[int(parts[0].split(".")[1])]
        sizes = tuple(_rows(block, part) for part in group)
        rules.append(Rule(tuple(inner[part] for part in group), theirs, sizes=sizes))
    return rules


def _rows(block: BlockSpec, part: str) -> int:
    """Rows of a matrix that may be joined with others."""
    if part.startswith("ffn."):
        return int(block.ffn.width)
    return int(block.mixer.head_dim * (block.mixer.heads if part == "mixer.q" else block.mixer.kv_heads))


def _rotated_heads(config: ModelConfig) -> dict[str, int]:
    """Tensors whose rows lie pair by pair -> their number of heads."""
    facts, heads = facts_of(config), {}
    for block in config.blocks:
        if (
            not facts.partial
            and block.mixer.rope is not None
            and block.mixer.rope.dims not in (0, block.mixer.head_dim)
        ):
            raise ConfigError(f"{facts.arch}: partial rotary positions have no GGUF form")
    if not facts.interleaved:
        return {}
    for i, block in enumerate(config.blocks):
        for part, count in (("q", block.mixer.heads), ("k", block.mixer.kv_heads)):
            for kind in ("weight", "bias"):
                heads[f"{facts.name(f'blocks.{i}.mixer.{part}.{kind}')}"] = count
    return heads


def interleave(value: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of each head in the order of pairs: row i and row i + D/2 become rows 2i and 2i + 1."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def halve(value: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The inverse of interleave."""
    return value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def halved(stored: Stored, heads: int, what: str) -> Stored:
    """A tensor whose rows are read in the order of halves. Raises ConfigError where its rows are no pairs."""
    if not stored.shape or stored.shape[0] % (2 * heads):
        raise ConfigError(f"{what}: expected rows in pairs for {heads} heads, got shape {stored.shape}")
    return replace(stored, array=lambda: halve(stored.array(), heads), rows=None)


# --- hyperparameters --------------------------------------------------------------------------------------------------


class Opened(Protocol):
    """What hyperparameters are read from: a file, or what is going to be one."""

    metadata: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Of the file."""

    @property
    def tensors(self) -> Mapping[str, Shaped]:
        """By name."""

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """As GgufFile's."""

    def array(self, name: str) -> npt.NDArray[Any]:
        """As GgufFile's."""


@dataclass(frozen=True)
class Draft:
    """A file that is going to be written, as far as hyperparameters are read from it."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Shaped]
    arrays: Mapping[str, npt.NDArray[np.float32]]

    def get(self, key: str, kind: Any, default: Any = ...) -> Any:
        """See Opened."""
        return self.metadata.get(key, default)

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """See Opened."""
        return self.arrays[name]


def config_json(file: Opened, facts: Gguf) -> dict[str, Any]:
    """The metadata as a config.json of the family. Warns of keys of the architecture that nothing here reads."""
    used = {*QUIET, *facts.keys}

    def get(key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        used.add(key)
        value = file.get(f"{facts.arch}.{key}", kind, default)
        # float32 in the file; the shortest decimal that gives it is what was meant.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    values: dict[str, Any] = {**facts.assumed, **facts.fixed}
    for key, theirs in facts.keys.items():
        value = get(key, (int, float, str, bool))
        if value is not None:
            values[theirs] = value
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise FormatError(f"{file.path}: no tensor 'token_embd.weight' of two axes: no weights of a language model")
    values["vocab_size"] = table.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    for switch, tensor in facts.present.items():
        values[switch] = tensor in file.tensors
    whole("block_count", values.get(facts.keys["block_count"]), 1, 1024)  # before as many blocks are made
    used |= {key.removeprefix(f"{facts.arch}.") for key in facts.numbers.values()}
    if facts.rope:
        rope = _read_rope(file, get, get("context_length", int, 2048))
        heads = max(1, get("attention.head_count", int, 1))
        head_dim = get("attention.key_length", int, get("embedding_length", int, 0) // heads)
        turning = get("rope.dimension_count", int, head_dim)
        if 0 < turning < head_dim:
            rope["partial_rotary_factor"] = turning / head_dim
        values["rope_parameters"] = rope
    try:
        facts.read(values)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"impossible metadata for {facts.arch}: {error!r}") from None
    unread = [key for key in file.metadata if key.startswith(f"{facts.arch}.") and key.split(".", 1)[1] not in used]
    if unread:
        warnings.warn(f"{file.path}: metadata not understood and ignored: {', '.join(unread)}", stacklevel=4)
    return values


def _read_rope(file: Opened, get: Callable[..., Any], context: int) -> dict[str, Any]:
    """rope_parameters. Factors a pair (Llama 3's, LongRoPE's) stand in tensors."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": get("rope.freq_base", float, 10000.0)}
    kind = get("rope.scaling.type", str, "none")
    factor = get("rope.scaling.factor", float, 1.0)
    original = get("rope.scaling.original_context_length", int, context)
    attention = get("rope.scaling.attn_factor", float, 1.0)
    fast, slow = get("rope.scaling.yarn_beta_fast", float, 32.0), get("rope.scaling.yarn_beta_slow", float, 1.0)
    growth = get("rope.scaling.yarn_log_multiplier", float, 0.0)
    tables = [file.array(name).astype(np.float64).reshape(-1).tolist() for name in FACTORS if name in file.tensors]
    if tables:
        if "rope_freqs.weight" in file.tensors:  # divisors of the frequencies, whatever the length
            tables = [tables[0], tables[0]]
        elif len(tables) != 2:
            raise FormatError(f"{file.path}: expected rope_factors_long and rope_factors_short, got one of them")
        rope |= {"rope_type": "longrope", "long_factor": tables[0], "short_factor": tables[1], "factor": 1.0,
                 "attention_factor": attention, "original_max_position_embeddings": original}  # fmt: skip
    elif kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            rope |= {"original_max_position_embeddings": original, "beta_fast": fast, "beta_slow": slow}
            number("rope.scaling.factor", factor, 1e-6)
            if attention != 1.0 or growth:
                rope["attention_factor"] = attention * _growth(factor) / _growth(factor, growth)
    elif kind != "none":
        raise ConfigError(f"rope.scaling.type {kind!r}: known are none, linear, yarn")
    return rope


def _growth(factor: float, times: float = 1.0) -> float:
    """YaRN's factor of scores (its square root) for a stretch by `factor`."""
    return 1.0 + 0.1 * times * float(np.log(max(factor, 1.0)))


def metadata_of(config: ModelConfig) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """The inverse: metadata, and tensors of rotary factors. Raises ConfigError for what GGUF cannot say."""
    facts = facts_of(config)
    values = FAMILIES.get(config.family).write(config)
    if (values.get("sliding_window") or 0) >= config.max_positions and facts.fixed.get("sliding_window", 0) is None:
        values = {**values, "sliding_window": None}  # no key is ever outside it
    facts.write(values)
    for key, value in facts.fixed.items():
        if values.get(key, value) != value:
            raise ConfigError(f"GGUF's {facts.arch} has {key} {value!r}, this model {values[key]!r}")
    made: dict[str, Any] = {"general.architecture": facts.arch}
    for key, theirs in facts.keys.items():
        if values.get(theirs) is not None:
            made[f"{facts.arch}.{key}"] = values[theirs]
    made[f"{facts.arch}.vocab_size"] = config.vocab_size
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    if facts.rope:
        mixer = _turning(config)
        made[f"{facts.arch}.rope.dimension_count"] = mixer.rope.dims or mixer.head_dim
        if f"{facts.arch}.attention.key_length" in made:
            made[f"{facts.arch}.attention.value_length"] = mixer.head_dim
        rope, tensors = _write_rope(mixer.rope, mixer.head_dim, config.max_positions)
        made |= {f"{facts.arch}.{key}": value for key, value in rope.items()}
    _check(config, facts, made, tensors)
    return made, tensors


def _check(
    config: ModelConfig, facts: Gguf, made: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Raises ConfigError unless what is written would be read as the same computation."""
    shapes = config.shapes()
    names = {rule.theirs: np.broadcast_to(np.float32(0), shapes[rule.parts()[0]]) for rule in rules_of(config)}
    file = Draft(Path("GGUF"), made, {**names, **tensors}, tensors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            family = family_of(facts.arch, made)
            back = FAMILIES.get(family.name).read(config_json(file, GGUF.get(family.name)))
    except ConfigError as error:
        raise ConfigError(f"GGUF's {facts.arch} cannot say what this model is: {error}") from None
    wrong = _differences(_plain(config), _plain(back))
    if wrong:
        raise ConfigError(f"GGUF's {facts.arch} cannot say what this model is: it would be read with {wrong}")


def _plain(config: ModelConfig) -> dict[str, Any]:
    """What of a configuration makes numbers in a forward; rotary positions as the frequencies they are."""
    values = config.to_dict()
    for name in ("family", "init_std", "embed_dropout", "scale_residual_init"):
        del values[name]
    for made, block in zip(values["blocks"], config.blocks, strict=True):
        del made["dropout"]
        mixer, inner = block.mixer, made["mixer"]
        if mixer.rope is not None:
            frequencies, factor = rope_frequencies(mixer.rope, mixer.head_dim, config.max_positions)
            inner["rope"] = {"frequencies": tuple(frequencies), "factor": factor,
                             "interleaved": mixer.rope.interleaved, "reverse": mixer.rope.reverse}  # fmt: skip
        if inner["scale"] is None:
            inner["scale"] = mixer.head_dim**-0.5
        if inner["window"] is not None and inner["window"] >= config.max_positions:
            inner["window"] = None
        if inner["qk_norm"] is None:
            inner["qk_norm_over"] = inner["qk_norm_last"] = None
    return values


def _differences(ours: Any, theirs: Any, where: str = "") -> str:
    """The first place where two trees of plain values differ, numbers by more than a rounding to float32; or ""."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = [(f"{where}.{key}", ours[key], theirs.get(key)) for key in ours]
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        pairs = [(f"{where}[{i}]", *each) for i, each in enumerate(zip(ours, theirs, strict=True))]
    else:
        number = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (ours, theirs))
        same = abs(ours - theirs) <= 1e-6 * abs(ours) if number else ours == theirs
        return "" if same else f"{where.lstrip('.')} {theirs!r}, it is {ours!r}"
    return next((found for place, a, b in pairs if (found := _differences(a, b, place))), "")


def _turning(config: ModelConfig) -> AttentionSpec:
    """The mixer whose rotary positions stand in the file: of a full layer where one has some."""
    turning = [block.mixer for block in config.blocks if block.mixer.rope is not None]
    if not turning:
        raise ConfigError(f"GGUF's {facts_of(config).arch} has rotary positions, this model none")
    return next((mixer for mixer in turning if mixer.window is None), turning[0])


def _write_rope(
    rope: RopeSpec, head_dim: int, positions: int
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    made: dict[str, Any] = {"rope.freq_base": float(rope.theta)}
    scaling = rope.scaling
    if scaling is None or scaling.kind == "dynamic":  # dynamic begins beyond the context, which ends here
        return made, {}
    _, attention = rope_frequencies(rope, head_dim, positions)
    original = scaling.original or positions
    if scaling.kind in ("linear", "yarn"):
        made |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
        usual = _growth(scaling.factor) if scaling.kind == "yarn" else 1.0
        if scaling.kind == "yarn":
            made |= {"rope.scaling.original_context_length": original,
                     "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
                     "rope.scaling.yarn_beta_slow": float(scaling.beta_slow)}  # fmt: skip
        if not scaling.truncate:
            raise ConfigError("GGUF has no form for yarn scaling without truncation")
        if abs(attention - usual) > 1e-6 * usual:
            made["rope.scaling.attn_factor"] = attention / usual
        return made, {}
    if scaling.kind == "ntk":  # another theta
        dims = rope.dims or head_dim
        return {"rope.freq_base": float(rope.theta * scaling.factor ** (dims / (dims - 2)))}, {}
    if scaling.kind == "llama3":
        plain, _ = rope_frequencies(replace(rope, scaling=None), head_dim, positions)
        divisors = plain / rope_frequencies(rope, head_dim, positions)[0]
        if attention != 1.0:
            raise ConfigError("GGUF has no form for llama3 scaling with an attention factor")
        return made, {"rope_freqs.weight": divisors.astype(np.float32)}
    if scaling.kind != "longrope":
        raise ConfigError(f"GGUF has no form for {scaling.kind} scaling of rotary positions")
    made |= {"rope.scaling.attn_factor": float(attention), "rope.scaling.original_context_length": original}
    long, short = (np.array(each, np.float32) for each in (scaling.long_factor, scaling.short_factor))
    if np.array_equal(long, short) and attention == 1.0:
        return {"rope.freq_base": float(rope.theta)}, {"rope_freqs.weight": long}
    return made, {"rope_factors_long.weight": long, "rope_factors_short.weight": short}


# --- writing ----------------------------------------------------------------------------------------------------------


def type_of(name: str) -> str:
    """ "q4_k" for any spelling of it. Raises ConfigError with the known ones."""
    lowered = name.lower()
    if lowered not in FILE_TYPES:
        known = ", ".join(FILE_TYPES)
        raise ConfigError(f"type {name!r}: unknown GGUF type{nearest(lowered, FILE_TYPES)}; known: {known}")
    return lowered


def save_gguf(model: Decoder, path: Path, kind: str = "f16", metadata: Mapping[str, Any] | None = None) -> int:
    """Write the model as a GGUF file that llama.cpp reads; returns its size in bytes.

    `kind` f32, f16, bf16, q8_0, q4_0, q4_k or q6_k is the type of matrices; vectors and learned positions stay float32,
    a q4_k file has its output (or tied embedding) in q6_k, and rows that do not fill blocks take the next type that
    they fill (told by a warning). `metadata` adds keys, such as a tokenizer's.
    Raises ConfigError for what GGUF cannot hold, NonFiniteError, StorageError.
    """
    config, kind = model.config, type_of(kind)
    made, factors = metadata_of(config)
    rules, heads = rules_of(config), _rotated_heads(config)
    arrays, plus_one = model.arrays(), facts_of(config).plus_one

    rules, alone = [r for r in rules if not r.theirs.endswith("]")], [r for r in rules if r.theirs.endswith("]")]
    for rule in alone:  # numbers that stand in the metadata, block after block
        key = rule.theirs.partition("[")[0]
        made[key] = np.append(made.get(key, np.zeros(0, np.float32)), arrays[rule.parts()[0]].astype(np.float32))

    for key, value in facts_of(config).constants.items():
        made[key] = np.full(len(config.blocks), value, np.float32)

    def planned(rule: Rule) -> gguf_writer.Planned:
        parts = {name: arrays[name] for name in rule.parts()}
        shape = (sum(part.shape[0] for part in parts.values()), *next(iter(parts.values())).shape[1:])

        def values() -> npt.NDArray[Any]:
            value = to_file((rule,), parts)[rule.theirs]
            if plus_one and rule.theirs.endswith("norm.weight"):
                value = value.astype(np.float32) + 1
            return interleave(value, heads[rule.theirs]) if rule.theirs in heads else value

        return gguf_writer.Planned(rule.theirs, shape, _tensor_type(rule.theirs, shape, kind, config), values)

    tensors = [planned(rule) for rule in rules]
    tensors += [
        gguf_writer.Planned(name, value.shape, NAMED["F32"], lambda value=value: value)  # type: ignore[misc]
        for name, value in factors.items()
    ]
    wanted = NAMED[kind.upper()]
    other = sum(len(t.shape) > 1 and t.shape[-1] % wanted.weights != 0 for t in tensors)
    if other:
        warnings.warn(f"{path}: rows of {other} tensors do not fill blocks of {wanted.weights}; they are written as "
                      f"{', '.join(sorted({t.kind.name for t in tensors if t.shape[-1] % wanted.weights}))}",
                      stacklevel=3)  # fmt: skip
    made |= {"general.quantization_version": 2, "general.file_type": FILE_TYPES[kind], **(metadata or {})}
    return gguf_writer.write(path, made, tensors)


def _tensor_type(name: str, shape: tuple[int, ...], kind: str, config: ModelConfig) -> GgmlType:
    if len(shape) < 2 or name.startswith("position_embd") or name.endswith("norm.weight"):
        return NAMED["F32"]
    chosen = kind.upper()
    if chosen == "Q4_K" and name == ("token_embd.weight" if config.tie_embeddings else "output.weight"):
        chosen = "Q6_K"
    while shape[-1] % ggml.NAMED[chosen].weights:
        chosen = FALLBACK[chosen]
    return NAMED[chosen]

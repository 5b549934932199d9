"""Models in GGUF files: hyperparameters, weight names and layouts, both ways, from the families' tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, FormatError, nearest
from ..io import ggml, gguf_writer
from ..io.ggml import NAMED, GgmlType
from ..io.gguf import GgufFile
from ..io.mapped import Stored
from ..io.names import Rule, to_file
from ..nn.checks import whole
from ..nn.positions import rope_frequencies
from ..nn.rope import RopeSpec
from ..nn.spec import BlockSpec
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
                  "rope.scaling.yarn_log_multiplier".split())  # fmt: skip


@dataclass(frozen=True)
class FoundGguf:
    """A GGUF file with the model that it holds: `rules` name its tensors, `optional` those that may be there."""

    file: GgufFile
    config: ModelConfig
    rules: Sequence[Rule]
    optional: Sequence[str]
    weights: Mapping[str, Stored]


def family_of(arch: str) -> Family:
    """The family whose general.architecture this is. Raises ConfigError with the nearest names."""
    known = {facts.arch: name for name, facts in reversed(list(GGUF.items()))}
    if arch not in known:
        names = ", ".join(sorted(known))
        raise ConfigError(f"unknown architecture {arch!r} of a GGUF file{nearest(arch, known)}; known: {names}")
    return FAMILIES.get(known[arch])


def _less_one(stored: Stored) -> Stored:
    return replace(stored, array=lambda: stored.array().astype(np.float32) - 1, blocks=None)


def facts_of(config: ModelConfig) -> Gguf:
    """The table of a model's family. Raises ConfigError when GGUF files do not hold it."""
    if config.family not in GGUF:
        raise ConfigError(
            f"models of family {config.family!r} have no GGUF form; those of {', '.join(sorted(GGUF))} do"
        )
    return GGUF.get(config.family)


def open_model(path: Path | str) -> FoundGguf:
    """A GGUF file and the ModelConfig in it; no weight is read. Raises FormatError, ConfigError."""
    file = GgufFile(path)
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ConfigError(f"{path}: one of {parts} parts of a model; llama-gguf-split --merge makes one file of them")
    try:
        family = family_of(file.get("general.architecture", str))
        config = family.read(config_json(file, GGUF.get(family.name)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    rules = rules_of(config)
    weights: dict[str, Stored] = dict(file.weights())
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
    if not facts.interleaved:
        return {}
    for i, block in enumerate(config.blocks):
        if block.mixer.rope is not None and block.mixer.rope.dims not in (0, block.mixer.head_dim):
            raise ConfigError(f"{facts.arch}: partial rotary positions have no GGUF form")
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
    blocks = stored.blocks
    if blocks is not None:
        kind, rows = blocks
        order = halve(np.arange(stored.shape[0]), heads)
        blocks = kind, lambda start, stop: rows(0, stored.shape[0])[order[start:stop]]
    return replace(stored, array=lambda: halve(stored.array(), heads), rows=None, blocks=blocks)


# --- hyperparameters --------------------------------------------------------------------------------------------------


def config_json(file: GgufFile, facts: Gguf) -> dict[str, Any]:
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
        raise FormatError(
            f"{file.file.path}: no tensor 'token_embd.weight' of two axes: no weights of a language model"
        )
    values["vocab_size"] = table.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    for switch, tensor in facts.present.items():
        values[switch] = tensor in file.tensors
    whole("block_count", values.get(facts.keys["block_count"]), 1, 1024)  # before as many blocks are made
    if facts.rope:
        rope = _read_rope(file, get, get("context_length", int, 2048))
        heads = max(1, get("attention.head_count", int, 1))
        head_dim = get("attention.key_length", int, get("embedding_length", int, 0) // heads)
        turning = get("rope.dimension_count", int, head_dim)
        if 0 < turning < head_dim:
            rope["partial_rotary_factor"] = turning / head_dim
        values["rope_parameters"] = rope
    unread = [key for key in file.metadata if key.startswith(f"{facts.arch}.") and key.split(".", 1)[1] not in used]
    if unread:
        warnings.warn(f"{file.file.path}: metadata not understood and ignored: {', '.join(unread)}", stacklevel=4)
    return values


def _read_rope(file: GgufFile, get: Callable[..., Any], context: int) -> dict[str, Any]:
    """rope_parameters. Factors a pair (Llama 3's, LongRoPE's) stand in tensors."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": get("rope.freq_base", float, 10000.0)}
    kind = get("rope.scaling.type", str, "none")
    factor = get("rope.scaling.factor", float, 1.0)
    original = get("rope.scaling.original_context_length", int, context)
    attention = get("rope.scaling.attn_factor", float, 1.0)
    fast, slow = get("rope.scaling.yarn_beta_fast", float, 32.0), get("rope.scaling.yarn_beta_slow", float, 1.0)
    tables = [file.array(name).astype(np.float64).reshape(-1).tolist() for name in FACTORS if name in file.tensors]
    if tables:
        if "rope_freqs.weight" in file.tensors:  # divisors of the frequencies, whatever the length
            tables = [tables[0], tables[0]]
        elif len(tables) != 2:
            raise FormatError(f"{file.file.path}: expected rope_factors_long and rope_factors_short, got one of them")
        rope |= {"rope_type": "longrope", "long_factor": tables[0], "short_factor": tables[1], "factor": 1.0,
                 "attention_factor": attention, "original_max_position_embeddings": original}  # fmt: skip
    elif kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            rope |= {"original_max_position_embeddings": original, "beta_fast": fast, "beta_slow": slow}
            if attention != 1.0:
                rope["attention_factor"] = attention * (1.0 + 0.1 * float(np.log(max(factor, 1.0))))
    elif kind != "none":
        raise ConfigError(f"rope.scaling.type {kind!r}: known are none, linear, yarn")
    return rope


def metadata_of(config: ModelConfig) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """The inverse: metadata, and tensors of rotary factors. Raises ConfigError for what GGUF cannot say."""
    facts = facts_of(config)
    values = FAMILIES.get(config.family).write(config)
    if (values.get("sliding_window") or 0) >= config.max_positions and facts.fixed.get("sliding_window", 0) is None:
        values = {**values, "sliding_window": None}  # no key is ever outside it
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
        mixer = config.blocks[0].mixer
        made[f"{facts.arch}.rope.dimension_count"] = mixer.rope.dims or mixer.head_dim
        if f"{facts.arch}.attention.key_length" in made:
            made[f"{facts.arch}.attention.value_length"] = mixer.head_dim
        rope, tensors = _write_rope(mixer.rope, mixer.head_dim, config.max_positions)
        made |= {f"{facts.arch}.{key}": value for key, value in rope.items()}
    return made, tensors


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
        usual = 1.0 + 0.1 * float(np.log(max(scaling.factor, 1.0))) if scaling.kind == "yarn" else 1.0
        if scaling.kind == "yarn":
            made |= {"rope.scaling.original_context_length": original,
                     "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
                     "rope.scaling.yarn_beta_slow": float(scaling.beta_slow)}  # fmt: skip
        if not scaling.truncate or abs(attention - usual) > 1e-6 * usual:
            raise ConfigError(f"GGUF has no form for this {scaling.kind} scaling: its attention factor or truncation")
        return made, {}
    if scaling.kind == "llama3":
        plain, _ = rope_frequencies(replace(rope, scaling=None), head_dim, positions)
        divisors = plain / rope_frequencies(rope, head_dim, positions)[0]
        if attention != 1.0:
            raise ConfigError("GGUF has no form for llama3 scaling with an attention factor")
        return made, {"rope_freqs.weight": divisors.astype(np.float32)}
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
    if len(shape) < 2 or name.startswith("position_embd"):
        return NAMED["F32"]
    chosen = kind.upper()
    if chosen == "Q4_K" and name == ("token_embd.weight" if config.tie_embeddings else "output.weight"):
        chosen = "Q6_K"
    while shape[-1] % ggml.NAMED[chosen].weights:
        chosen = FALLBACK[chosen]
    return NAMED[chosen]

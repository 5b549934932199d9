"""Models in GGUF files: weight names and layouts, both ways, from the families' tables."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, FormatError
from ..io import gguf_writer
from ..io.ggml import NAMED
from ..io.gguf import GgufFile
from ..io.names import Packing, Rule, to_file
from ..io.stored import Stored
from .config import ModelConfig
from .decoder import Decoder
from .families import FAMILIES
from .families.gguf import Gguf
from .families.rope import turning
from .gguf_config import FACTORS, config_json, facts_of, metadata_of, table_of
from .gguf_types import FILE_TYPES, LOW_RANK, base_of, tensor_type, type_of
from .quantized import weights_of


@dataclass(frozen=True)
class FoundGguf:
    """A GGUF file with the model that it holds: `rules` name its tensors, `optional` those that may be there."""

    file: GgufFile
    config: ModelConfig
    rules: Sequence[Rule]
    optional: Sequence[str]
    weights: Mapping[str, Stored]


def _less_one(stored: Stored) -> Stored:
    return stored.derived(lambda: stored.array().astype(np.float32) - 1)


def _norm_plus_one(name: str) -> bool:
    """Whether a tensor is a norm's that stores its weight plus one where any does: not those within linear layers."""
    return name.endswith("norm.weight") and not name.endswith("ssm_norm.weight")


def _one_row(stored: Stored) -> Stored:
    return stored.derived(lambda: stored.array()[None], (1, *stored.shape))


def open_model(path: Path | str) -> FoundGguf:
    """A GGUF file and the ModelConfig in it; no weight is read. Raises FormatError, ConfigError."""
    file = GgufFile(path)
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ConfigError(f"{path}: one of {parts} parts of a model; llama-gguf-split --merge makes one file of them")
    try:
        family, table = table_of(file.get("general.architecture", str), file.metadata)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        config = family.read(config_json(file, table))
        rules, heads = rules_of(config), _rotated_heads(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {in_the_file(str(error), table)}") from None
    weights: dict[str, Stored] = {**file.weights(), **_numbers(file, config)}
    beyond = len(config.blocks)  # blocks that predict tokens after the next one
    ahead = file.get(f"{table.arch}.nextn_predict_layers", int, 0)
    for name in [name for i in range(beyond, beyond + ahead) for name in weights if name.startswith(f"blk.{i}.")]:
        del weights[name]
    for name, rows in heads.items():
        if name in weights:
            weights[name] = halved(weights[name], *rows, f"{path}: {name}")
    for name, stored in weights.items():
        if name.endswith("ffn_gate_inp_shexp.weight") and len(stored.shape) == 1:
            weights[name] = _one_row(stored)
    if facts_of(config).plus_one:
        for name, stored in weights.items():
            if _norm_plus_one(name):
                weights[name] = _less_one(stored)
    optional = [*FACTORS, *facts_of(config).copies, *([] if not config.tie_embeddings else ["output.weight"])]
    return FoundGguf(file, config, rules, optional, weights)


def in_the_file(message: str, table: Gguf) -> str:
    """A message about a key of config.json, with the metadata key that it came from."""
    names = {theirs: key for key, theirs in table.keys.items()}
    message = message.removeprefix("config.json: ")
    return re.sub(r"^(block \d+: [\w ]*\()?(\w+)(?=\W)", lambda found: f"{found[1] or ''}metadata "
                  f"'{table.arch}.{names[found[2]]}'" if found[2] in names else found[0], message)  # fmt: skip


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
    shapes = config.shapes()
    found: dict[str, list[str]] = {}
    for ours in shapes if family.rules is None else (part for rule in family.rules(config) for part in rule.parts()):
        theirs = facts.name(ours)
        if theirs is None:
            raise ConfigError(f"GGUF has no name for {ours!r} of a {config.family}")
        found.setdefault(theirs, []).append(ours)
    rules = []
    packings = facts.packings(config) if callable(facts.packings) else facts.packings

    def packing_of(names: str, one: str) -> Packing | None:
        """Of the parameters of a block that are called so, `one` among them."""
        return packings.get(f"{one.split('.')[1]}.{names}") or packings.get(names)

    for theirs, parts in found.items():
        if len(parts) == 1:
            packing = packing_of(parts[0].split(".", 2)[-1], parts[0]) if "." in parts[0] else None
            rules.append(Rule(tuple(parts) if packing else parts[0], theirs, packing=packing))
            continue
        whole = {part.split(".", 2)[2]: part for part in parts}
        modules = {name.rpartition(".")[0]: part for name, part in whole.items()}
        joins = [(group.split(), names) for group in facts.fused for names in (whole, modules)]
        group, inner = next((group, names) for group, names in joins if {*group} == {*names})
        kind = "" if inner is whole else "." + parts[0].rpartition(".")[2]
        sizes = tuple(shapes[inner[part]][0] for part in group)
        packing = packing_of(" ".join(group) + kind, parts[0])
        joined = packing and _joined(packing, sizes)
        rules.append(Rule(tuple(inner[part] for part in group), theirs, sizes=sizes, packing=joined))
    return rules


def _joined(packing: Packing, sizes: Sequence[int]) -> Packing:
    """The packing of arrays whose rows, so many of each, are joined before."""
    ends = np.cumsum(sizes)[:-1]
    return Packing(
        lambda parts: packing.join([np.concatenate(parts)]),
        lambda value: np.split(packing.split(value)[0], ends),
        lambda shapes: packing.shape([(sum(sizes), *shapes[0][1:])]),
    )


def _rotated_heads(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Tensors whose rows lie pair by pair -> their number of heads, and how many rows of each turn."""
    facts, heads = facts_of(config), {}
    for mixer in turning(config):
        if not facts.partial and mixer.rope.dims not in (0, mixer.head_dim):
            raise ConfigError(f"{facts.arch}: partial rotary positions have no GGUF form")
    if not facts.interleaved:
        return {}
    for i, block in enumerate(config.blocks):
        if not hasattr(block.mixer, "kv_heads"):
            continue
        for part, count in (("q", block.mixer.heads), ("k", block.mixer.kv_heads)):
            for kind in ("weight", "bias"):
                dims = block.mixer.head_dim if block.mixer.rope is None else block.mixer.rope.dims
                heads[f"{facts.name(f'blocks.{i}.mixer.{part}.{kind}')}"] = count, dims or block.mixer.head_dim
    return heads


def interleave(value: npt.NDArray[Any], heads: int, dims: int) -> npt.NDArray[Any]:
    """The first `dims` rows D of each head in the order of pairs: row i and row i + D/2 become rows 2i and 2i + 1."""
    made = value.reshape(heads, -1, *value.shape[1:]).copy()
    made[:, :dims] = made[:, :dims].reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(made[:, :dims].shape)
    return made.reshape(value.shape)


def halve(value: npt.NDArray[Any], heads: int, dims: int) -> npt.NDArray[Any]:
    """The inverse of interleave."""
    made = value.reshape(heads, -1, *value.shape[1:]).copy()
    made[:, :dims] = made[:, :dims].reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(made[:, :dims].shape)
    return made.reshape(value.shape)


def halved(stored: Stored, heads: int, dims: int, what: str) -> Stored:
    """A tensor whose rows are read in the order of halves. Raises ConfigError where its rows are no pairs."""
    if not stored.shape or stored.shape[0] % (2 * heads) or stored.shape[0] < heads * dims:
        raise ConfigError(f"{what}: expected rows in pairs for {heads} heads, got shape {stored.shape}")
    made = stored.derived(lambda: halve(stored.array(), heads, dims))
    if stored.blocks is None:
        return made
    kind, rows = stored.blocks
    order = halve(np.arange(stored.shape[0]), heads, dims)
    return replace(made, blocks=(kind, lambda start, stop: rows(0, stored.shape[0])[order[start:stop]]))


# --- writing ----------------------------------------------------------------------------------------------------------


def save_gguf(model: Decoder, path: Path, kind: str = "f16", metadata: Mapping[str, Any] | None = None) -> int:
    """Write the model as a GGUF file that llama.cpp reads; returns its size in bytes.

    `kind`, one of FILE_TYPES, is the type of matrices; vectors and learned positions stay float32, files of few bits
    have their output (or tied embedding) in q6_k, and rows that do not fill blocks take the next type that they fill
    (told by a warning, as is a pooler, which GGUF has not). Quantized weights keep their numbers where GGUF has such
    blocks; others become numbers of `kind`, then f32, f16 or bf16. `metadata` adds keys, such as a tokenizer's.
    Raises ConfigError for what GGUF cannot hold, NonFiniteError, StorageError.
    """
    kind, plus_one = type_of(kind), facts_of(model.config).plus_one
    config, growth = facts_of(model.config).folded(replace(model.config, pooler=False))
    made, factors = metadata_of(config)
    rules, heads = rules_of(config), _rotated_heads(config)
    arrays, codes = model.arrays(), weights_of(model)
    if codes and base_of(kind).weights > 1:
        raise ConfigError(f"export: a quantized model has lost what {kind} would round; export the original, or keep "
                          "its blocks")  # fmt: skip
    lost: set[str] = set()  # types of weights that no block of GGUF holds

    rules, alone = [r for r in rules if not r.theirs.endswith("]")], [r for r in rules if r.theirs.endswith("]")]
    for rule in alone:  # numbers that stand in the metadata, block after block
        key = rule.theirs.partition("[")[0]
        made[key] = np.append(made.get(key, np.zeros(0, np.float32)), arrays[rule.parts()[0]].astype(np.float32))

    for key, value in facts_of(config).constants.items():
        made[key] = np.full(len(config.blocks), value, np.float32)

    def planned(rule: Rule) -> gguf_writer.Planned:
        shapes = [codes[name].shape if name in codes else arrays[name].shape for name in rule.parts()]
        shape = rule.packing.shape(shapes) if rule.packing else (sum(each[0] for each in shapes), *shapes[0][1:])

        def values() -> npt.NDArray[Any]:
            parts = {name: codes[name].dequantize() if name in codes else arrays[name] for name in rule.parts()}
            grown = {name: value.astype(np.float32) * np.float32(growth[name]) if name in growth else value
                     for name, value in parts.items()}  # fmt: skip
            value = to_file((rule,), grown)[rule.theirs]
            if plus_one and _norm_plus_one(rule.theirs):
                value = value.astype(np.float32) + 1
            return interleave(value, *heads[rule.theirs]) if rule.theirs in heads else value

        def blocks() -> npt.NDArray[Any]:
            rows = np.concatenate([codes[name].to_ggml() for name in rule.parts()])
            return interleave(rows, *heads[rule.theirs]) if rule.theirs in heads else rows

        chosen = tensor_type(rule.theirs, shape, kind, config)
        held = {codes[name].ggml_kind if name in codes else None for name in rule.parts()}
        same = held.pop() if len(held) == 1 else None
        if same is not None and rule.packing is None and not growth.keys() & {*rule.parts()} and chosen.name != "F32":
            return gguf_writer.Planned(rule.theirs, shape, NAMED[same], blocks, True)
        if chosen.name != "F32":
            lost.update(codes[name].type.name for name in rule.parts() if name in codes)
        return gguf_writer.Planned(rule.theirs, shape, chosen, values)

    tensors = [planned(rule) for rule in rules]
    copies = facts_of(config).copies
    tensors += [replace(each, name=name) for name, like in copies.items() for each in tensors if each.name == like]
    tensors += [
        gguf_writer.Planned(name, value.shape, NAMED["F32"], lambda value=value: value)  # type: ignore[misc]
        for name, value in factors.items()
    ]
    if model.config.pooler:
        warnings.warn(f"{path}: the layer over the first token (pooler) is left out: GGUF has none", stacklevel=3)
    wanted = base_of(kind)
    other = [t.kind.name for t in tensors
             if len(t.shape) > 1 and t.shape[-1] % wanted.weights != 0 and not LOW_RANK.search(t.name)]  # fmt: skip
    if other:
        warnings.warn(f"{path}: rows of {len(other)} tensors do not fill blocks of {wanted.weights}; they are written "
                      f"as {', '.join(sorted(set(other)))}", stacklevel=3)  # fmt: skip
    if lost:
        warnings.warn(f"{path}: quantized weights ({', '.join(sorted(lost))}) that no blocks of GGUF hold are written "
                      f"as numbers of {kind}", stacklevel=3)  # fmt: skip
    if codes:  # the type of most numbers
        sizes: dict[str, int] = {}
        for each in tensors:
            sizes[each.kind.name] = sizes.get(each.kind.name, 0) + each.bytes
        kind = max(sizes, key=sizes.__getitem__).lower()
    made |= {"general.quantization_version": 2, "general.file_type": FILE_TYPES[kind], **(metadata or {})}
    return gguf_writer.write(path, made, tensors)

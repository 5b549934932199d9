"""Hyperparameters of models in GGUF files: metadata <-> ModelConfig, from the families' tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, FormatError, nearest
from ..io.names import Shaped
from ..nn.checks import number, whole
from ..nn.mixers.attention import AttentionSpec
from ..nn.positions import rope_frequencies
from ..nn.rope import RopeSpec
from .config import ModelConfig
from .families import FAMILIES, Family
from .families.gguf import GGUF, Gguf, Metadata
from .families.rope import turning

FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Keys that change nothing of what is computed, or follow from others.
QUIET = frozenset("vocab_size attention.value_length attention.key_length rope.scaling.finetuned tensor_data_layout "
                  "attention.value_length_swa attention.key_length_swa rope.dimension_count_swa pooling_type "
                  "classifier.pooling_type attention.layer_norm_rms_epsilon".split())  # fmt: skip


def table_of(arch: str, metadata: Mapping[str, Any]) -> tuple[Family, Gguf]:
    """The family of a general.architecture, by the metadata where several share one; its table. Raises ConfigError."""
    known = {name: facts for name, facts in GGUF.items() if facts.arch == arch}
    if not known:
        archs = {facts.arch for _, facts in GGUF.items()}
        names = ", ".join(sorted(archs))
        raise ConfigError(f"unknown architecture {arch!r} of a GGUF file{nearest(arch, archs)}; known: {names}")
    told = [name for name, facts in known.items() if facts.told_by and facts.told(metadata)]
    name = told[0] if told else next(name for name, facts in known.items() if not facts.told_by)
    return FAMILIES.get(known[name].family or name), known[name]


def facts_of(config: ModelConfig) -> Gguf:
    """The table of a model's family. Raises ConfigError when GGUF files do not hold it."""
    tables = [facts for name, facts in GGUF.items() if (facts.family or name) == config.family]
    if not tables:
        names = ", ".join(sorted({facts.family or name for name, facts in GGUF.items()}))
        raise ConfigError(f"models of family {config.family!r} have no GGUF form; those of {names} do")
    facts = next((each for each in tables if each.family and each.holds(config)), tables[0])
    return replace(facts, names={**facts.names, **facts.variant(config)})


class Opened(Protocol):
    """What hyperparameters are read from: a file, or what is going to be one."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """By key."""

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

    names = {theirs: f"{facts.arch}.{key}" for key, theirs in facts.keys.items()}
    values = Metadata({**facts.assumed, **facts.fixed}, names)
    for key, theirs in facts.keys.items():
        value = get(key, (int, float, str, bool, np.ndarray))
        if value is not None:
            values[theirs] = value
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise FormatError(f"{file.path}: no tensor 'token_embd.weight' of two axes: no weights of a language model")
    values["vocab_size"] = table.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    for switch, tensor in facts.present.items():
        values[switch] = tensor in file.tensors if "*" not in tensor else _blocks(file, tensor)
    for theirs, (tensor, _) in facts.rows.items():
        values[theirs] = file.tensors[tensor].shape[0] if tensor in file.tensors else 0
    for key, wanted in facts.stated.items():
        stated = get(key, type(wanted))
        if stated != wanted:
            raise ConfigError(f"metadata {facts.arch}.{key}: expected {wanted}, got {stated}")
    blocks = facts.keys["block_count"]
    whole("block_count", values.get(blocks), 1, 1024)  # before as many blocks are made
    ahead = get("nextn_predict_layers", int, 0)  # blocks that predict tokens after the next one: not used here
    whole("nextn_predict_layers", ahead, 0, values[blocks] - 1)
    values[blocks] -= ahead
    for name, value in values.items() if ahead else ():
        if isinstance(value, np.ndarray) and len(value) == values[blocks] + ahead:
            values[name] = value[: values[blocks]]
    used |= {key.removeprefix(f"{facts.arch}.") for key in facts.numbers.values()}
    if facts.rope:
        rope = _read_rope(file, get, get("context_length", int, 2048))
        heads = max(1, get("attention.head_count", int, 1))
        head_dim = get("attention.key_length", int, get("embedding_length", int, 0) // heads)
        turning = get("rope.dimension_count", int, head_dim)
        if 0 < turning < head_dim:
            rope["partial_rotary_factor"] = turning / head_dim
        if rope["rope_type"] == "yarn" and not facts.truncate:
            rope["truncate"] = False
        values["rope_parameters"] = rope
    try:
        facts.read(values)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"impossible metadata for {facts.arch}: {error!r}") from None
    unread = [key for key in file.metadata if key.startswith(f"{facts.arch}.") and key.split(".", 1)[1] not in used]
    if unread:
        warnings.warn(f"{file.path}: metadata not understood and ignored: {', '.join(unread)}", stacklevel=4)
    return values


def _blocks(file: Opened, tensor: str) -> list[int]:
    """The numbers of the blocks that have a tensor."""
    head, tail = tensor.split("*")
    inner = [name[len(head) : -len(tail)] for name in file.tensors if name.startswith(head) and name.endswith(tail)]
    return sorted(int(each) for each in inner if each.isascii() and each.isdecimal() and len(each) < 5)


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
    made |= {f"{facts.arch}.{key}": value for key, value in facts.stated.items()}
    made |= {key: max(1, values[theirs]) for theirs, (_, key) in facts.rows.items()}  # llama.cpp takes no 0
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    if facts.rope and values.get("rope_parameters"):
        mixer, turns = _turning(config)
        made[f"{facts.arch}.rope.dimension_count"] = turns.dims or mixer.head_dim
        if f"{facts.arch}.attention.key_length" in made:
            made[f"{facts.arch}.attention.value_length"] = mixer.head_dim
        rope, tensors = _write_rope(turns, mixer.head_dim, config.max_positions, facts.truncate)
        made |= {f"{facts.arch}.{key}": value for key, value in rope.items()}
    _check(config, facts, made, tensors)
    return made, tensors


def _check(
    config: ModelConfig, facts: Gguf, made: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Raises ConfigError unless what is written would be read as the same computation."""
    names = {facts.name(ours) or ours: np.broadcast_to(np.float32(0), shape) for ours, shape in config.shapes().items()}
    file = Draft(Path("GGUF"), made, {**names, **tensors}, tensors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            family, table = table_of(facts.arch, made)
            back = family.read(config_json(file, table))
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
        for name in ("balance_loss", "balance_rate"):  # what experts are trained with
            if made["ffn"] is not None:
                made["ffn"].pop(name, None)
        _plain_mixer(block.mixer, made["mixer"], config)
    return values


def _plain_mixer(mixer: Any, inner: dict[str, Any], config: ModelConfig) -> None:
    for name, part in ({} if mixer is None else mixer.parts).items():
        _plain_mixer(part, inner[name], config)
    if mixer is not None and mixer.kind == "mamba2" and mixer.norm is None:
        inner["norm_first"] = None
    if not isinstance(mixer, AttentionSpec):
        return
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


def _turning(config: ModelConfig) -> tuple[AttentionSpec, RopeSpec]:
    """The mixer whose rotary positions stand in the file: of a full layer where one has some."""
    found = [(mixer, mixer.rope) for mixer in turning(config)]
    if not found:
        raise ConfigError(f"GGUF's {facts_of(config).arch} has rotary positions, this model none")
    return next((each for each in found if each[0].window is None), found[0])


def _write_rope(
    rope: RopeSpec, head_dim: int, positions: int, truncate: bool
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
        if scaling.truncate != truncate:
            raise ConfigError(f"GGUF has no form for yarn scaling with{'out' * truncate} truncation")
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

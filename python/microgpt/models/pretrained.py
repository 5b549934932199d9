"""Models on disk: folders in the Hugging Face layout (config.json, generation_config.json, safetensors), GGUF files,
llama2.c files. A checkpoint is opened first, which reads names and shapes only, and then taken into a model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from .. import system
from ..errors import CheckpointError, ConfigError, FormatError, StorageError, nearest
from ..io import files, llama2c, packed, safetensors, shards
from ..io.names import Rule, matched, to_file
from ..io.stored import Stored
from ..nn.checks import whole
from ..nn.module import unfilled
from ..tensors import Room
from . import gguf, quantized
from .config import ModelConfig
from .decoder import Decoder
from .families import FAMILIES
from .kept import Untouched, kept_bytes, taken

DTYPES = ("float32", "bfloat16", "float64")  # that a model computes in
MAX_CONFIG = 16 << 20  # bytes; config.json is small, and parsing is not free


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError if it is missing, FormatError if it is not one."""
    value = _parsed(path)
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_list(path: Path) -> list[Any]:
    """A JSON list from a file; errors as in read_json."""
    value = _parsed(path)
    if not isinstance(value, list):
        raise FormatError(f"{path}: expected a JSON list, got {type(value).__name__}")
    return value


def _parsed(path: Path) -> Any:
    try:
        data = files.read_bytes(path, MAX_CONFIG, follow=True)
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is this a model folder?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error})") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def write_json(path: Path, values: dict[str, Any] | list[Any]) -> None:
    """Write a JSON object or list with sorted keys. Raises StorageError."""
    try:
        path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"writing {path} failed: {error.strerror or error}") from error


def save_decoder(
    model: Decoder, folder: Path, *, bos_id: int | None = None, eos_id: int | list[int] | None = None
) -> None:
    """Write the model's three files into an existing folder; transformers loads the families it knows."""
    config = model.config
    codes = quantized.to_config(model)
    family = FAMILIES.get(config.family if codes is None else "microgpt")
    ends = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    write_json(
        folder / "config.json",
        {
            **family.write(config),
            "model_type": family.name,
            "architectures": [family.architecture],
            "dtype": model.dtype,
            "use_cache": True,
            **({} if codes is None else {"quantized": codes}),
            **ends,
        },
    )
    write_json(folder / "generation_config.json", {key: value for key, value in ends.items() if value is not None})
    arrays = {**model.arrays(), **dict(quantized.arrays(model))}
    if family.rules is not None:
        arrays = to_file(family.rules(config), arrays)
    safetensors.save(folder / "model.safetensors", arrays, {"format": "pt"})


# Names of files that a loader takes for parts of the model in a folder, whatever else lies there.
PARTS = """model*.safetensors *.safetensors.index.json pytorch_model*.bin pytorch_model.bin.index.json config.json
    generation_config.json tokenizer.json tokenizer_config.json tokenizer.model vocab.json merges.txt vocab.txt
    *.tiktoken added_tokens.json special_tokens_map.json chat_template.json chat_template.jinja
    additional_chat_templates/*.jinja modules.json sentence_bert_config.json 1_Pooling/config.json""".split()


def stale(folder: Path, written: Collection[str]) -> list[Path]:
    """Files of another model in a folder, that would be taken for parts of the one whose files are `written`."""
    found = {path for pattern in PARTS for path in folder.glob(pattern) if path.is_file() or path.is_symlink()}
    return sorted(path for path in found if path.relative_to(folder).as_posix() not in written)


def load_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a model folder. Raises ConfigError for an unknown model_type or impossible values."""
    return read_config(read_json(folder / "config.json"), folder)


def read_config(values: dict[str, Any], folder: Path) -> ModelConfig:
    """The ModelConfig of the content of a config.json."""
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError(f"{folder / 'config.json'}: missing key 'model_type'")
    for key in ("num_hidden_layers", "n_layer"):  # before as many blocks are made
        if isinstance(values.get(key), int):
            whole(f"{folder / 'config.json'}: {key}", values[key], 1, 1024)
    packed.method_of(values, str(folder / "config.json"))
    # How the weights are stored: read by io.packed and models.quantized.
    ours = {
        key: value for key, value in values.items() if key not in ("quantization", "quantized", "quantization_config")
    }
    try:
        return FAMILIES.get(kind).read(ours)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {str(error).removeprefix('config.json: ')}") from error


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened and not yet read: `weights` under the file's names, which `rules` turn into ours (None:
    they are ours); `optional` names may be there. `gguf` is the file's metadata, None for other formats.
    """

    where: str
    config: ModelConfig
    weights: Mapping[str, Stored]
    rules: Sequence[Rule] | None
    optional: Sequence[str]
    gguf: Mapping[str, Any] | None = None
    codes: Mapping[str, quantized.Row] = field(default_factory=dict)  # weights that are codes and scales
    computes: str | None = None  # the type that a quantized model computes in

    @property
    def dtype(self) -> str:
        """What the model would compute in: the type of the matrices where that is float64 or bfloat16, else float32."""
        if self.computes is not None:
            return self.computes
        kinds = {stored.dtype for stored in self.weights.values() if len(stored.shape) > 1}
        kept = kinds.pop() if len(kinds) == 1 else ""
        return kept if kept in ("float64", "bfloat16") else "float32"

    def bytes_needed(self, dtype: str | None = None, scheme: quantized.Scheme | None = None, keep: bool = False) -> int:
        """Memory that the weights take in a model of `dtype`; with `keep`, codes of the file count as they are.

        Raises ConfigError for a type that models do not have.
        """
        if dtype is not None and dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}{nearest(dtype, DTYPES)}")
        if keep:
            return kept_bytes(self.weights, dtype or self.dtype)
        return quantized.bytes_needed(self.config.shapes(), dtype or self.dtype, scheme, self.codes)


def open_checkpoint(path: Path) -> Checkpoint:
    """A model folder, a GGUF file or a llama2.c file; reads sizes and names, and says what does not fit.

    Raises CheckpointError for missing files and for missing, unexpected and mis-shaped weights, all of them named;
    FormatError, ConfigError.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path}: expected a model folder or file, got a device or pipe")
    found = _open_file(path) if path.is_file() else _open_folder(path)
    if found.rules is not None:
        found = replace(found, weights=matched(found.rules, found.weights, found.where, found.optional))
    return found


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: give the folder that this file and its config.json are in")
    if path.suffix == ".gguf" or _magic(path) == b"GGUF":
        found = gguf.open_model(path)
        return Checkpoint(str(path), found.config, found.weights, found.rules, found.optional, found.file.metadata)
    if path.suffix in shards.PICKLES and llama2c.looks_like_pickle(path):
        raise CheckpointError(
            f"{path}: a pickle, which is never opened, being a program: convert it where you trust it, {shards.HOW}"
        )
    if path.suffix != ".bin":
        raise CheckpointError(f"{path}: expected a model folder, a GGUF file or a .bin of llama2.c")
    sizes, weights = llama2c.open_weights(path)
    family = FAMILIES.get("llama")
    assert family.rules is not None
    config = family.read({
        "hidden_size": sizes.width, "intermediate_size": sizes.hidden, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads, "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.context, "rms_norm_eps": 1e-5, "tie_word_embeddings": sizes.tied,
    })  # fmt: skip
    for name, stored in weights.items():
        for part, heads in (("q_proj", sizes.heads), ("k_proj", sizes.kv_heads)):
            if part in name:
                weights[name] = gguf.halved(stored, heads, sizes.width // sizes.heads, f"{path}: {name}")
    return Checkpoint(str(path), config, weights, family.rules(config), ())


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror or error}") from error


def _open_folder(folder: Path) -> Checkpoint:
    values = read_json(folder / "config.json")
    config = read_config(values, folder)
    family = FAMILIES.get(config.family)
    weights = packed.opened(shards.open_folder(folder), values, str(folder))
    rules = family.rules(config) if family.rules is not None else None
    codes = values.get("quantized")
    if codes is None:
        return Checkpoint(str(folder), config, weights, rules, family.optional(config))
    computes, found = quantized.from_config(codes, str(folder / "config.json"))
    return Checkpoint(str(folder), config, weights, None, (), None, found, computes)


def load_decoder(path: Path, dtype: str | None = None) -> Decoder:
    """The model of a folder or file. `dtype` None keeps bfloat16 and float64 and makes float32 of the rest.

    Raises CheckpointError for a missing file, weights that do not fit, or more of them than memory is free.
    """
    return take(open_checkpoint(path), dtype)


def take(
    found: Checkpoint,
    dtype: str | None = None,
    scheme: quantized.Scheme | None = None,
    keep: bool = False,
    report: quantized.Report | None = None,
) -> Decoder:
    """The model of an opened checkpoint: each weight is read once, and its pages let go.

    `scheme` rounds matrices on the way; `keep` leaves those quantized that a GGUF file has in blocks of a known layout.
    """
    chosen = dtype or found.dtype
    need, config = found.bytes_needed(chosen, scheme, keep), found.config
    there = sum(stored.size for stored in found.weights.values())
    if config.num_parameters() > 4 * there + (1 << 20):  # nothing is allocated for what the file cannot fill
        raise CheckpointError(
            f"{found.where}: the configuration has {config.num_parameters():,} parameters, the files {there:,} numbers"
        )
    free = system.memory()[1]
    if free is not None and need > free:
        raise CheckpointError(
            f"{found.where}: the weights need {need / 1e6:,.0f} MB of memory as {chosen}, {free / 1e6:,.0f} MB are free"
        )
    rounds = bool(scheme or keep or found.codes)
    room = Room("uint8" if rounds else chosen)
    with unfilled(Untouched(chosen, config.num_parameters()) if rounds else room):
        model = Decoder(config, dtype=chosen, seed=None)
    own = dict(model.named_parameters())
    spots = quantized.places(model) if rounds else {}
    if scheme is not None:
        scheme.check(spots)
    wrong: list[str] = []
    left = set(own)
    for name, row in found.codes.items():
        if name not in spots or own[name].shape != row[2:]:
            wrong.append(f"unexpected quantized {name} of {row[2:]}")
    for name, stored in _parameters(found):
        parameter: Any = own.get(name)
        left.discard(name)
        if parameter is None:
            wrong.append(f"unexpected {name}")
        elif name not in found.codes and parameter.shape != stored.shape:
            wrong.append(f"{name} expected {parameter.shape}, got {stored.shape}")
        elif not wrong:
            made = None if name not in spots else taken(stored, found.codes.get(name), keep, scheme, spots[name][2],
                                                        chosen, name, report, f"{found.where}: ", room)  # fmt: skip
            if made is None:
                copy(stored, parameter.numpy())
            else:
                setattr(*spots[name][:2], made)
                own.pop(name)
                parameter = None
                k.trim_pool()  # or what it had, never touched, would be handed out next and touched
    wrong += [f"missing {name}" for name in sorted(left)]
    if wrong:
        raise CheckpointError(f"{found.where}: weights do not fit the model: {'; '.join(wrong)}")
    return model


def _parameters(found: Checkpoint) -> Iterator[tuple[str, Stored]]:
    """Our names with what fills them, one tensor of the file at a time."""
    if found.rules is None:
        yield from found.weights.items()
        return
    for rule in found.rules:
        if rule.constant is not None:
            continue  # the file's, not the model's
        stored = {name: found.weights[name] for name in rule.names()}
        plain = not rule.transpose and not rule.stack and rule.groups == 1 and rule.packing is None
        if len(rule.parts()) == 1 and plain:
            yield rule.parts()[0], stored[rule.theirs]  # as it lies in the file
            continue
        if len(rule.parts()) == 1 and rule.stack and not rule.transpose and rule.packing is None:
            yield rule.parts()[0], Stored.experts(list(stored.values()))
            continue
        picks, only = rule.packing and rule.packing.picks, stored.get(rule.theirs)
        if picks and only is not None and only.turned is not None:
            for name, pick in zip(rule.parts(), picks, strict=True):
                yield name, Stored.experts([only.turned(e).picked(pick) for e in range(only.shape[0])])
            continue
        arrays = {name: each.array() for name, each in stored.items()}
        for name, value in rule.ours_of(arrays).items():
            yield name, Stored(value.shape, value.dtype.name, lambda value=value: value)  # type: ignore[misc]


PIECE = 1 << 19  # numbers copied at a time


def copy(stored: Stored, target: npt.NDArray[Any]) -> None:
    """Copy a tensor of a file piece by piece, so that it stands in memory once."""
    if not stored.shape:
        target[...] = stored.array()
        return
    rows, into = stored.rows, stored.into
    length = len(target)
    step = max(1, PIECE * length // max(1, target.size))
    if into is not None and target.dtype.name == stored.dtype and target.flags.c_contiguous:
        for start in range(0, length, step):
            into(start, target[start : start + step])
        return
    if rows is None:
        value = stored.array()
        if value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous:
            value, target = value.T, target.T  # in the order of the file

        def rows(start: int, stop: int) -> npt.NDArray[Any]:
            return value[start:stop]

        length = len(target)
        step = max(1, PIECE * length // max(1, target.size))
    for start in range(0, length, step):
        np.copyto(target[start : start + step], rows(start, min(length, start + step)), casting="unsafe")

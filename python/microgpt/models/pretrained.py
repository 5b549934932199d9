"""Model folders in the Hugging Face layout: config.json, generation_config.json, model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, FormatError, StorageError
from ..io import safetensors
from ..io.names import from_file, to_file
from .config import ModelConfig
from .decoder import Decoder
from .families import FAMILIES

MAX_CONFIG = 16 << 20  # bytes; config.json is small, and parsing is not free


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError if it is missing, FormatError if it is not one."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise FormatError(f"{path}: larger than {MAX_CONFIG} bytes")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is this a model folder?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object with sorted keys. Raises StorageError."""
    try:
        path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"writing {path} failed: {error.strerror or error}") from error


def save_decoder(
    model: Decoder, folder: Path, *, bos_id: int | None = None, eos_id: int | list[int] | None = None
) -> None:
    """Write the model's three files into an existing folder; transformers loads the families it knows."""
    config = model.config
    family = FAMILIES.get(config.family)
    ends = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    write_json(
        folder / "config.json",
        {
            **family.write(config),
            "model_type": family.name,
            "architectures": [family.architecture],
            "dtype": model.dtype,
            "use_cache": True,
            **ends,
        },
    )
    write_json(folder / "generation_config.json", {key: value for key, value in ends.items() if value is not None})
    arrays = model.arrays()
    if family.rules is not None:
        arrays = to_file(family.rules(config), arrays)
    safetensors.save(folder / "model.safetensors", arrays, {"format": "pt"})


def load_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a model folder. Raises ConfigError for an unknown model_type or impossible values."""
    values = read_json(folder / "config.json")
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError(f"{folder / 'config.json'}: missing key 'model_type'")
    return FAMILIES.get(kind).read(values)


def load_decoder(folder: Path, dtype: str | None = None) -> Decoder:
    """The model of a folder. Raises CheckpointError for a missing file or weights that do not fit."""
    config = load_config(folder)
    family = FAMILIES.get(config.family)
    path = folder / "model.safetensors"
    if not path.exists():
        pickles = [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth")]
        hint = f"; {pickles[0]} is a pickle, which is never opened: convert it to safetensors" if pickles else ""
        raise CheckpointError(f"{folder}: no model.safetensors{hint}")
    arrays = safetensors.load(path)
    if family.rules is not None:
        arrays = from_file(family.rules(config), arrays, str(path), family.optional(config))
    stored = {str(array.dtype) for array in arrays.values()}
    kept = stored.pop() if len(stored) == 1 else "float32"
    chosen = dtype or (kept if kept in ("float64", "bfloat16") else "float32")
    model = Decoder(config, dtype=chosen)
    try:
        model.load_arrays(arrays)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model

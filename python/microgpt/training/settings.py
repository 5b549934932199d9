"""Configuration files: TOML (or YAML) with the names of the command line, and the one that a run writes."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingExtraError
from ..io import files
from .config import TrainConfig, check_names

MAX_BYTES = 1 << 20


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a .toml, .yaml, .yml or .json file; a missing one keeps its default.

    Raises ConfigError for a file that cannot be read or parsed or has unknown keys, MissingExtraError for YAML without
    PyYAML.
    """
    try:
        text = files.read_bytes(path, MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: {getattr(error, 'strerror', None) or error}") from error
    kind = path.suffix.lower()
    if kind == ".toml":
        values: Any = _parse(path, tomllib.loads, text)
    elif kind == ".json":
        values = _parse(path, json.loads, text)
    elif kind in (".yaml", ".yml"):
        values = _read_yaml(path, text)
    else:
        raise ConfigError(f"config {path}: expected .toml, .yaml, .yml or .json, got {kind or 'no ending'!r}")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"config {path}: expected settings by name, got {type(values).__name__}")
    values = {key.replace("-", "_"): value for key, value in values.items()}
    try:
        check_names(values)
    except ConfigError as error:
        raise ConfigError(f"config {path}: {error}") from None
    return values


HEADER = "# Every setting of this run; microgpt train --config reads it."
SHAPE = {"layers", "heads", "width"}


def with_file(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a file, and in their place those given by hand.

    `steps` also replaces `epochs` and the reverse, and a shape replaces `size`, which stands for one.
    """
    replaced: set[str] = set()
    if "steps" in given or "epochs" in given:
        replaced |= {"steps", "epochs"}
    if given.keys() & SHAPE:
        replaced.add("size")
    elif {**values, **given}.get("size") is not None:
        replaced |= SHAPE
    return {**{name: value for name, value in values.items() if name not in replaced}, **given}


def check_shape(given: dict[str, Any]) -> None:
    """Raise ConfigError where `size` and a part of the shape that it stands for are both given."""
    if given.get("size") is not None and (parts := sorted(given.keys() & SHAPE)):
        raise ConfigError(f"give size or {parts[0]}, not both: size chooses layers, heads and width")


def _parse(path: Path, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config {path}: {error}") from error


def _read_yaml(path: Path, text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise MissingExtraError(
            f"config {path}: PyYAML is not installed: pip install 'microgpt[yaml]', or write TOML"
        ) from error
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config {path}: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if isinstance(values, dict):
        # YAML 1.1 reads 1e-3 as a text: it wants 1.0e-3.
        real = {f.name for f in dataclasses.fields(TrainConfig) if "float" in str(f.type)}
        for key, value in values.items():
            if isinstance(value, str) and isinstance(key, str) and key.replace("-", "_") in real:
                values[key] = _parse(path, float, value)
    return values


def to_toml(config: TrainConfig) -> str:
    """Every setting as TOML that read_settings accepts; a setting without a value is left out, as TOML has none."""
    lines = [HEADER]
    tables = []
    for name, value in config.to_dict().items():
        if name == "groups":
            for group in value:
                tables += ["", f"[[{name}]]", *(f"{key} = {_toml(each)}" for key, each in group.items())]
        elif value is not None:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # A JSON string is a TOML string but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise ConfigError(f"{value!r} cannot be written to a configuration file; use a glob, 're:...' or a list of them")


def save_settings(config: TrainConfig, path: Path) -> None:
    """Write to_toml(config) so that a crash leaves the old file or the new one. Raises StorageError."""
    try:
        files.write_bytes_atomic(path, to_toml(config).encode())
    except OSError as error:
        raise files.storage_error("writing the configuration", path, error) from error

"""Our own layout: the whole ModelConfig in config.json, weights under our own names. Holds any combination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ..config import ModelConfig
from . import FAMILIES, Family


def read(config: dict[str, Any]) -> ModelConfig:
    """config.json of model_type microgpt -> ModelConfig."""
    if not isinstance(config.get("spec"), dict):
        raise ConfigError("config.json: missing key 'spec', the model's description")
    return ModelConfig.from_dict(config["spec"])


def write(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> config.json."""
    return {"spec": config.to_dict()}


def optional(config: ModelConfig) -> Sequence[str]:
    """Nothing."""
    return ()


FAMILIES.add("microgpt", Family("microgpt", "MicrogptForCausalLM", read, write, None, optional))

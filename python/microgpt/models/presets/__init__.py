"""Architectures of our own in any size, by name. Every file of this folder registers what it makes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from ...errors import ConfigError
from ...registry import Registry
from ..config import ModelConfig

# name -> function of (vocab_size, width, layers, heads, block_size, dropout)
MODELS: Registry[Callable[..., ModelConfig]] = Registry("model")


def preset(name: str) -> Callable[[Callable[..., ModelConfig]], Callable[..., ModelConfig]]:
    """@preset("gpt") above a function that makes a ModelConfig of any size."""
    return lambda make: MODELS.add(name, make)


def head_dim(width: int, heads: int) -> int:
    """Width of a head. Raises ConfigError unless heads divide the width."""
    if heads < 1 or width % heads:
        raise ConfigError(f"heads: expected a divisor of the width {width}, got {heads}")
    return width // heads


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

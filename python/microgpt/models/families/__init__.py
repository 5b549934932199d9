"""Families: one small file each, that maps a Hugging Face config.json to a ModelConfig and weight names, both ways."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...io.names import Rule
from ...registry import Registry
from ..config import ModelConfig


@dataclass(frozen=True)
class Family:
    """`read`: config.json -> ModelConfig. `write`: the inverse. `rules`: names of all weights;
    None: our own. `optional`: names of weights that a file may hold and that are not needed. `kinds`: of the mixers and
    feed-forwards that places "mixer" and "ffn" speak of. `sized`: see declare().
    """

    name: str
    architecture: str
    read: Callable[[dict[str, Any]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], Sequence[Rule]] | None
    optional: Callable[[ModelConfig], Sequence[str]]
    keys: Mapping[str, str] = field(default_factory=dict)  # place in a ModelConfig -> config.json's key
    kinds: tuple[str | None, str | None] = (None, None)
    sized: Callable[[int, int, int], Mapping[str, Any]] | None = None


FAMILIES: Registry[Family] = Registry("model family")

# Every file of this folder registers its family when it is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

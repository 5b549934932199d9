"""Families: one small file each, that maps a Hugging Face config.json to a ModelConfig and weight names, both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...io.names import Rule
from ...registry import Registry
from ..config import ModelConfig


@dataclass(frozen=True)
class Family:
    """`read`: config.json -> ModelConfig. `write`: the inverse. `rules`: names of all weights;
    None: our own.

    `known`: keys of config.json that may be there and change nothing here. `optional`: weight names likewise.
    """

    name: str
    architecture: str
    read: Callable[[dict[str, Any]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], Sequence[Rule]] | None
    optional: Callable[[ModelConfig], Sequence[str]]


FAMILIES: Registry[Family] = Registry("model family")

from . import gpt2 as _gpt2  # noqa: E402, F401
from . import llama as _llama  # noqa: E402, F401
from . import own as _own  # noqa: E402, F401

"""Architectures of our own in any size, by name. Every file of this folder registers what it makes."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable

from ...nn.checks import number, require, whole
from ...registry import Registry
from ..config import ModelConfig

# name -> function of (vocab_size, width, layers, heads, block_size, dropout)
MODELS: Registry[Callable[..., ModelConfig]] = Registry("model")


def preset(name: str) -> Callable[[Callable[..., ModelConfig]], Callable[..., ModelConfig]]:
    """@preset("gpt") above a function that makes a ModelConfig of any size."""

    def register(make: Callable[..., ModelConfig]) -> Callable[..., ModelConfig]:
        @functools.wraps(make)
        def checked(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float
                    ) -> ModelConfig:  # fmt: skip
            for what, value, most in (("vocab_size", vocab_size, 2**24), ("width", width, 2**20),
                                      ("layers", layers, 1024), ("block_size", block_size, 2**24)):  # fmt: skip
                whole(f"{name}: {what}", value, 1, most)
            head_dim(width, heads)
            number(f"{name}: dropout", dropout, 0.0, 1.0)
            return make(vocab_size, width, layers, heads, block_size, dropout)

        return MODELS.add(name, checked)

    return register


def head_dim(width: int, heads: int) -> int:
    """Width of a head. Raises ConfigError unless heads divide the width."""
    good = isinstance(heads, int) and heads >= 1 and width % heads == 0
    require(good, "heads", f"a divisor of the width {width}", heads)
    return width // heads


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

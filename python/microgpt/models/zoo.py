"""Ready-made configurations by name, for `microgpt train --model NAME`: presets, and every family's shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import ConfigError, nearest
from .config import ModelConfig
from .families import FAMILIES
from .presets import MODELS, head_dim


def of_family(
    name: str, vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float
) -> ModelConfig:
    """A family's architecture in any size, with the proportions of its default configuration: the feed-forward's width
    over the model's, query heads a key/value head. Scalings of rotary positions to longer contexts are left out."""
    family = FAMILIES.get(name)
    whole = family.read({})
    wanted = {"vocab_size": vocab_size, "width": width, "layers": layers, "max_positions": block_size,
              "block.dropout": dropout, "embed_dropout": dropout}  # fmt: skip
    mixer: Any
    ffn: Any
    mixer, ffn = (next((each[1] for block in whole.blocks if (each := block.find(kind, (half,)))), None)
                  for half, kind in zip(("mixer", "ffn"), family.kinds, strict=True))  # fmt: skip
    if hasattr(mixer, "kv_heads"):
        group = min(heads, mixer.heads // mixer.kv_heads)
        pairs = mixer.kind == "differential"  # whose key/value heads come in pairs
        while heads % group or (pairs and heads // group % 2):
            group -= 1
            if group == 0:
                raise ConfigError(f"heads: expected an even number for {name}, got {heads}")
        wanted |= {"mixer.heads": heads, "mixer.head_dim": head_dim(width, heads), "mixer.kv_heads": heads // group}
    if hasattr(ffn, "width"):
        wanted["ffn.width"] = max(8, round(width * ffn.width / whole.width / 8) * 8)
    values = {family.keys[place]: value for place, value in wanted.items() if place in family.keys}
    return family.read({**values, **(family.sized(width, layers, heads) if family.sized else {})})


def maker(name: str) -> Callable[..., ModelConfig]:
    """The function of a ready-made model or family. Raises ConfigError with the nearest names."""
    if name in MODELS:
        return MODELS.get(name)
    if name in FAMILIES and FAMILIES.get(name).keys:
        if not FAMILIES.get(name).read({}).causal:
            raise ConfigError(f"{name} is an encoder: it does not predict the next token, so it cannot be trained to")
        return functools.partial(of_family, name)
    names = sorted({*MODELS, *(each for each, family in FAMILIES.items() if family.keys)})
    raise ConfigError(f"unknown model {name!r}{nearest(name, names)}; known: {', '.join(names)}")


class Entry(NamedTuple):
    """A line of `microgpt zoo --list`: sizes of the family's default configuration."""

    name: str
    architecture: str
    parameters: int
    flops: int  # of a token, forward, at an empty context
    state: int  # bytes of cached keys and values a token; an encoder keeps none
    fixed: int  # bytes of recurrent states a sequence, float32


def entries(stored: str = "bfloat16") -> list[Entry]:
    """Every family but our own, by name; caches hold float32, bfloat16 or int8."""
    found = []
    for name, family in sorted(FAMILIES.items()):
        if family.keys:
            config = family.read({})
            state = config.cache_bytes(stored) if config.causal else 0
            found.append(Entry(name, family.architecture, config.num_parameters(), config.flops_per_token(1), state,
                               4 * config.fixed_state_numbers()))  # fmt: skip
    return found


class Plan(NamedTuple):
    """Data and steps for a model of some size, by the rule of 20 tokens a parameter (Hoffmann et al. 2022)."""

    tokens: int
    batch_tokens: int
    steps: int


def plan(parameters: int, block_size: int) -> Plan:
    """About 20 tokens a parameter; batches grow with the square root of the data and hold at least 16 windows."""
    tokens = 20 * parameters
    batch = max(16 * block_size, round(tokens**0.5 * 2 / block_size) * block_size)
    return Plan(tokens, batch, max(1, round(tokens / batch)))

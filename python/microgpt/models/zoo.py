"""Ready-made configurations by name, for `microgpt train --model NAME`: three of our own, and every family's shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from ..errors import ConfigError, nearest
from ..nn.rope import RopeSpec
from ..nn.spec import AttentionSpec, BlockSpec, GluSpec, MlpSpec, NormSpec
from ..registry import Registry
from .config import ModelConfig
from .families import FAMILIES

MODELS: Registry[Callable[..., ModelConfig]] = Registry("model")


def _head_dim(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise ConfigError(f"heads: expected a divisor of the width {width}, got {heads}")
    return width // heads


def gpt(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """GPT-2's architecture in any size: learned positions, LayerNorm, GELU, tied head. transformers loads it."""
    block = BlockSpec(
        AttentionSpec(heads, _head_dim(width, heads), heads), MlpSpec(4 * width), NormSpec("layer"), dropout=dropout
    )
    return ModelConfig(vocab_size, width, block_size, (block,) * layers, family="gpt2", embed_dropout=dropout)


def micro(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """Karpathy's microgpt: RMSNorm without weights, ReLU, no biases, untied head, normal(0, 0.08) weights."""
    norm = NormSpec("rms", 1e-5, weight=False, bias=False)
    block = BlockSpec(
        AttentionSpec(heads, _head_dim(width, heads), heads, bias=False, out_bias=False),
        MlpSpec(4 * width, "relu", bias=False),
        norm,
        dropout=dropout,
    )
    return ModelConfig(
        vocab_size,
        width,
        block_size,
        (block,) * layers,
        tie_embeddings=False,
        final_norm=None,
        embed_norm=norm,
        embed_dropout=dropout,
        init_std=0.08,
        scale_residual_init=False,
    )


def llama(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """Llama's architecture in any size: rotary positions, grouped-query attention, RMSNorm, SwiGLU, no biases.

    Four query heads share a key/value head from eight heads on, two below; the head is tied up to a width of 1,024.
    """
    group = 4 if heads >= 8 and heads % 4 == 0 else 2 if heads >= 4 and heads % 2 == 0 else 1
    attention = AttentionSpec(heads, _head_dim(width, heads), heads // group, False, False, rope=RopeSpec())
    norm = NormSpec("rms", 1e-5, bias=False)
    hidden = -(-8 * width // (3 * 64)) * 64  # 8/3 of the width has an MLP's parameters; whole cache lines
    return ModelConfig(
        vocab_size,
        width,
        block_size,
        (BlockSpec(attention, GluSpec(hidden), norm, dropout=dropout),) * layers,
        family="llama",
        learned_positions=False,
        tie_embeddings=width <= 1024,
        final_norm=norm,
        embed_dropout=dropout,
    )


MODELS.add("gpt", gpt)
MODELS.add("llama", llama)
MODELS.add("micro", micro)


def of_family(
    name: str, vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float
) -> ModelConfig:
    """A family's architecture in any size, with the proportions of its default configuration: the feed-forward's width
    over the model's, query heads a key/value head. Scalings of rotary positions to longer contexts are left out."""
    family = FAMILIES.get(name)
    whole = family.read({})
    mixer = whole.blocks[0].mixer
    head_dim = _head_dim(width, heads)
    group = min(heads, mixer.heads // mixer.kv_heads)
    pairs = mixer.kind == "differential"  # whose key/value heads come in pairs
    while heads % group or (pairs and heads // group % 2):
        group -= 1
        if group == 0:
            raise ConfigError(f"heads: expected an even number for {name}, got {heads}")
    hidden = max(8, round(width * whole.blocks[0].ffn.width / whole.width / 8) * 8)
    wanted = {
        "vocab_size": vocab_size, "width": width, "layers": layers, "mixer.heads": heads, "mixer.head_dim": head_dim,
        "mixer.kv_heads": heads // group, "ffn.width": hidden, "max_positions": block_size, "block.dropout": dropout,
        "embed_dropout": dropout,
    }  # fmt: skip
    return family.read({family.keys[place]: value for place, value in wanted.items() if place in family.keys})


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
    state: int  # bytes of keys and values a token, float16 or bfloat16


def entries() -> list[Entry]:
    """Every family but our own, by name."""
    found = []
    for name, family in sorted(FAMILIES.items()):
        if family.keys:
            config = family.read({})
            found.append(Entry(name, family.architecture, config.num_parameters(), config.flops_per_token(1),
                               2 * config.state_numbers()))  # fmt: skip
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

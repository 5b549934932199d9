"""The plain transformers: GPT-2's, Karpathy's microgpt and Llama's architecture."""

from __future__ import annotations

from ...nn.ffn.mlp import GluSpec, MlpSpec
from ...nn.mixers.attention import AttentionSpec
from ...nn.rope import RopeSpec
from ...nn.spec import BlockSpec, NormSpec
from ..config import ModelConfig
from . import head_dim, preset


@preset("gpt")
def gpt(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """GPT-2's architecture in any size: learned positions, LayerNorm, GELU, tied head. transformers loads it."""
    block = BlockSpec(
        AttentionSpec(heads, head_dim(width, heads), heads), MlpSpec(4 * width), NormSpec("layer"), dropout=dropout
    )
    return ModelConfig(vocab_size, width, block_size, (block,) * layers, family="gpt2", embed_dropout=dropout)


@preset("micro")
def micro(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """Karpathy's microgpt: RMSNorm without weights, ReLU, no biases, untied head, normal(0, 0.08) weights."""
    norm = NormSpec("rms", 1e-5, weight=False, bias=False)
    block = BlockSpec(
        AttentionSpec(heads, head_dim(width, heads), heads, bias=False, out_bias=False),
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


@preset("llama")
def llama(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """Llama's architecture in any size: rotary positions, grouped-query attention, RMSNorm, SwiGLU, no biases.

    Four query heads share a key/value head from eight heads on, two below; the head is tied up to a width of 1,024.
    """
    group = 4 if heads >= 8 and heads % 4 == 0 else 2 if heads >= 4 and heads % 2 == 0 else 1
    attention = AttentionSpec(heads, head_dim(width, heads), heads // group, False, False, rope=RopeSpec())
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

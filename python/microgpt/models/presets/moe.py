"""A mixture of experts."""

from __future__ import annotations

from ...nn.ffn.moe import MoeSpec
from ...nn.mixers.attention import AttentionSpec
from ...nn.rope import RopeSpec
from ...nn.spec import BlockSpec, NormSpec
from ..config import ModelConfig
from . import head_dim, preset


@preset("moe")
def moe(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """Mixtral's architecture in any size: llama with four experts, two of which work on a token, together as wide as
    llama's feed-forward; the loss keeps them equally busy. transformers loads it."""
    group = 4 if heads >= 8 and heads % 4 == 0 else 2 if heads >= 4 and heads % 2 == 0 else 1
    attention = AttentionSpec(heads, head_dim(width, heads), heads // group, False, False, rope=RopeSpec())
    norm = NormSpec("rms", 1e-5, bias=False)
    experts = MoeSpec(4, -(-4 * width // (3 * 32)) * 32, 2, balance_loss=0.01)
    return ModelConfig(
        vocab_size,
        width,
        block_size,
        (BlockSpec(attention, experts, norm, dropout=dropout),) * layers,
        family="mixtral",
        learned_positions=False,
        tie_embeddings=width <= 1024,
        final_norm=norm,
        embed_dropout=dropout,
    )

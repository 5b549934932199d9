"""Architectures with a state of a fixed size: Mamba, Griffin and Jamba."""

from __future__ import annotations

from dataclasses import replace

from ...nn.ffn.mlp import GluSpec
from ...nn.mixers.attention import AttentionSpec
from ...nn.mixers.mamba import MambaSpec
from ...nn.mixers.rglru import RgLruSpec
from ...nn.rope import RopeSpec
from ...nn.spec import BlockSpec, NormSpec
from ..config import ModelConfig
from . import head_dim, preset

RMS = NormSpec("rms", 1e-5, bias=False)


def _scan(width: int, norm: NormSpec | None = None) -> MambaSpec:
    """Mamba's own proportions: twice the width, 16 states, delta through a sixteenth of the width."""
    return MambaSpec(2 * width, 16, -(-width // 16), norm=norm)


@preset("mamba")
def mamba(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """Mamba's architecture in any size (arXiv:2312.00752): selective scans alone, tied head. `heads` must divide the
    width, as everywhere, and says nothing else. transformers loads it unless there is dropout.
    """
    head_dim(width, heads)
    block = BlockSpec(_scan(width), None, RMS, dropout=dropout)
    return ModelConfig(
        vocab_size, width, block_size, (block,) * layers, family="microgpt" if dropout else "mamba",
        learned_positions=False, final_norm=RMS, embed_dropout=dropout,
    )  # fmt: skip


@preset("griffin")
def griffin(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """Griffin's architecture in any size (arXiv:2402.19427): two recurrent blocks, then one of local attention with one
    key/value head, whose window is half the block size; gated feed-forwards, tied head.
    """
    attention = AttentionSpec(
        heads, head_dim(width, heads), 1, bias=False, window=max(1, block_size // 2), rope=RopeSpec()
    )
    lru = RgLruSpec(width, heads)
    ffn = GluSpec(3 * width // 2, "gelu_tanh", bias=True)
    blocks = tuple(BlockSpec(attention if i % 3 == 2 else lru, ffn, RMS, dropout=dropout) for i in range(layers))
    return ModelConfig(
        vocab_size, width, block_size, blocks, learned_positions=False, final_norm=RMS, embed_dropout=dropout
    )


@preset("jamba")
def jamba(vocab_size: int, width: int, layers: int, heads: int, block_size: int, dropout: float) -> ModelConfig:
    """Jamba's architecture in any size (arXiv:2403.19887), with dense feed-forwards: selective scans whose selection is
    normed, attention without positions as every eighth layer, from the fifth on; in fewer than eight layers, the middle
    one. Tied head. transformers loads it unless there is dropout.
    """
    norm = replace(RMS, eps=1e-6)
    group = 2 if heads % 2 == 0 else 1
    attention = AttentionSpec(heads, head_dim(width, heads), heads // group, bias=False, out_bias=False)
    period = min(8, max(2, layers))
    hidden = -(-8 * width // (3 * 64)) * 64  # 8/3 of the width has an MLP's parameters; whole cache lines
    blocks = tuple(
        BlockSpec(
            attention if i % period == period // 2 else _scan(width, norm), GluSpec(hidden), norm, dropout=dropout
        )
        for i in range(layers)
    )
    return ModelConfig(
        vocab_size, width, block_size, blocks, family="microgpt" if dropout else "jamba", learned_positions=False,
        final_norm=norm, embed_dropout=dropout,
    )  # fmt: skip

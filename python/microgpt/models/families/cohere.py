"""Command R (Cohere 2024): both layers side by side after one norm, scaled logits, a norm for each head's q and k."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError
from ...nn.spec import NormSpec
from .declare import ATTENTION_BIAS, Bool, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LAYER_KEYS, Gguf
from .llama import BUFFERS, NAMES, QK_NORM
from .rope import Rope

NORM = NormSpec("layer", bias=False)

declare(
    "cohere", "CohereForCausalLM",
    [*shape(256000, 8192, 40, 64, 8192), *heads(), *ffn(22528),
     Bool("use_qk_norm", "mixer.qk_norm", to=lambda yes: NORM if yes else None, back=lambda norm: norm is not None),
     Float("layer_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5), ATTENTION_BIAS,
     Float("logit_scale", "logit_scale", 0.0625), Rope(500000.0, interleaved=True), *ends(True)],
    {**NAMES, **QK_NORM}, norm=NORM,
    fixed={"block.parallel": True, "block.shared_norm": True, "mixer.qk_norm_over": "heads"},
    ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip


def enough_layers(values: dict[str, Any]) -> None:
    """llama.cpp looks for the norms of queries and keys in models of at least 64 layers only."""
    if values["use_qk_norm"] and values["num_hidden_layers"] < 64:
        raise ConfigError("GGUF's command-r has norms of queries and keys in models of 64 layers and more only")


GGUF.add("cohere", Gguf(
    "command-r", {**LAYER_KEYS, "logit_scale": "logit_scale"}, present={"use_qk_norm": "blk.0.attn_q_norm.weight"},
    fixed={"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True},
    write=enough_layers, partial=True,
))  # fmt: skip

"""Granite 3 (IBM 2024): Llama with multipliers of embeddings, scores, residuals and logits."""

from __future__ import annotations

from .declare import Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, Gguf
from .llama import BIAS, EPS, NAMES
from .rope import Rope

MULTIPLIERS = [
    Float("embedding_multiplier", "embed_scale", 1.0), Float("attention_multiplier", "mixer.scale", 1.0),
    Float("residual_multiplier", "block.residual_scale", 1.0),
    Float("logits_scaling", "logit_scale", 1.0, to=lambda x: 1.0 / x, back=lambda x: 1.0 / x),
]  # fmt: skip
GGUF_KEYS = {
    **NO_WIDTH, "embedding_scale": "embedding_multiplier", "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
}  # fmt: skip

declare(
    "granite", "GraniteForCausalLM",
    [*shape(32000, 4096, 32, 32, 2048), *heads(), *ffn(11008),
     EPS, *BIAS, *MULTIPLIERS, Rope(), *ends(False)],
    NAMES, ignored="attention_dropout",
)  # fmt: skip
GGUF.add("granite", Gguf(
    "granite", GGUF_KEYS,
    fixed={"hidden_act": "silu"}, present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
    interleaved=True,
))  # fmt: skip

"""Command R7B (Cohere 2024): both layers side by side after one norm; full layers have no positions; scaled logits."""

from __future__ import annotations

from ...nn.spec import NormSpec
from .declare import ATTENTION_BIAS, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LAYER_KEYS, WINDOW, Gguf
from .llama import NAMES
from .rope import LayerTypes, Rope, every, full_layers_without_positions

declare(
    "cohere2", "Cohere2ForCausalLM",
    [*shape(256000, 8192, 40, 64, 8192), *heads(), *ffn(22528),
     Float("layer_norm_eps", "norm.eps", 1e-5), ATTENTION_BIAS,
     Float("logit_scale", "logit_scale", 0.0625), LayerTypes(every("sliding_window_pattern", 4)),
     Rope(interleaved=True),
     *ends(True)],
    NAMES, norm=NormSpec("layer", bias=False), fixed={"block.parallel": True, "block.shared_norm": True},
    ignored="attention_dropout sliding_window_pattern _sliding_window_pattern cache_implementation use_qk_norm",
    finish=full_layers_without_positions,
)  # fmt: skip
GGUF.add("cohere2", Gguf(
    "cohere2", {**LAYER_KEYS, **WINDOW, "logit_scale": "logit_scale"},
    fixed={"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True},
    partial=True,
))  # fmt: skip

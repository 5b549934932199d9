"""OLMo 2 (OLMo team 2024, arXiv:2501.00656): norms on what is added, queries and keys normed over all heads."""

from __future__ import annotations

from .declare import ATTENTION_BIAS, RMS, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, QK_AFTER, Gguf
from .llama import NAMES, QK_NORM
from .rope import Rope

AFTER = {**NAMES, **QK_NORM, "mixer_norm": "post_attention_layernorm", "ffn_norm": "post_feedforward_layernorm"}
FIXED = {"block.placement": "res_post", "mixer.qk_norm": RMS, "mixer.qk_norm_over": "width"}
EPS = Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5)

declare(
    "olmo2", "Olmo2ForCausalLM",
    [*shape(50304, 4096, 32, 32, 2048), *heads(), *ffn(11008),
     EPS, ATTENTION_BIAS, Rope(), *ends(False)],
    AFTER, fixed=FIXED, ignored="attention_dropout",
)  # fmt: skip
GGUF.add("olmo2", Gguf(
    "olmo2", NO_WIDTH, fixed={"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False},
    names=QK_AFTER,
))  # fmt: skip

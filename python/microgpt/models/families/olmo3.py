"""OLMo 3 (OLMo team 2025): OLMo 2 with three windows to a full layer."""

from __future__ import annotations

from .declare import ATTENTION_BIAS, declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, QK_AFTER, WINDOW, Gguf
from .olmo2 import AFTER, EPS, FIXED
from .rope import LayeredRope, LayerTypes, every

declare(
    "olmo3", "Olmo3ForCausalLM",
    [*shape(50304, 4096, 32, 32, 2048), *heads(), *ffn(11008),
     EPS, ATTENTION_BIAS, LayerTypes(every(4)),
     LayeredRope(500000.0, 500000.0, "rope_theta"), *ends(False)],
    AFTER, fixed=FIXED, ignored="attention_dropout",
)  # fmt: skip
GGUF.add("olmo3", Gguf(
    "olmo2", {**NO_WIDTH, **WINDOW},
    fixed={"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False},
    names=QK_AFTER,
    told_by="attention.sliding_window",
))  # fmt: skip

"""OLMo (Groeneveld et al. 2024, arXiv:2402.00838): Llama with LayerNorm that learns nothing, q, k, v bounded."""

from __future__ import annotations

from ...nn.spec import NormSpec
from .declare import ATTENTION_BIAS, Float, declare, ends, ffn, heads, shape
from .llama import BUFFERS, NAMES
from .rope import Rope

declare(
    "olmo", "OlmoForCausalLM",
    [*shape(50304, 4096, 32, 32, 2048), *heads(), *ffn(11008), ATTENTION_BIAS, Float("clip_qkv", "mixer.clip"), Rope(),
     *ends(False)],
    NAMES, norm=NormSpec("layer", weight=False, bias=False), ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip

"""Ministral (Mistral AI 2024): Mistral with windows in some layers only."""

from __future__ import annotations

from .declare import declare, ends, ffn, heads, shape
from .llama import BUFFERS, EPS, NAMES, NO_BIAS
from .rope import LayerTypes, Rope

declare(
    "ministral", "MinistralForCausalLM",
    [*shape(32000, 4096, 32, 32, 131072), *heads(8), *ffn(14336), EPS, LayerTypes(lambda i, get: True), Rope(),
     *ends(False)],
    NAMES, fixed=NO_BIAS, ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip

"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a sliding window."""

from __future__ import annotations

from .declare import declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BUFFERS, EPS, NAMES, NO_BIAS
from .rope import Rope, Window

declare(
    "mistral", "MistralForCausalLM",
    [*shape(32000, 4096, 32, 32, 131072), *heads(8), *ffn(14336), EPS, Window(4096), Rope(), *ends(False)],
    NAMES, fixed=NO_BIAS, ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip
GGUF.add("mistral", Gguf("llama", LLAMA_KEYS, fixed={"hidden_act": "silu", "sliding_window": None}, interleaved=True))

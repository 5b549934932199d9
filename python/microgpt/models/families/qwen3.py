"""Qwen 3 (Yang et al. 2025, arXiv:2505.09388): Qwen 2 with normed queries and keys and without biases."""

from __future__ import annotations

from .declare import ATTENTION_BIAS, RMS, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BUFFERS, EPS, NAMES, QK_NORM
from .qwen2 import WINDOWS
from .rope import Rope

declare(
    "qwen3", "Qwen3ForCausalLM",
    [*shape(151936, 4096, 32, 32, 32768), *heads(32, 128), *ffn(22016), EPS, ATTENTION_BIAS, WINDOWS, Rope(),
     *ends(False)],
    {**NAMES, **QK_NORM}, fixed={"mixer.qk_norm": RMS}, ignored="attention_dropout max_window_layers", buffers=BUFFERS,
)  # fmt: skip
GGUF.add(
    "qwen3",
    Gguf("qwen3", LLAMA_KEYS, fixed={"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False}),
)

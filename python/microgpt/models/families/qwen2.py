"""Qwen 2 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on q, k, v, and windows in upper layers."""

from __future__ import annotations

from .declare import declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, Gguf
from .llama import BUFFERS, EPS, NAMES
from .rope import LayerTypes, Rope

WINDOWS = LayerTypes(lambda i, get: i >= get.get("max_window_layers", int, 28), switch="use_sliding_window")

declare(
    "qwen2", "Qwen2ForCausalLM",
    [*shape(151936, 4096, 32, 32, 32768), *heads(32), *ffn(22016), EPS, WINDOWS, Rope(), *ends(False)],
    NAMES, fixed={"mixer.bias": True, "mixer.out_bias": False}, ignored="attention_dropout max_window_layers",
    buffers=BUFFERS,
)  # fmt: skip
GGUF.add("qwen2", Gguf("qwen2", NO_WIDTH, fixed={"hidden_act": "silu", "use_sliding_window": False}))

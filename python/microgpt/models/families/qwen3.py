"""Qwen 3 (Yang et al. 2025, arXiv:2505.09388): Qwen 2 with normed queries and keys and without biases."""

from __future__ import annotations

from .declare import RMS, Act, Bool, Key, declare, ends, heads, shape
from .llama import BUFFERS, EPS, NAMES, QK_NORM
from .qwen2 import WINDOWS
from .rope import Rope

declare(
    "qwen3", "Qwen3ForCausalLM",
    [*shape(151936, 4096, 32, 32, 32768), *heads(32, 128), Key("intermediate_size", "ffn.width", 22016),
     Act("hidden_act", "silu"), EPS, Bool("attention_bias", "mixer.bias mixer.out_bias"), WINDOWS, Rope(), *ends(False)],
    {**NAMES, **QK_NORM}, fixed={"mixer.qk_norm": RMS}, ignored="attention_dropout max_window_layers", buffers=BUFFERS,
)  # fmt: skip

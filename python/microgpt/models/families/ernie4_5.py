"""ERNIE 4.5 dense (Baidu 2025): Llama whose heads turn in neighbouring pairs."""

from __future__ import annotations

from .declare import Bool, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import NAMES
from .rope import Rope

declare(
    "ernie4_5", "Ernie4_5ForCausalLM",
    [*shape(103424, 1024, 18, 16, 131072), *heads(2, 128), *ffn(3072), Float("rms_norm_eps", "norm.eps", 1e-5),
     Bool("use_bias", "mixer.bias mixer.out_bias ffn.bias"), Rope(500000.0, interleaved=True), *ends(True)],
    NAMES, ignored="attention_dropout",
)  # fmt: skip
GGUF.add("ernie4_5", Gguf(
    "ernie4_5", LLAMA_KEYS, fixed={"hidden_act": "silu", "use_bias": False},
))  # fmt: skip

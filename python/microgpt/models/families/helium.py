"""Helium (Kyutai 2025): Llama whose heads turn in neighbouring pairs."""

from __future__ import annotations

from .declare import Bool, Float, declare, ends, ffn, heads, shape
from .llama import NAMES
from .rope import Rope

declare(
    "helium", "HeliumForCausalLM",
    [*shape(48000, 2560, 24, 20, 4096), *heads(20, 128), *ffn(7040), Float("rms_norm_eps", "norm.eps", 1e-8),
     Bool("attention_bias", "mixer.bias"),
     Bool("mlp_bias", "ffn.bias"), Rope(100000.0, interleaved=True), *ends(False)],
    NAMES, fixed={"mixer.out_bias": False}, ignored="attention_dropout",
)  # fmt: skip

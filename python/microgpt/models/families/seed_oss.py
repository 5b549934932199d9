"""Seed-OSS (ByteDance 2025): Llama with biases on q, k, v."""

from __future__ import annotations

from .declare import Bool, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import EPS, NAMES
from .rope import Rope

declare(
    "seed_oss", "SeedOssForCausalLM",
    [*shape(155136, 4096, 32, 32, 524288), *heads(8, 128), *ffn(27648), EPS,
     Bool("attention_bias", "mixer.bias", True), Bool("attention_out_bias", "mixer.out_bias"),
     Bool("mlp_bias", "ffn.bias"), Rope(), *ends(False)],
    NAMES, ignored="attention_dropout residual_dropout pretraining_tp",
)  # fmt: skip
GGUF.add("seed_oss", Gguf(
    "seed_oss", LLAMA_KEYS, fixed={"hidden_act": "silu", "attention_out_bias": False, "mlp_bias": False},
    present={"attention_bias": "blk.0.attn_q.bias"}, names={"ffn_norm": "post_attention_norm"},
))  # fmt: skip

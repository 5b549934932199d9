"""DiffLlama: Llama with differential attention (Ye et al. 2024, arXiv:2410.05258)."""

from __future__ import annotations

from ...nn.mixers.differential import DifferentialSpec
from .declare import ATTENTION_BIAS, Float, declare, ends, ffn, heads, shape
from .llama import NAMES
from .rope import Rope

declare(
    "diffllama", "DiffLlamaForCausalLM",
    [*shape(32000, 2048, 16, 32, 2048), *heads(), *ffn(8192),
     Float("rms_norm_eps", "norm.eps mixer.eps", 1e-5), ATTENTION_BIAS,
     Float("lambda_std_dev", "mixer.lambda_std", 0.1), Rope(), *ends(False)],
    {**NAMES, **{f"mixer.lambda_{x}": f"self_attn.lambda_{x}" for x in ("q1", "k1", "q2", "k2")}},
    mixer=DifferentialSpec, ignored="attention_dropout pretraining_tp mlp_bias",
)  # fmt: skip

"""DiffLlama: Llama with differential attention (Ye et al. 2024, arXiv:2410.05258)."""

from __future__ import annotations

from ...nn.spec import DifferentialSpec
from .declare import Act, Bool, Float, Key, declare, ends, heads, shape
from .llama import NAMES
from .rope import Rope

declare(
    "diffllama", "DiffLlamaForCausalLM",
    [*shape(32000, 2048, 16, 32, 2048), *heads(), Key("intermediate_size", "ffn.width", 8192), Act("hidden_act", "silu"),
     Float("rms_norm_eps", "norm.eps mixer.eps", 1e-5), Bool("attention_bias", "mixer.bias mixer.out_bias"),
     Float("lambda_std_dev", "mixer.lambda_std", 0.1), Rope(), *ends(False)],
    {**NAMES, **{f"mixer.lambda_{x}": f"self_attn.lambda_{x}" for x in ("q1", "k1", "q2", "k2")}},
    mixer=DifferentialSpec, ignored="attention_dropout pretraining_tp mlp_bias",
)  # fmt: skip

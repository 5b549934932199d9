"""GLM-4-0414 (Z.ai 2025): norms around both layers, half of each head turns in pairs, fused gate and up."""

from __future__ import annotations

from .declare import Bool, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BODY, FUSED_GLU
from .rope import Rope

declare(
    "glm4", "Glm4ForCausalLM",
    [*shape(151552, 4096, 40, 32, 131072), *heads(2, 128), *ffn(13696), Float("rms_norm_eps", "norm.eps", 1.5625e-07),
     Bool("attention_bias", "mixer.bias", True),
     Rope(share=0.5, interleaved=True), *ends(False)],
    {**BODY, **FUSED_GLU, "mixer_post_norm": "post_self_attn_layernorm", "ffn_post_norm": "post_mlp_layernorm"},
    fixed={"mixer.out_bias": False, "block.placement": "sandwich"}, ignored="attention_dropout",
)  # fmt: skip
GGUF.add("glm4", Gguf(
    "glm4", LLAMA_KEYS, fixed={"hidden_act": "silu"}, present={"attention_bias": "blk.0.attn_q.bias"},
    fused={"ffn.gate ffn.up": "ffn_up"},
    partial=True,
))  # fmt: skip

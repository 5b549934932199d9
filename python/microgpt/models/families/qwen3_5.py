"""Qwen 3.5 (Qwen team 2026), the text model: three layers of gated DeltaNet to one of gated attention."""

from __future__ import annotations

from ...nn.spec import NormSpec
from .common import Reader
from .declare import ATTENTION_BIAS, FULL, Float, Key, Part, declare, ends, ffn, heads, shape
from .hybrid import ENDS, EXTRA, LINEAR, AttentionRope, Kinds
from .llama import GLU

PLUS_ONE = NormSpec("rms", 1e-6, bias=False, plus_one=True)


def usual(i: int, get: Reader) -> str:
    """Every fourth layer is attention, or as full_attention_interval says."""
    every = get.get("full_attention_interval", int, 4)
    return FULL if every > 0 and (i + 1) % every == 0 else LINEAR


KINDS = Kinds({LINEAR: {"mixer.type": "gated_delta"}, FULL: {"mixer.type": "attention"}}, usual)
DELTA_KEYS: list[Part] = [
    Key("linear_num_value_heads", "gated_delta.heads", 32),
    Key("linear_num_key_heads", "gated_delta.key_heads", 16),
    Key("linear_key_head_dim", "gated_delta.key_dim", 128),
    Key("linear_value_head_dim", "gated_delta.value_dim", 128),
    Key("linear_conv_kernel_dim", "gated_delta.taps", 4),
]
DELTA = {
    "gated_delta.conv_q gated_delta.conv_k gated_delta.conv_v": "linear_attn.conv1d",
    "gated_delta.dt_bias": "linear_attn.dt_bias", "gated_delta.a_log": "linear_attn.A_log",
    "gated_delta.norm": "linear_attn.norm", "gated_delta.o": "linear_attn.out_proj",
}  # fmt: skip
ATTENTION = {
    "attention.q attention.gate": "self_attn.q_proj@heads", "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj", "attention.o": "self_attn.o_proj", "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}  # fmt: skip
FIXED = {"mixer.gate": True, "mixer.qk_norm": PLUS_ONE, "gated_delta.norm": NormSpec("rms", 1e-6, bias=False)}
EPS = Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps gated_delta.norm.eps", 1e-6)
IGNORED = EXTRA + " full_attention_interval"


def delta_sizes(width: int, layers: int, heads: int) -> dict[str, int]:
    """Keys of the linear layers in a model of another size: as many heads as attention, one key head for two."""
    return {"linear_num_value_heads": heads, "linear_num_key_heads": heads // 2 if heads % 2 == 0 else heads,
            "linear_key_head_dim": width // heads, "linear_value_head_dim": width // heads}  # fmt: skip


declare(
    "qwen3_5_text", "Qwen3_5ForCausalLM",
    [*shape(248320, 4096, 32, 16, 32768), *heads(4, 256), *ffn(12288), *DELTA_KEYS, KINDS, EPS, ATTENTION_BIAS,
     AttentionRope(share=0.25, known=("mrope_section", "mrope_interleaved")), *ends(False)],
    {**ENDS, **GLU, **ATTENTION, **DELTA,
     "gated_delta.q gated_delta.k gated_delta.v": "linear_attn.in_proj_qkv", "gated_delta.z": "linear_attn.in_proj_z",
     "gated_delta.b": "linear_attn.in_proj_b", "gated_delta.a": "linear_attn.in_proj_a"},
    norm=PLUS_ONE, fixed=FIXED, ignored=IGNORED, sized=delta_sizes,
)  # fmt: skip

"""Qwen3-Next (Qwen team 2025): three layers of gated DeltaNet to one of gated attention, all with experts."""

from __future__ import annotations

from ...nn.ffn.moe import MoeSpec
from .declare import ATTENTION_BIAS, Act, Bool, Key, declare, ends, heads, shape
from .experts import DENSE, NAMES, DenseLayers, experts
from .hybrid import ENDS, AttentionRope
from .qwen2_moe import SHARED
from .qwen3_5 import ATTENTION, DELTA, DELTA_KEYS, EPS, FIXED, IGNORED, KINDS, PLUS_ONE, delta_sizes

declare(
    "qwen3_next", "Qwen3NextForCausalLM",
    [*shape(151936, 2048, 48, 16, 32768), *heads(2, 256), Key("moe_intermediate_size", "ffn.width", 512),
     Key("intermediate_size", "glu.width", 5632), Act("hidden_act", "silu", ours="ffn.act glu.act"), *experts(512, 10),
     Bool("norm_topk_prob", "ffn.renormalize", True), Key("shared_expert_intermediate_size", "ffn.shared", 512),
     DenseLayers(), *DELTA_KEYS, KINDS, EPS, ATTENTION_BIAS, AttentionRope(share=0.25), *ends(False)],
    {**ENDS, **NAMES, **SHARED, **DENSE, **ATTENTION, **DELTA,
     "gated_delta.q gated_delta.k gated_delta.v gated_delta.z": "linear_attn.in_proj_qkvz@key_heads",
     "gated_delta.b gated_delta.a": "linear_attn.in_proj_ba@key_heads"},
    norm=PLUS_ONE, ffn=MoeSpec, fixed={**FIXED, "ffn.shared_gate": True}, ignored=IGNORED,
    older={"num_local_experts": "num_experts"}, sized=delta_sizes,
)  # fmt: skip

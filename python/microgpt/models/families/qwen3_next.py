"""Qwen3-Next (Qwen team 2025): three layers of gated DeltaNet to one of gated attention, all with experts."""

from __future__ import annotations

from ...io.names import Packing
from ...nn.ffn.moe import MoeSpec
from ..config import ModelConfig
from .declare import ATTENTION_BIAS, Act, Bool, Key, declare, ends, heads, shape
from .experts import DENSE, GGUF_EXPERTS, GGUF_KEYS, NAMES, DenseLayers, experts
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .hybrid import ENDS, AttentionRope
from .qwen2_moe import SHARED
from .qwen3_5 import (
    ATTENTION,
    DELTA,
    DELTA_FUSED,
    DELTA_GGUF,
    DELTA_KEYS,
    DELTA_NAMES,
    EPS,
    FIXED,
    IGNORED,
    KINDS,
    PLUS_ONE,
    by_head,
    delta_sizes,
    gguf_names,
    gguf_packings,
    read_gguf,
    write_gguf,
)

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


def packings(config: ModelConfig) -> dict[str, Packing]:
    """Those of Qwen 3.5, and the numbers of a head group by group."""
    found = gguf_packings(config)
    for block in config.blocks:
        if block.mixer.kind == "gated_delta":
            found["mixer.b mixer.a.weight"] = by_head(block.mixer.key_heads)
    return found


GGUF.add("qwen3_next", Gguf(
    "qwen3next",
    {**LLAMA_KEYS, **GGUF_KEYS, **DELTA_GGUF, "expert_count": "num_experts",
     "expert_feed_forward_length": "moe_intermediate_size",
     "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    fixed={"hidden_act": "silu", "norm_topk_prob": True, "attention_bias": False, "mlp_only_layers": []},
    names={**GGUF_EXPERTS, **DELTA_NAMES}, fused={**DELTA_FUSED, "mixer.b mixer.a": "ssm_ba"},
    variant=gguf_names, packings=packings, plus_one=True, partial=True, read=read_gguf, write=write_gguf,
))  # fmt: skip

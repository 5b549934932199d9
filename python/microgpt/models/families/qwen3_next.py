"""Qwen3-Next (Qwen team 2025): three layers of gated DeltaNet to one of gated attention, all with experts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...io.names import Packing
from ...nn.checks import require
from ...nn.ffn.moe import MoeSpec
from ..config import ModelConfig
from .declare import ATTENTION_BIAS, FULL, Act, Bool, Key, declare, ends, heads, shape
from .experts import DENSE, GGUF_EXPERTS, GGUF_KEYS, NAMES, DenseLayers, experts
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .hybrid import CONV_PACKING, ENDS, LINEAR, AttentionRope
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


def read_gguf(values: dict[str, Any]) -> None:
    """Which layers attend: every so many-th one."""
    every = values.pop("every", 4)
    values["layer_types"] = [LINEAR if (i + 1) % every else FULL for i in range(values["num_hidden_layers"])]
    values["linear_value_head_dim"] = values.pop("inner_size") // values["linear_num_value_heads"]


def write_gguf(values: dict[str, Any]) -> None:
    """The inverse."""
    kinds, where = values["layer_types"], "GGUF's qwen3next: layer_types"
    require({FULL, LINEAR} == set(kinds), where, "both kinds", kinds)
    values["every"] = every = kinds.index(FULL) + 1
    usual = [LINEAR if (i + 1) % every else FULL for i in range(len(kinds))]
    require(kinds == usual, where, f"{FULL} in every {every}th", kinds)
    dims = values["linear_key_head_dim"], values["linear_value_head_dim"]
    require(dims[0] == dims[1], "GGUF's qwen3next: linear_value_head_dim", dims[0], dims[1])
    values["inner_size"] = values["linear_num_value_heads"] * dims[1]


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Both kinds of mixers have a q."""
    names = {
        True: {"q": "attn_q", "gate": "attn_q", "k": "attn_k", "v": "attn_v"},
        False: {**dict.fromkeys("qkv", "attn_qkv"), "b": "ssm_ba", "a": "ssm_ba", "o": "ssm_out", "norm": "ssm_norm"},
    }
    return {f"{i}.mixer.{ours}": theirs for i, block in enumerate(config.blocks)
            for ours, theirs in names[block.mixer.kind == "attention"].items()}  # fmt: skip


def by_head(heads: int) -> Packing:
    """Two arrays of the same height, one after another for each head."""
    return Packing(
        lambda parts: parts[0].reshape(2, heads, -1, *parts[0].shape[1:]).swapaxes(0, 1).reshape(parts[0].shape),
        lambda value: [value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)],
        lambda shapes: shapes[0],
    )


def gguf_packings(config: ModelConfig) -> dict[str, Packing]:
    """Queries and gates head by head, the numbers of a head group by group."""
    found = {
        "mixer.a_log": Packing(lambda parts: -np.exp(parts[0].astype(np.float32)),
                               lambda a: [np.log(-a.astype(np.float32))], lambda shapes: shapes[0]),
        "mixer.conv_q mixer.conv_k mixer.conv_v.weight": CONV_PACKING,
    }  # fmt: skip
    for block in config.blocks:
        if block.mixer.kind == "attention":
            found["mixer.q mixer.gate.weight"] = by_head(block.mixer.heads)
        else:
            found["mixer.b mixer.a.weight"] = by_head(block.mixer.key_heads)
    return found


GGUF.add("qwen3_next", Gguf(
    "qwen3next",
    {**LLAMA_KEYS, **GGUF_KEYS, "expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size",
     "expert_shared_feed_forward_length": "shared_expert_intermediate_size", "full_attention_interval": "every",
     "ssm.conv_kernel": "linear_conv_kernel_dim", "ssm.state_size": "linear_key_head_dim",
     "ssm.group_count": "linear_num_key_heads", "ssm.time_step_rank": "linear_num_value_heads",
     "ssm.inner_size": "inner_size"},
    fixed={"hidden_act": "silu", "norm_topk_prob": True, "attention_bias": False, "mlp_only_layers": []},
    names={**GGUF_EXPERTS, "ffn_norm": "post_attention_norm", "mixer.z": "attn_gate", "mixer.dt_bias": "ssm_dt.bias",
           "mixer.a_log": "ssm_a"},
    fused={"mixer.q mixer.gate": "attn_q", "mixer.q mixer.k mixer.v": "attn_qkv", "mixer.b mixer.a": "ssm_ba",
           "mixer.conv_q mixer.conv_k mixer.conv_v": "ssm_conv1d"},
    variant=gguf_names, packings=gguf_packings, plus_one=True, partial=True, read=read_gguf, write=write_gguf,
))  # fmt: skip

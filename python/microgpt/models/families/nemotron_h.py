"""Nemotron-H (NVIDIA 2025, arXiv:2504.03624): blocks of one layer each, of Mamba-2, attention, an MLP or, in
Nemotron 3, experts without gates."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...nn.checks import require
from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import ACTS, FULL, Bool, Draft, Float, Key, Only, Part, declare, ends
from .experts import GGUF_KEYS
from .gguf import GGUF, NO_WIDTH, Gguf, Metadata
from .hybrid import (
    ATTENTION,
    EXTRA,
    LINEAR,
    Kinds,
    Limits,
    gguf_fused,
    gguf_names,
    gguf_packings,
    mamba2_names,
    read_kv,
    write_kv,
)

KINDS = {
    LINEAR: {"mixer.type": "mamba2", "ffn.type": None},
    FULL: {"mixer.type": "attention", "ffn.type": None},
    "mlp": {"mixer.type": None, "ffn.type": "mlp"},
    "moe": {"mixer.type": None, "ffn.type": "moe"},
}
CYCLE = [LINEAR, "moe", FULL, "mlp"]  # transformers' default
LIST = Kinds(KINDS, lambda i, get: CYCLE[i % 4], "layers_block_type", {"mamba": LINEAR, "attention": FULL})
LETTERS = {"M": LINEAR, "*": FULL, "-": "mlp", "E": "moe"}


class Pattern(Part):
    """layers_block_type, whose length is the number of blocks; older files have a letter for each block."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        letters = get.get("hybrid_override_pattern", (str, type(None)), None)
        names = get.get("layers_block_type", (list, type(None)), None)
        get.used.add("num_hidden_layers")
        if names is None and letters is not None:
            for letter in letters:
                require(letter in LETTERS, f"{get.where}: hybrid_override_pattern", " or ".join(LETTERS), letter)
            names = [LETTERS[letter] for letter in letters]
            get.config = {**get.config, "layers_block_type": names}
        draft.set("layers", get.get("num_hidden_layers", int, 4) if names is None else len(names))
        LIST.read(get, draft)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        LIST.write(config, out)
        out["num_hidden_layers"] = len(config.blocks)


def sizes(width: int, layers: int, heads: int) -> dict[str, Any]:
    """Keys of another size."""
    attention = {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": max(1, width // heads)}
    mamba = {"mamba_num_heads": max(1, 2 * width // 64), "mamba_head_dim": min(64, 2 * width), "n_groups": 1}
    return {**attention, **mamba, "layers_block_type": [(LINEAR, "mlp", FULL, "mlp")[i % 4] for i in range(layers)]}


def finish(draft: Draft) -> None:
    """Units that work on every token have biases where the MLPs have: here they cannot."""
    experts = any(block["ffn.type"] == "moe" for block in draft.blocks)
    require(not (experts and draft.get("ffn.bias")), "config.json: mlp_bias", "false with experts", True)


declare(
    "nemotron_h", "NemotronHForCausalLM",
    [Pattern(), Key("vocab_size", "vocab_size", 131072), Key("hidden_size", "width", 4096),
     Key("num_attention_heads", "mixer.heads", 32), Key("num_key_value_heads", "mixer.kv_heads", 8),
     Key("head_dim", "mixer.head_dim", 128), Key("max_position_embeddings", "max_positions", 4096),
     Key("intermediate_size", "ffn.width", 21504), Key("mlp_hidden_act", "ffn.act moe.act", "relu2", str, ACTS),
     Bool("mlp_bias", "ffn.bias"), Key("mamba_num_heads", "mamba2.heads", 128),
     Key("mamba_head_dim", "mamba2.head_dim", 64), Key("ssm_state_size", "mamba2.state", 128),
     Key("n_groups", "mamba2.groups", 8), Key("conv_kernel", "mamba2.taps", 4),
     Bool("use_conv_bias", "mamba2.conv_bias", True), Bool("mamba_proj_bias", "mamba2.bias"), Limits("mamba2.limits"),
     Float("layer_norm_epsilon", "norm.eps mamba2.norm.eps", 1e-5), Only("mamba_hidden_act", "silu"),
     Key("n_routed_experts", "moe.experts", 8), Key("num_experts_per_tok", "moe.chosen", 2),
     Key("moe_intermediate_size", "moe.width", 7688), Key("moe_shared_expert_intermediate_size", "moe.shared", 7688),
     Float("routed_scaling_factor", "moe.scale", 1.0), Bool("norm_topk_prob", "moe.renormalize", True),
     Only("n_group", 1), Only("topk_group", 1), Only("moe_latent_size", None), *ends(False)],
    {"embed": "backbone.embeddings", "norm": "backbone.norm_f", "head": "lm_head.weight", "blocks": "backbone.layers",
     "mixer_norm": "norm", "ffn_norm": "norm", **{ours: theirs.replace("self_attn", "mixer") for ours, theirs in
     ATTENTION.items()}, **mamba2_names("mixer"), "mlp.up": "mixer.up_proj", "mlp.down": "mixer.down_proj",
     "moe.router": "mixer.gate", "moe.balance": "mixer.gate.e_score_correction_bias",
     "moe.up": "mixer.experts.*.up_proj", "moe.down": "mixer.experts.*.down_proj",
     "moe.shared.up": "mixer.shared_experts.up_proj", "moe.shared.down": "mixer.shared_experts.down_proj"},
    ffn=MlpSpec, fixed={"mamba2.norm": NormSpec("rms", bias=False), "mixer.bias": False, "mixer.out_bias": False,
                        "moe.gated": False, "moe.score": "sigmoid", "moe.eps": 1e-20, "moe.balance_bias": True},
    ignored=EXTRA + " expand use_mamba_kernels mamba_ssm_cache_dtype n_shared_experts use_bias"
    " moe_shared_expert_overlap num_nextn_predict_layers mtp_layers_block_type hidden_dropout sliding_window"
    " attention_bias",
    sized=sizes, finish=finish,
)  # fmt: skip


def read_gguf(values: Metadata, units: str = "mlp") -> None:
    """Which layers attend and which are MLPs or experts: those with key/value heads, and those with a width."""
    widths, kv = values.each("width", values["num_hidden_layers"]), read_kv(values)
    values.require(len({*widths} - {0}) <= 1, "width", "one number in all blocks that have some")
    both = [i for i, each in enumerate(zip(kv, widths, strict=True)) if all(each)]
    values.require(not both, "width", f"0 in blocks {both}, which have key/value heads")
    del values["width"]
    values["layers_block_type"] = [
        FULL if heads else units if width else LINEAR for heads, width in zip(kv, widths, strict=True)
    ]
    if units == "mlp":
        values["intermediate_size"] = max(widths) or 1
    elif not values.get("moe_intermediate_size"):
        values["moe_intermediate_size"] = max(widths)
    values["mamba_head_dim"] = values.over("inner_size", "mamba_num_heads")
    for name in ("value_length", "units", "inner_size"):
        values.pop(name, None)


def write_gguf(values: dict[str, Any], units: str = "mlp") -> None:
    """The inverse."""
    kinds = values["layers_block_type"]
    require({FULL, units, LINEAR} == set(kinds), "GGUF's nemotron_h: layers_block_type", f"some of each of {LINEAR}, "
            f"{FULL}, {units} and of no other", kinds)  # fmt: skip
    write_kv(values, [each == FULL for each in kinds])
    width = values["intermediate_size" if units == "mlp" else "moe_intermediate_size"]
    values["width"] = np.array([width if each == units else 0 for each in kinds], np.int32)
    values["inner_size"] = values["mamba_num_heads"] * values["mamba_head_dim"]
    values["value_length"], values["units"] = values["head_dim"], 1


TABLE = Gguf(
    "nemotron_h",
    {**NO_WIDTH, "attention.key_length": "head_dim", "attention.value_length": "value_length",
     "attention.head_count_kv": "kv", "feed_forward_length": "width",
     # of the two names of the first, some versions of llama.cpp need one, some the other
     "attention.layer_norm_epsilon": "layer_norm_epsilon", "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
     "ssm.conv_kernel": "conv_kernel", "ssm.state_size": "ssm_state_size", "ssm.time_step_rank": "mamba_num_heads",
     "ssm.group_count": "n_groups", "ssm.inner_size": "inner_size"},
    fixed={"mlp_hidden_act": "relu2", "mlp_bias": False, "use_conv_bias": True, "mamba_proj_bias": False,
           "time_step_limit": None},
    rope=False, names={"ffn_norm": "attn_norm"}, fused=gguf_fused(), packings=gguf_packings, variant=gguf_names,
    read=read_gguf, write=write_gguf,
)  # fmt: skip
GGUF.add("nemotron_h", TABLE)
GGUF.add("nemotron_h_moe", replace(
    TABLE, arch="nemotron_h_moe", family="nemotron_h",
    holds=lambda config: any(block.ffn is not None and block.ffn.kind == "moe" for block in config.blocks),
    keys={**TABLE.keys, **GGUF_KEYS, "expert_count": "n_routed_experts", "expert_shared_count": "units",
          "expert_feed_forward_length": "moe_intermediate_size",
          "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
          "expert_weights_norm": "norm_topk_prob", "expert_weights_scale": "routed_scaling_factor",
          "expert_group_count": "n_group", "moe_latent_size": "moe_latent_size"},
    names={**TABLE.names, "ffn.balance": "exp_probs_b.bias"},
    read=partial(read_gguf, units="moe"), write=partial(write_gguf, units="moe"),
))  # fmt: skip

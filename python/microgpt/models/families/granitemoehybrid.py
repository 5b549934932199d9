"""Granite 4 (IBM 2025): layers of Mamba-2 and of attention, with Granite's multipliers."""

from __future__ import annotations

from typing import Any

from ...nn.checks import require
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import ATTENTION_BIAS, FULL, Act, Draft, Float, Key, Part, declare, ends, heads, shape
from .gguf import GGUF, Gguf, Metadata
from .granite import GGUF_KEYS, MULTIPLIERS
from .granitemoe import GATE_UP
from .hybrid import (
    ATTENTION,
    ENDS,
    EXTRA,
    LINEAR,
    SSM_FIXED,
    SSM_KEYS,
    Kinds,
    gguf_fused,
    gguf_names,
    gguf_packings,
    mamba2_keys,
    mamba2_names,
    mamba2_sizes,
    read_kv,
    write_kv,
)
from .rope import Rope


class MaybeRope(Rope):
    """position_embedding_type: rope, or null for no positions."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        super().read(get, draft)
        if get.get("position_embedding_type", (str, type(None)), None) != "rope":
            draft.set("mixer.rope", None)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        if any(getattr(block.mixer, "rope", None) is not None for block in config.blocks):
            super().write(config, out)
            out["position_embedding_type"] = "rope"


class Experts(Part):
    """num_local_experts: how many there are beside the feed-forward for all tokens, or 0."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        count = get.get("num_local_experts", int, 8)
        require(count >= 0, f"{get.where}: num_local_experts", "0 or more", count)
        draft.set("moe.experts", count)
        draft.set("ffn.type", "moe" if count else "glu")

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["num_local_experts"] = getattr(config.blocks[0].ffn, "experts", 0)
        if not out["num_local_experts"]:
            out["shared_intermediate_size"] = config.blocks[0].ffn.width


SHARED = {"gate_up": "shared_mlp.input_linear", "down": "shared_mlp.output_linear"}

declare(
    "granitemoehybrid", "GraniteMoeHybridForCausalLM",
    [*shape(32000, 4096, 32, 32, 2048), *heads(), Experts(), Key("num_experts_per_tok", "moe.chosen", 2),
     Key("intermediate_size", "moe.width", 11008), Key("shared_intermediate_size", "moe.shared ffn.width", 1024),
     Float("router_aux_loss_coef", "moe.balance_loss", 0.001), Act("hidden_act", "silu", ours="ffn.act moe.act"),
     *mamba2_keys(),
     Kinds({LINEAR: {"mixer.type": "mamba2"}, FULL: {"mixer.type": "attention"}}, lambda i, get: LINEAR,
           older={"mamba": LINEAR, "attention": FULL}),
     Float("rms_norm_eps", "norm.eps mamba2.norm.eps", 1e-6), ATTENTION_BIAS, *MULTIPLIERS, MaybeRope(), *ends(False)],
    {**ENDS, **ATTENTION, **mamba2_names("mamba"), "glu.gate glu.up": SHARED["gate_up"], "glu.down": SHARED["down"],
     "moe.shared.gate moe.shared.up": SHARED["gate_up"], "moe.shared.down": SHARED["down"],
     "moe.router": "block_sparse_moe.router.layer", "moe.gate moe.up": "block_sparse_moe.input_linear",
     "moe.down": "block_sparse_moe.output_linear"},
    packings={"moe.gate moe.up": GATE_UP}, fixed={"mamba2.norm": NormSpec("rms", bias=False)}, ignored=EXTRA,
    sized=lambda *of: {**mamba2_sizes(*of), "num_local_experts": 0},
)  # fmt: skip


def read_ssm(values: Metadata) -> None:
    """Factors and widths instead of numbers of channels."""
    values["mamba_expand"] = values.over("mamba_d_ssm", "hidden_size")
    values["mamba_d_head"] = values.over("mamba_d_ssm", "mamba_n_heads")
    del values["mamba_d_ssm"]


def write_ssm(values: dict[str, Any]) -> None:
    """The inverse. llama.cpp knows no other factor than 2, and ends the process at one."""
    require("mamba_n_heads" in values, "GGUF's granitehybrid: layer_types", f"some {LINEAR}", "none")
    require(values["mamba_expand"] == 2, "GGUF's granitehybrid: mamba_expand", 2, values["mamba_expand"])
    values["mamba_d_ssm"] = values["mamba_n_heads"] * values["mamba_d_head"]


def read_gguf(values: Metadata) -> None:
    """Which layers attend, whether they have positions, and whose width the feed-forward's is."""
    values["layer_types"] = [FULL if each else LINEAR for each in read_kv(values)]
    values["position_embedding_type"] = "rope" if values.pop("finetuned", False) else None
    values.setdefault("num_local_experts", 0)
    width = "intermediate_size" if values.whole("num_local_experts") else "shared_intermediate_size"
    values[width] = values.whole("width")
    del values["width"]
    read_ssm(values)


def write_gguf(values: dict[str, Any]) -> None:
    """The inverse."""
    write_kv(values, [each == FULL for each in values["layer_types"]])
    values["finetuned"] = values.get("position_embedding_type") == "rope"
    values["width"] = values["intermediate_size" if values["num_local_experts"] else "shared_intermediate_size"]
    write_ssm(values)


GGUF_TABLE = GGUF.add("granitemoehybrid", Gguf(
    "granitehybrid",
    {**GGUF_KEYS, **SSM_KEYS, "attention.head_count_kv": "kv", "feed_forward_length": "width",
     "rope.scaling.finetuned": "finetuned", "expert_count": "num_local_experts",
     "expert_used_count": "num_experts_per_tok", "expert_shared_feed_forward_length": "shared_intermediate_size"},
    fixed={**SSM_FIXED, "hidden_act": "silu"}, fused=gguf_fused(), packings=gguf_packings, variant=gguf_names,
    interleaved=True, read=read_gguf, write=write_gguf,
))  # fmt: skip

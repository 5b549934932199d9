"""Bamba (IBM 2024): layers of Mamba-2 with some of attention between, each with a gated feed-forward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...nn.checks import require
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import ATTENTION_BIAS, Bool, Draft, Float, Part, declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, Metadata
from .granitemoehybrid import GGUF_TABLE, read_ssm, write_ssm
from .hybrid import (
    ATTENTION,
    ENDS,
    EXTRA,
    SSM_KEYS,
    AttentionRope,
    mamba2_keys,
    mamba2_names,
    mamba2_sizes,
    read_kv,
    write_kv,
)


@dataclass(frozen=True)
class AttentionAt(Part):
    """attn_layer_indices: the blocks whose mixer is attention; all others are Mamba-2."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        found = get.get("attn_layer_indices", (list, type(None)), None) or []
        where, count = f"{get.where}: attn_layer_indices", len(draft.blocks)
        for each in found:
            require(isinstance(each, int) and 0 <= each < count, where, f"numbers from 0 to {count - 1}", each)
        for i, block in enumerate(draft.blocks):
            block["mixer.type"] = "attention" if i in found else "mamba2"

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["attn_layer_indices"] = [i for i, block in enumerate(config.blocks) if block.mixer.kind == "attention"]


declare(
    "bamba", "BambaForCausalLM",
    [*shape(128000, 4096, 32, 32, 262144), *heads(kv=8), *ffn(14336), *mamba2_keys(), AttentionAt(),
     Float("rms_norm_eps", "norm.eps mamba2.norm.eps", 1e-5), ATTENTION_BIAS, Bool("mlp_bias", "ffn.bias"),
     AttentionRope(share=0.5), *ends(False)],
    {**ENDS, **ATTENTION, **mamba2_names("mamba"), "norm": "model.final_layernorm", "ffn_norm": "pre_ff_layernorm",
     "ffn.gate": "feed_forward.gate_proj", "ffn.up": "feed_forward.up_proj", "ffn.down": "feed_forward.down_proj"},
    fixed={"mamba2.norm": NormSpec("rms", bias=False)}, ignored=EXTRA, sized=mamba2_sizes,
)  # fmt: skip


def read_gguf(values: Metadata) -> None:
    """Which layers attend."""
    values.pop("finetuned")
    values["attn_layer_indices"] = [i for i, each in enumerate(read_kv(values)) if each]
    read_ssm(values)


def write_gguf(values: dict[str, Any]) -> None:
    """The inverse; a key says that there are positions."""
    write_kv(values, [i in values["attn_layer_indices"] for i in range(values["num_hidden_layers"])])
    values["finetuned"] = True
    write_ssm(values)


# Its files are Granite's, with positions and without multipliers.
GGUF.add("bamba", replace(
    GGUF_TABLE, told_by="rope.scaling.finetuned", untold_by="attention.scale", partial=True,
    keys={**NO_WIDTH, **SSM_KEYS, "attention.head_count_kv": "kv", "rope.scaling.finetuned": "finetuned"},
    fixed={**GGUF_TABLE.fixed, "mlp_bias": False}, read=read_gguf, write=write_gguf,
))  # fmt: skip

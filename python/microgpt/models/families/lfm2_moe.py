"""LFM2 MoE (Liquid AI 2025): LFM2 with experts chosen by sigmoids and a bias, after a few dense layers."""

from __future__ import annotations

from typing import Any

from ...nn.checks import whole
from ...nn.ffn.moe import MoeSpec
from ..config import ModelConfig
from .common import Reader
from .declare import Bool, Draft, Float, Key, Part, declare, ends, heads, shape
from .experts import GGUF_KEYS, IGNORED
from .gguf import GGUF, Gguf, Metadata
from .hybrid import gguf_names
from .lfm2 import CONVOLUTION, EPS, FIXED, GGUF_TABLE, NAMES, OLDER, Kinds, mixed, read_gguf, write_gguf
from .rope import Rope


class FirstDense(Part):
    """num_dense_layers: so many layers, from the first on, have one feed-forward for all tokens."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        count = get.get("num_dense_layers", int, 2)
        whole(f"{get.where}: num_dense_layers", count, 0, 2**16)
        for block in draft.blocks[:count]:
            block["ffn.type"] = "glu"

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["num_dense_layers"] = sum(block.ffn.kind == "glu" for block in config.blocks)


declare(
    "lfm2_moe", "Lfm2MoeForCausalLM",
    [*shape(65536, 2048, 32, 32, 128000), *heads(8), Key("intermediate_size", "glu.width", 7168),
     Key("moe_intermediate_size", "ffn.width", 1792), Key("num_experts", "ffn.experts", 32),
     Key("num_experts_per_tok", "ffn.chosen", 4), Bool("norm_topk_prob", "ffn.renormalize", True),
     Bool("use_expert_bias", "ffn.balance_bias", True), Float("routed_scaling_factor", "ffn.scale", 1.0), FirstDense(),
     *CONVOLUTION, EPS, Kinds(lambda i: i % 4 == 2), Rope(1e6), *ends(True)],
    {**NAMES, "moe.router": "feed_forward.gate", "moe.balance": "feed_forward.expert_bias",
     "moe.gate": "feed_forward.experts.*.w1", "moe.up": "feed_forward.experts.*.w3",
     "moe.down": "feed_forward.experts.*.w2"},
    ffn=MoeSpec, fixed={**FIXED, "ffn.score": "sigmoid", "ffn.eps": 1e-6}, older=OLDER,
    ignored=IGNORED,
    sized=lambda width, layers, heads: {"layer_types": mixed(layers), "num_experts": 8, "num_experts_per_tok": 2,
                                        "num_dense_layers": min(2, layers - 1)},
)  # fmt: skip


SIGMOID = 2  # of llama.cpp's ways to score


def read_moe(values: Metadata) -> None:
    """How experts are scored, which the architecture leaves open."""
    read_gguf(values)
    values.require(values.whole("scored") == SIGMOID, "scored", f"{SIGMOID} (sigmoid)")
    del values["scored"]


def write_moe(values: dict[str, Any]) -> None:
    """The inverse."""
    write_gguf(values)
    values["scored"] = SIGMOID


GGUF.add("lfm2_moe", Gguf(
    "lfm2moe",
    {**GGUF_TABLE.keys, **GGUF_KEYS, "expert_count": "num_experts", "expert_gating_func": "scored",
     "expert_feed_forward_length": "moe_intermediate_size", "leading_dense_block_count": "num_dense_layers"},
    fixed={"conv_bias": False, "use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
    names={**GGUF_TABLE.names, "ffn.balance": "exp_probs_b.bias"}, fused=GGUF_TABLE.fused, variant=gguf_names,
    packings=GGUF_TABLE.packings, read=read_moe, write=write_moe,
))  # fmt: skip

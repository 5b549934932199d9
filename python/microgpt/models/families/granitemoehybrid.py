"""Granite 4 (IBM 2025): layers of Mamba-2 and of attention, with Granite's multipliers."""

from __future__ import annotations

from typing import Any

from ...nn.checks import require
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import ATTENTION_BIAS, FULL, Act, Draft, Float, Key, Part, declare, ends, heads, shape
from .granite import MULTIPLIERS
from .granitemoe import GATE_UP
from .hybrid import ATTENTION, ENDS, EXTRA, LINEAR, Kinds, mamba2_keys, mamba2_names, mamba2_sizes
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

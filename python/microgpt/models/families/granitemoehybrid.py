"""Granite 4 (IBM 2025): layers of Mamba-2 and of attention, with Granite's multipliers."""

from __future__ import annotations

from typing import Any

from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import ATTENTION_BIAS, FULL, Act, Draft, Float, Key, Only, declare, ends, heads, shape
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


declare(
    "granitemoehybrid", "GraniteMoeHybridForCausalLM",
    [*shape(32000, 4096, 32, 32, 2048), *heads(), Key("shared_intermediate_size", "ffn.width", 1024),
     Act("hidden_act", "silu"), Only("num_local_experts", 0), *mamba2_keys(),
     Kinds({LINEAR: {"mixer.type": "mamba2"}, FULL: {"mixer.type": "attention"}}, lambda i, get: LINEAR,
           older={"mamba": LINEAR, "attention": FULL}),
     Float("rms_norm_eps", "norm.eps mamba2.norm.eps", 1e-6), ATTENTION_BIAS,
     Float("embedding_multiplier", "embed_scale", 1.0), Float("attention_multiplier", "mixer.scale", 1.0),
     Float("residual_multiplier", "block.residual_scale", 1.0),
     Float("logits_scaling", "logit_scale", 1.0, to=lambda x: 1.0 / x, back=lambda x: 1.0 / x), MaybeRope(),
     *ends(False)],
    {**ENDS, **ATTENTION, **mamba2_names("mamba"), "ffn.gate ffn.up": "shared_mlp.input_linear",
     "ffn.down": "shared_mlp.output_linear"},
    fixed={"mamba2.norm": NormSpec("rms", bias=False)}, ignored=EXTRA + " intermediate_size num_experts_per_tok router_aux_loss_coef",
    sized=mamba2_sizes,
)  # fmt: skip

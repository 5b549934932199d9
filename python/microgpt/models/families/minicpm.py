"""MiniCPM (Hu et al. 2024, arXiv:2404.06395): Llama scaled as in muP. Granite computes the same from its multipliers."""

from __future__ import annotations

import math
from typing import Any

from ..config import ModelConfig
from .common import Reader
from .declare import Act, Draft, Float, Key, Part, declare, ends, heads, shape
from .llama import BIAS, EPS, NAMES
from .rope import Rope


class Depth(Part):
    """scale_depth over the square root of the layers multiplies residuals; dim_model_base over the width, logits."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        depth = get.get("scale_depth", (float, int), 1.0)
        base = get.get("dim_model_base", (int, float), draft.get("width"))
        draft.set("block.residual_scale", depth / math.sqrt(len(draft.blocks)))
        draft.set("logit_scale", base / draft.get("width"))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["scale_depth"] = round(config.blocks[0].residual_scale * math.sqrt(len(config.blocks)), 12)
        out["dim_model_base"] = round(config.logit_scale * config.width)


declare(
    "minicpm", "MiniCPMForCausalLM",
    [*shape(32000, 4096, 32, 32, 2048), *heads(), Key("intermediate_size", "ffn.width", 11008), Act("hidden_act", "silu"),
     EPS, *BIAS, Float("scale_emb", "embed_scale", 1.0), Depth(), Rope(), *ends(True)],
    NAMES, ignored="attention_dropout pretraining_tp auto_map",
)  # fmt: skip

"""MiniCPM (Hu et al. 2024, arXiv:2404.06395): Llama scaled as in muP; Granite's multipliers can say the same."""

from __future__ import annotations

import math
from typing import Any

from ..config import ModelConfig
from .common import Reader
from .declare import Draft, Float, Part, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
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
    [*shape(32000, 4096, 32, 32, 2048), *heads(), *ffn(11008),
     EPS, *BIAS, Float("scale_emb", "embed_scale", 1.0), Depth(), Rope(), *ends(True)],
    NAMES, ignored="attention_dropout pretraining_tp auto_map",
)  # fmt: skip


def read(values: dict[str, Any]) -> None:
    """The two scales, which config.json derives from others."""
    depth = math.sqrt(values["num_hidden_layers"])
    values["scale_depth"] = round(values.pop("residual_scale", 1.4 / depth) * depth, 6)  # the file has float32
    values["dim_model_base"] = values["hidden_size"] / values.pop("logit_scale", values["hidden_size"] / 256)
    values.setdefault("scale_emb", 12.0)


def write(values: dict[str, Any]) -> None:
    """The inverse."""
    values["residual_scale"] = values["scale_depth"] / math.sqrt(values["num_hidden_layers"])
    values["logit_scale"] = values["hidden_size"] / values["dim_model_base"]


GGUF.add("minicpm", Gguf(
    "minicpm",
    {**LLAMA_KEYS, "embedding_scale": "scale_emb", "residual_scale": "residual_scale", "logit_scale": "logit_scale"},
    fixed={"hidden_act": "silu"}, interleaved=True, read=read, write=write,
    present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
))  # fmt: skip

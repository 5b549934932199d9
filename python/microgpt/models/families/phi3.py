"""Phi-3 (Abdin et al. 2024, arXiv:2404.14219): Llama with fused projections and LongRoPE."""

from __future__ import annotations

from typing import Any

from ..config import ModelConfig
from .declare import Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, Gguf
from .llama import BODY, BUFFERS, FUSED_GLU, NO_BIAS
from .rope import Rope, Window

FUSED = {name: place for name, place in BODY.items() if name not in ("mixer.q", "mixer.k", "mixer.v")}
FUSED |= {"mixer.q mixer.k mixer.v": "self_attn.qkv_proj", **FUSED_GLU}


class Phi3Rope(Rope):
    """The original context stands beside rope_parameters, where transformers prefers it."""

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        super().write(config, out)
        scaling = config.blocks[0].mixer.rope.scaling
        if scaling is not None:
            out["original_max_position_embeddings"] = scaling.original


declare(
    "phi3", "Phi3ForCausalLM",
    [*shape(32064, 3072, 32, 32, 4096), *heads(), *ffn(8192),
     Float("rms_norm_eps", "norm.eps", 1e-5), Window(), Phi3Rope(), *ends(False)],
    FUSED, fixed=NO_BIAS, ignored="attention_dropout original_max_position_embeddings", buffers=BUFFERS,
)  # fmt: skip
GGUF.add("phi3", Gguf(
    "phi3", {**NO_WIDTH, "attention.sliding_window": "sliding_window"}, fixed={"hidden_act": "silu"},
    fused={"mixer.q mixer.k mixer.v": "attn_qkv", "ffn.gate ffn.up": "ffn_up"},
    partial=True,
))  # fmt: skip

"""Hunyuan dense (Tencent 2025): Llama with queries and keys normed after they turned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...nn.rope import RopeScaling
from ..config import ModelConfig
from .common import Reader, write_rope
from .declare import ATTENTION_BIAS, RMS, Draft, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import NAMES
from .rope import Rope


class AlphaRope(Rope):
    """What its files call dynamic is a fixed stretch where `alpha` stands beside it."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        super().read(get, draft)
        rope, given = draft.get("mixer.rope"), get.config.get("rope_parameters") or get.config.get("rope_scaling") or {}
        if rope.scaling is not None and rope.scaling.kind == "dynamic" and given.get("alpha"):
            draft.set("mixer.rope", replace(rope, scaling=RopeScaling("ntk", given["alpha"])))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        rope = config.blocks[0].mixer.rope
        stretched = rope.scaling is not None and rope.scaling.kind == "ntk"
        plain = replace(rope, scaling=RopeScaling("dynamic", 1.0)) if stretched else rope
        out.update(write_rope(plain, config.blocks[0].mixer.head_dim))
        if stretched:
            out["rope_parameters"]["alpha"] = rope.scaling.factor


declare(
    "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM",
    [*shape(290943, 4096, 32, 32, 2048), *heads(), *ffn(11008),
     Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5), ATTENTION_BIAS,
     AlphaRope(known=("alpha",)), *ends(False)],
    {**NAMES, "mixer.q_norm": "self_attn.query_layernorm", "mixer.k_norm": "self_attn.key_layernorm"},
    fixed={"mixer.qk_norm": RMS, "mixer.qk_norm_last": True}, ignored="attention_dropout pretraining_tp eod_token_id",
)  # fmt: skip
GGUF.add("hunyuan_v1_dense", Gguf(
    "hunyuan-dense", LLAMA_KEYS, fixed={"hidden_act": "silu", "attention_bias": False},
))  # fmt: skip

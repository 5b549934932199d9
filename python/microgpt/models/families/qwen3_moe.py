"""Qwen 3 MoE (Yang et al. 2025, arXiv:2505.09388): 128 small experts, eight of which work on a token."""

from __future__ import annotations

from typing import Any

from ...nn.ffn.moe import MoeSpec
from ..config import ModelConfig
from .common import Reader
from .declare import ATTENTION_BIAS, RMS, Act, Draft, Key, declare, ends, heads, shape
from .experts import DENSE, GGUF_EXPERTS, GGUF_KEYS, IGNORED, NAMES, RENORMALIZE, DenseLayers, experts
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BODY, BUFFERS, EPS, QK_NORM
from .rope import Rope, Window


class SwitchedWindow(Window):
    """sliding_window of all layers, where use_sliding_window is true."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        super().read(get, draft)
        if not get.get("use_sliding_window", bool, False):
            draft.set("mixer.window", None)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        super().write(config, out)
        out["use_sliding_window"] = out["sliding_window"] is not None


declare(
    "qwen3_moe", "Qwen3MoeForCausalLM",
    [*shape(151936, 2048, 24, 32, 32768), *heads(4), Key("moe_intermediate_size", "ffn.width", 768),
     Key("intermediate_size", "glu.width", 6144), Act("hidden_act", "silu", ours="ffn.act glu.act"), *experts(128, 8),
     RENORMALIZE, DenseLayers(), EPS, ATTENTION_BIAS, SwitchedWindow(4096), Rope(), *ends(False)],
    {**BODY, **QK_NORM, **NAMES, **DENSE},
    ffn=MoeSpec, fixed={"mixer.qk_norm": RMS}, ignored=f"{IGNORED} max_window_layers", buffers=BUFFERS,
    older={"num_local_experts": "num_experts"},
)  # fmt: skip
GGUF.add("qwen3_moe", Gguf(
    "qwen3moe",
    {**LLAMA_KEYS, **GGUF_KEYS, "expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size"},
    fixed={"hidden_act": "silu", "use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
           "norm_topk_prob": True, "attention_bias": False},
    names=GGUF_EXPERTS,
))  # fmt: skip

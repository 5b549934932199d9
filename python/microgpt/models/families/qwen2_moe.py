"""Qwen 2 MoE (Yang et al. 2024, arXiv:2407.10671): small experts, and one for all tokens behind a gate."""

from __future__ import annotations

from ...nn.ffn.moe import MoeSpec
from .declare import Act, Bool, Key, declare, ends, heads, shape
from .experts import DENSE, GGUF_EXPERTS, GGUF_KEYS, IGNORED, NAMES, RENORMALIZE, DenseLayers, experts
from .gguf import GGUF, NO_WIDTH, Gguf
from .llama import BODY, BUFFERS, EPS
from .rope import LayerTypes, Rope

WINDOWS = LayerTypes(
    lambda i, get: i % 2 == 0 and i < get.get("max_window_layers", int, 28), switch="use_sliding_window"
)
SHARED = {
    "moe.shared.gate": "mlp.shared_expert.gate_proj", "moe.shared.up": "mlp.shared_expert.up_proj",
    "moe.shared.down": "mlp.shared_expert.down_proj", "moe.shared_gate": "mlp.shared_expert_gate",
}  # fmt: skip

declare(
    "qwen2_moe", "Qwen2MoeForCausalLM",
    [*shape(151936, 2048, 24, 16, 32768), *heads(16), Key("moe_intermediate_size", "ffn.width", 1408),
     Key("intermediate_size", "glu.width", 5632), Act("hidden_act", "silu", ours="ffn.act glu.act"), *experts(60, 4),
     RENORMALIZE, Key("shared_expert_intermediate_size", "ffn.shared", 5632), DenseLayers(), EPS,
     Bool("qkv_bias", "mixer.bias", True), WINDOWS, Rope(), *ends(False)],
    {**BODY, **NAMES, **SHARED, **DENSE},
    ffn=MoeSpec, fixed={"mixer.out_bias": False, "ffn.shared_gate": True}, ignored=f"{IGNORED} max_window_layers",
    buffers=BUFFERS,
)  # fmt: skip
GGUF.add("qwen2_moe", Gguf(
    "qwen2moe",
    {**NO_WIDTH, **GGUF_KEYS, "expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size",
     "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    fixed={"hidden_act": "silu", "use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
           "norm_topk_prob": False, "qkv_bias": True},
    names=GGUF_EXPERTS,
))  # fmt: skip

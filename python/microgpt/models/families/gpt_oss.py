"""gpt-oss (OpenAI 2025, arXiv:2508.10925): experts with biases and bounded units, sinks, every other layer a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...io.names import Packing
from ...nn.ffn.moe import MoeSpec
from .common import Reader
from .declare import Bool, Draft, Float, declare, ends, ffn, heads, shape
from .experts import GGUF_EXPERTS, GGUF_KEYS, IGNORED, experts
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BODY
from .rope import LayerTypes, Rope, every

YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False, "original_max_position_embeddings": 4096}  # fmt: skip


class OssRope(Rope):
    """Scaled where config.json says nothing."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        if not get.config.get("rope_parameters") and not get.config.get("rope_scaling"):
            get.config = {
                **get.config,
                "rope_parameters": {**YARN, "rope_theta": get.config.get("rope_theta", 150000.0)},
            }
        super().read(get, draft)


# Outputs of gate and up in turn, matrices (in, out): (experts, in, 2 * out); biases (experts, 2 * out).
GATE_UP = Packing(
    lambda parts: _turned(np.stack(parts, axis=2).reshape(len(parts[0]), -1, *parts[0].shape[2:])),
    lambda value: [_turned(value)[:, first::2] for first in (0, 1)],
    lambda shapes: (*shapes[0][:1], *shapes[0][2:], 2 * shapes[0][1]),
    (slice(0, None, 2), slice(1, None, 2)),
)
DOWN = Packing(
    lambda parts: _turned(parts[0]),
    lambda value: [_turned(value)],
    lambda shapes: (shapes[0][0], shapes[0][2], shapes[0][1]),
    (slice(None),),
)


def _turned(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Matrices (experts, out, in) as (experts, in, out), or back; biases as they are."""
    return value.swapaxes(1, 2) if value.ndim == 3 else value


WEIGHT, BIAS = "moe.gate.weight moe.up.weight", "moe.gate.bias moe.up.bias"
EXPERTS = {
    WEIGHT: "mlp.experts.gate_up_proj", BIAS: "mlp.experts.gate_up_proj_bias",
    "moe.down.weight": "mlp.experts.down_proj", "moe.down.bias": "mlp.experts.down_proj_bias",
}  # fmt: skip

declare(
    "gpt_oss", "GptOssForCausalLM",
    [*shape(201088, 2880, 36, 64, 131072), *heads(8, 64), *ffn(2880), *experts(128, 4, "num_local_experts"),
     Float("swiglu_alpha", "ffn.alpha", 1.702), Float("swiglu_limit", "ffn.limit", 7.0),
     Float("rms_norm_eps", "norm.eps", 1e-5), Bool("attention_bias", "mixer.bias mixer.out_bias", True),
     LayerTypes(every(2), 128), OssRope(150000.0), *ends(False)],
    {**BODY, "mixer.sinks": "self_attn.sinks", "moe.router": "mlp.router", **EXPERTS},
    ffn=MoeSpec, fixed={"mixer.sinks": True, "ffn.bias": True, "ffn.router_bias": True},
    packings={WEIGHT: GATE_UP, BIAS: GATE_UP, "moe.down.weight": DOWN},
    ignored=f"{IGNORED} initial_context_length experts_per_token quantization_config",
)  # fmt: skip
GGUF.add("gpt_oss", Gguf(
    "gpt-oss",
    {**LLAMA_KEYS, **GGUF_KEYS, "expert_count": "num_local_experts", "expert_feed_forward_length": "intermediate_size",
     "attention.sliding_window": "sliding_window"},
    fixed={"hidden_act": "silu", "attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    names={**GGUF_EXPERTS, "mixer.sinks": "attn_sinks.weight", "ffn_norm": "post_attention_norm"},
    truncate=False,
))  # fmt: skip

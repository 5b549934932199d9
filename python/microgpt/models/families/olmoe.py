"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): 64 experts, queries and keys normed over all heads together."""

from __future__ import annotations

from typing import Any

from ...nn.checks import require
from ...nn.ffn.moe import MoeSpec
from .declare import ATTENTION_BIAS, RMS, Float, Only, declare, ends, ffn, heads, shape
from .experts import GGUF_EXPERTS, GGUF_KEYS, IGNORED, NAMES, RENORMALIZE, experts
from .gguf import GGUF, NO_WIDTH, Gguf
from .llama import BODY, BUFFERS, QK_NORM
from .rope import Rope

declare(
    "olmoe", "OlmoeForCausalLM",
    [*shape(50304, 2048, 16, 16, 4096), *heads(), *ffn(2048), *experts(64, 8, aux=0.01), RENORMALIZE,
     Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5), ATTENTION_BIAS, Only("clip_qkv", None), Rope(),
     *ends(False)],
    {**BODY, **QK_NORM, **NAMES},
    ffn=MoeSpec, fixed={"mixer.qk_norm": RMS, "mixer.qk_norm_over": "width"}, ignored=IGNORED, buffers=BUFFERS,
    older={"num_local_experts": "num_experts"},
)  # fmt: skip


def _write(values: dict[str, Any]) -> None:
    require(values["num_key_value_heads"] == values["num_attention_heads"], "GGUF's olmoe: num_key_value_heads",
            values["num_attention_heads"], values["num_key_value_heads"])  # fmt: skip


GGUF.add("olmoe", Gguf(
    "olmoe", {**NO_WIDTH, **GGUF_KEYS, "expert_count": "num_experts"},
    fixed={"hidden_act": "silu", "norm_topk_prob": False, "attention_bias": False}, names=GGUF_EXPERTS, write=_write,
))  # fmt: skip

"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with eight experts, two of which work on a token."""

from __future__ import annotations

from ...nn.ffn.moe import MoeSpec
from .declare import Float, declare, ends, ffn, heads, shape
from .experts import GGUF_EXPERTS, GGUF_KEYS, IGNORED, experts
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BODY, BUFFERS, NO_BIAS
from .rope import Rope, Window

declare(
    "mixtral", "MixtralForCausalLM",
    [*shape(32000, 4096, 32, 32, 131072), *heads(8), *ffn(14336), *experts(8, 2, "num_local_experts"),
     Float("rms_norm_eps", "norm.eps", 1e-5), Window(), Rope(1e6), *ends(False)],
    {**BODY, "moe.router": "block_sparse_moe.gate", "moe.gate": "block_sparse_moe.experts.*.w1",
     "moe.up": "block_sparse_moe.experts.*.w3", "moe.down": "block_sparse_moe.experts.*.w2"},
    ffn=MoeSpec, fixed=NO_BIAS, ignored=IGNORED, buffers=BUFFERS,
)  # fmt: skip
GGUF.add("mixtral", Gguf(
    "llama", {**LLAMA_KEYS, **GGUF_KEYS, "expert_count": "num_local_experts"},
    fixed={"hidden_act": "silu", "sliding_window": None}, names=GGUF_EXPERTS, interleaved=True,
    told_by="expert_count",
))  # fmt: skip

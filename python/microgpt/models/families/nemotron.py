"""Nemotron-4 and Minitron (NVIDIA 2024, arXiv:2402.16819): LayerNorm by 1 + weight, squared ReLU."""

from __future__ import annotations

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from .declare import Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, Gguf
from .llama import BIAS, BODY, MLP
from .rope import Rope

declare(
    "nemotron", "NemotronForCausalLM",
    [*shape(256000, 6144, 32, 48, 4096), *heads(), *ffn(24576, "relu2"),
     Float("norm_eps", "norm.eps", 1e-5), *BIAS, Rope(share=0.5), *ends(False, 0.0134)],
    {**BODY, **MLP}, ffn=MlpSpec, norm=NormSpec("layer", plus_one=True), ignored="attention_dropout",
)  # fmt: skip
GGUF.add("nemotron", Gguf(
    "nemotron", {**NO_WIDTH, "attention.layer_norm_epsilon": "norm_eps"},
    fixed={"hidden_act": "relu2", "tie_word_embeddings": False}, plus_one=True,
    present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    partial=True,
))  # fmt: skip

"""Apertus (Swiss AI 2025, arXiv:2509.14233): an MLP with xIELU, normed queries and keys."""

from __future__ import annotations

from ...nn.ffn.xielu import XieluSpec
from .declare import ATTENTION_BIAS, RMS, Float, Key, Only, declare, ends, heads, shape
from .gguf import GGUF, NO_WIDTH, Gguf
from .llama import BODY, MLP, QK_NORM
from .rope import Rope

declare(
    "apertus", "ApertusForCausalLM",
    [*shape(131072, 4096, 32, 32, 65536), *heads(), Key("intermediate_size", "ffn.width", 14336),
     Only("hidden_act", "xielu"), Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5),
     ATTENTION_BIAS, Rope(12000000.0), *ends(False)],
    {**BODY, **MLP, **QK_NORM, "mixer_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm",
     "ffn.alpha_p": "mlp.act_fn.alpha_p", "ffn.alpha_n": "mlp.act_fn.alpha_n"},
    ffn=XieluSpec, fixed={"mixer.qk_norm": RMS}, ignored="attention_dropout mlp_bias",
    constants={"mlp.act_fn.beta": 0.5, "mlp.act_fn.eps": -1e-6},
)  # fmt: skip
GGUF.add("apertus", Gguf(
    "apertus", NO_WIDTH, fixed={"hidden_act": "xielu", "tie_word_embeddings": False},
    present={"attention_bias": "blk.0.attn_q.bias"},
    numbers={"ffn.alpha_p": "xielu.alpha_p", "ffn.alpha_n": "xielu.alpha_n"},
    constants={"xielu.beta": 0.5, "xielu.eps": -1e-6},
))  # fmt: skip

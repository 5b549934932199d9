"""Phi-1, 1.5 and 2 (Li et al. 2023, arXiv:2309.05463): attention and MLP side by side after one norm, biases."""

from __future__ import annotations

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from .declare import Bool, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LAYER_KEYS, Gguf
from .llama import BODY, BUFFERS
from .rope import Rope

LAYER = NormSpec("layer")
QK_LAYER = Bool("qk_layernorm", "mixer.qk_norm", to=lambda yes: LAYER if yes else None, back=lambda n: n is not None)

declare(
    "phi", "PhiForCausalLM",
    [*shape(51200, 2048, 24, 32, 2048), *heads(), *ffn(8192, "gelu_new"), QK_LAYER,
     Float("layer_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5), Rope(share=0.5),
     *ends(False)],
    {**BODY, "norm": "model.final_layernorm", "head_bias": "lm_head.bias", "mixer.o": "self_attn.dense",
     "mixer.q_norm": "self_attn.q_layernorm", "mixer.k_norm": "self_attn.k_layernorm",
     "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"},
    ffn=MlpSpec, norm=LAYER, fixed={"block.parallel": True, "block.shared_norm": True}, model={"head_bias": True},
    ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip
GGUF.add(
    "phi",
    Gguf(
        "phi2",
        LAYER_KEYS,
        fixed={"hidden_act": "gelu_pytorch_tanh", "qk_layernorm": False, "tie_word_embeddings": False},
        partial=True,
    ),
)

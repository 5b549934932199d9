"""StarCoder 2 (Lozhkov et al. 2024, arXiv:2402.19173): LayerNorm, an MLP, biases, a sliding window."""

from __future__ import annotations

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from .declare import Bool, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LAYER_KEYS, Gguf
from .llama import BODY, BUFFERS
from .rope import Rope, Window

declare(
    "starcoder2", "Starcoder2ForCausalLM",
    [*shape(49152, 3072, 30, 24, 4096), *heads(2), *ffn(12288, "gelu_pytorch_tanh"),
     Float("norm_epsilon", "norm.eps", 1e-5),
     Bool("use_bias", "mixer.bias mixer.out_bias ffn.bias", True), Window(), Rope(),
     *ends(True, 0.018042, "residual_dropout", "embedding_dropout")],
    {**BODY, "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"},
    ffn=MlpSpec, norm=NormSpec("layer"), ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip
GGUF.add("starcoder2", Gguf(
    "starcoder2", {**LAYER_KEYS, "attention.layer_norm_epsilon": "norm_epsilon"},
    fixed={"hidden_act": "gelu_pytorch_tanh", "sliding_window": None}, present={"use_bias": "blk.0.attn_q.bias"},
))  # fmt: skip

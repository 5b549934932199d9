"""Llama (Touvron et al. 2023, arXiv:2302.13971; 3: arXiv:2407.21783), and the names that half the others share."""

from __future__ import annotations

from .declare import ATTENTION_BIAS, Bool, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .rope import Rope

BODY = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head.weight", "blocks": "model.layers",
    "mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "mixer.q": "self_attn.q_proj", "mixer.k": "self_attn.k_proj", "mixer.v": "self_attn.v_proj",
    "mixer.o": "self_attn.o_proj",
}  # fmt: skip
GLU = {"ffn.gate": "mlp.gate_proj", "ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj"}
MLP = {"ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj"}
QK_NORM = {"mixer.q_norm": "self_attn.q_norm", "mixer.k_norm": "self_attn.k_norm"}
NAMES = {**BODY, **GLU}
EPS = Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-6)
BIAS = [ATTENTION_BIAS, Bool("mlp_bias", "ffn.bias")]
FUSED_GLU = {"ffn.gate ffn.up": "mlp.gate_up_proj", "ffn.down": "mlp.down_proj"}
NO_BIAS = {"mixer.bias": False, "mixer.out_bias": False}
BUFFERS = ["self_attn.rotary_emb.inv_freq"]

declare(
    "llama", "LlamaForCausalLM",
    [*shape(32000, 4096, 32, 32, 2048), *heads(), *ffn(11008),
     EPS, *BIAS, Rope(), *ends(False)],
    NAMES, ignored="attention_dropout pretraining_tp", buffers=BUFFERS,
)  # fmt: skip

GGUF.add("llama", Gguf(
    "llama", LLAMA_KEYS, fixed={"hidden_act": "silu"},
    present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}, interleaved=True,
))  # fmt: skip

"""StableLM (Bellagente et al. 2024, arXiv:2402.17834): Llama with LayerNorm and a quarter of each head turning."""

from __future__ import annotations

from ...nn.spec import NormSpec
from .declare import Bool, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LAYER_KEYS, Gguf
from .llama import BUFFERS, NAMES, NO_BIAS
from .rope import Rope

PER_HEAD = NormSpec("layer", bias=False)
QK_HEADS = Bool("qk_layernorm", "mixer.qk_norm", to=lambda yes: PER_HEAD if yes else None, back=lambda n: n is not None)

declare(
    "stablelm", "StableLmForCausalLM",
    [*shape(50304, 2560, 32, 32, 4096), *heads(32), *ffn(6912),
     Float("layer_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5), Bool("use_qkv_bias", "mixer.bias"), QK_HEADS,
     Bool("use_parallel_residual", "block.parallel block.shared_norm"), Rope(share=0.25),
     *ends(False, block="hidden_dropout")],
    {**NAMES, "mixer.q_norm": "self_attn.q_layernorm.norms.*", "mixer.k_norm": "self_attn.k_layernorm.norms.*"},
    norm=NormSpec("layer"), fixed={**NO_BIAS, "mixer.qk_norm_over": "heads"}, ignored="attention_dropout",
    buffers=BUFFERS,
)  # fmt: skip
GGUF.add("stablelm", Gguf(
    "stablelm", {**LAYER_KEYS, "use_parallel_residual": "use_parallel_residual"},
    fixed={"hidden_act": "silu", "tie_word_embeddings": False},
    present={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
    partial=True,
))  # fmt: skip

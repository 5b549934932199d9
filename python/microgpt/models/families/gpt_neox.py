"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745): both layers side by side after a norm each."""

from __future__ import annotations

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from .declare import Bool, Derived, Float, all_heads, declare, ends, ffn, head_width, shape
from .gguf import GGUF, LAYER_KEYS, Gguf
from .rope import Rope

declare(
    "gpt_neox", "GPTNeoXForCausalLM",
    [*shape(50432, 6144, 44, 64, 2048), Derived("mixer.kv_heads", all_heads), Derived("mixer.head_dim", head_width),
     *ffn(24576, "gelu"), Float("layer_norm_eps", "norm.eps", 1e-5),
     Bool("use_parallel_residual", "block.parallel", True), Bool("attention_bias", "mixer.bias mixer.out_bias", True),
     Rope(share=0.25, old_share="rotary_pct", old_theta="rotary_emb_base"), *ends(False, block="hidden_dropout")],
    {"embed": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "head": "embed_out.weight",
     "blocks": "gpt_neox.layers", "mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
     "mixer.q mixer.k mixer.v": "attention.query_key_value", "mixer.o": "attention.dense",
     "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h"},
    ffn=MlpSpec, norm=NormSpec("layer"), groups=lambda mixer: mixer.heads,
    ignored="attention_dropout classifier_dropout num_key_value_heads rotary_pct rotary_emb_base",
    buffers=["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"],
)  # fmt: skip
KEYS = {key: value for key, value in LAYER_KEYS.items() if "_kv" not in key}
GGUF.add("gpt_neox", Gguf(
    "gptneox",
    {**KEYS, "use_parallel_residual": "use_parallel_residual"},
    fixed={"hidden_act": "gelu", "tie_word_embeddings": False}, present={"attention_bias": "blk.0.attn_output.bias"},
    fused={"mixer.q mixer.k mixer.v": "attn_qkv"},
    partial=True,
))  # fmt: skip

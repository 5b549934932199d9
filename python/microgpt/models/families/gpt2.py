"""GPT-2 (Radford et al. 2019), as transformers' GPT2LMHeadModel stores it: Conv1D weights are (in, out)."""

from __future__ import annotations

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from .declare import Act, Bool, Derived, Float, Key, Only, all_heads, declare, ends, head_width, shape
from .gguf import GGUF, Gguf

# Training-time or head settings of other tasks; attention-probability dropout is not implemented and stays out.
IGNORED = """attn_pdrop summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    n_ctx reorder_and_upcast_attn gradient_checkpointing layer_norm_eps"""
ACTS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
NAMES = {
    "embed": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f", "head": "lm_head.weight",
    "blocks": "transformer.h", "mixer_norm": "ln_1", "mixer.q mixer.k mixer.v": "attn.c_attn", "mixer.o": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj",
}  # fmt: skip

declare(
    "gpt2", "GPT2LMHeadModel",
    [
        *shape(50257, 768, 12, 12, 1024, hidden_size="n_embd", num_hidden_layers="n_layer",
               num_attention_heads="n_head", max_position_embeddings="n_positions"),
        Key("n_inner", "ffn.width", lambda draft: 4 * draft.get("width")),
        Derived("mixer.head_dim", head_width), Derived("mixer.kv_heads", all_heads),
        Act("activation_function", "gelu_new", ACTS),
        Float("layer_norm_epsilon", "norm.eps", 1e-5),
        Bool("scale_attn_weights", "mixer.scale", True, values={True: None, False: 1.0}),
        Only("scale_attn_by_inverse_layer_idx", False),
        *ends(True, block_default=0.1, embed_default=0.1),
    ],
    NAMES, ffn=MlpSpec, norm=NormSpec("layer"), model={"learned_positions": True}, transposed=True, ignored=IGNORED,
    buffers=["attn.bias", "attn.masked_bias"],
)  # fmt: skip

GGUF.add(
    "gpt2",
    Gguf(
        "gpt2",
        keys={
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        fixed={"activation_function": "gelu_new", "scale_attn_weights": True},
        assumed={"resid_pdrop": 0.0, "embd_pdrop": 0.0},
        fused={"mixer.q mixer.k mixer.v": "attn_qkv"},
        rope=False,
    ),
)

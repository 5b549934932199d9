"""BLOOM (BigScience 2022, arXiv:2211.05100): ALiBi, a norm after the embeddings, q, k, v fused head by head."""

from __future__ import annotations

from typing import Any

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from .declare import Derived, Float, Only, all_heads, declare, ends, head_width, shape
from .gguf import GGUF, Gguf

declare(
    "bloom", "BloomForCausalLM",
    [*shape(250880, 64, 2, 8, 2048, num_hidden_layers="n_layer", num_attention_heads="n_head",
            max_position_embeddings="seq_length"),
     Derived("mixer.head_dim", head_width), Derived("mixer.kv_heads", all_heads),
     Derived("ffn.width", lambda draft: 4 * draft.get("width")), Float("layer_norm_epsilon", "norm.eps", 1e-5),
     Only("apply_residual_connection_post_layernorm", False), *ends(True, block="hidden_dropout")],
    {"embed": "transformer.word_embeddings", "embed_norm": "transformer.word_embeddings_layernorm",
     "norm": "transformer.ln_f", "head": "lm_head.weight", "blocks": "transformer.h", "mixer_norm": "input_layernorm",
     "mixer.q mixer.k mixer.v": "self_attention.query_key_value", "mixer.o": "self_attention.dense",
     "ffn_norm": "post_attention_layernorm", "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h"},
    ffn=MlpSpec, norm=NormSpec("layer"), fixed={"mixer.alibi": True}, model={"embed_norm": True},
    groups=lambda mixer: mixer.heads,
    older={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    ignored="""attention_dropout pretraining_tp slow_but_exact attention_softmax_in_fp32 bias_dropout_fusion
        masked_softmax_fusion n_inner offset_alibi skip_bias_add skip_bias_add_qkv unk_token_id""",
)  # fmt: skip


def inner(values: dict[str, Any]) -> None:
    """GGUF says the hidden units; config.json has no key of them."""
    values["n_inner"] = 4 * values["hidden_size"]


GGUF.add("bloom", Gguf(
    "bloom",
    {"context_length": "seq_length", "embedding_length": "hidden_size", "block_count": "n_layer",
     "feed_forward_length": "n_inner", "attention.head_count": "n_head",
     "attention.layer_norm_epsilon": "layer_norm_epsilon"},
    fused={"mixer.q mixer.k mixer.v": "attn_qkv"}, rope=False, write=inner,
))  # fmt: skip

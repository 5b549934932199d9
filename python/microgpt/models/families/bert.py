"""BERT (Devlin et al. 2018, arXiv:1810.04805), the encoder alone: norms after each sum, three embeddings, a pooler."""

from __future__ import annotations

from typing import Any

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import Derived, Draft, Float, Key, Only, Part, all_heads, declare, ends, ffn, head_width, shape
from .gguf import ENCODER, ENCODER_KEYS, GGUF, Gguf


class Pooler(Part):
    """A layer over the first token, which GGUF files have not; transformers has no key for it and keeps ours."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        draft.set("pooler", get.get("add_pooling_layer", bool, True))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out |= {} if config.pooler else {"add_pooling_layer": False}


declare(
    "bert", "BertModel",
    [*shape(30522, 768, 12, 12, 512), Derived("mixer.kv_heads", all_heads), Derived("mixer.head_dim", head_width),
     *ffn(3072, "gelu"), Float("layer_norm_eps", "norm.eps", 1e-12), Key("type_vocab_size", "token_types", 2),
     Only("position_embedding_type", ("absolute", None)), Only("is_decoder", False), Pooler(),
     *ends(True, block="hidden_dropout_prob", block_default=0.1)[:3]],
    {"embed": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
     "token_types": "embeddings.token_type_embeddings", "embed_norm": "embeddings.LayerNorm", "blocks": "encoder.layer",
     "mixer.q": "attention.self.query", "mixer.k": "attention.self.key", "mixer.v": "attention.self.value",
     "mixer.o": "attention.output.dense", "mixer_norm": "attention.output.LayerNorm", "ffn.up": "intermediate.dense",
     "ffn.down": "output.dense", "ffn_norm": "output.LayerNorm", "pooler": "pooler.dense"},
    ffn=MlpSpec, norm=NormSpec("layer", 1e-12), fixed={"mixer.causal": False, "block.placement": "post"},
    model={"learned_positions": True, "embed_norm": True, "final_norm": None},
    ignored="attention_probs_dropout_prob classifier_dropout gradient_checkpointing embd_pdrop",
    finish=lambda draft: draft.set("embed_dropout", draft.get("block.dropout")), loose=["embeddings.position_ids"],
)  # fmt: skip
GGUF.add("bert", Gguf(
    "bert", ENCODER_KEYS, fixed={"hidden_act": "gelu", "add_pooling_layer": False}, rope=False, stated=ENCODER,
    rows={"type_vocab_size": ("token_types.weight", "tokenizer.ggml.token_type_count")},
    names={"mixer_norm": "attn_output_norm", "ffn_norm": "layer_output_norm"},
))  # fmt: skip

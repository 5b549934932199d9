"""MPT (MosaicML 2023): ALiBi, no biases, LayerNorm without bias."""

from __future__ import annotations

from typing import Any

from ...nn.checks import require
from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import Derived, Draft, Float, Only, Part, all_heads, declare, ends, head_width, shape
from .gguf import GGUF, Gguf
from .llama import NO_BIAS


class AttentionConfig(Part):
    """attn_config: a scale of scores and a bound of q, k, v."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        inner = Reader(get.get("attn_config", (dict, type(None)), None) or {}, f"{get.where}: attn_config")
        for key, wanted in (("alibi", True), ("alibi_bias_max", 8), ("prefix_lm", False), ("qk_ln", False)):
            found = inner.get(key, object, wanted)
            require(found == wanted, f"{inner.where}.{key}", wanted, found)
        draft.set("mixer.clip", inner.get("clip_qkv", (float, int, type(None)), None))
        draft.set("mixer.scale", inner.get("softmax_scale", (float, int, type(None)), None))
        draft.set("block.dropout", inner.get("attn_pdrop", (float, int), 0.0))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        block = config.blocks[0]
        out["attn_config"] = {"clip_qkv": block.mixer.clip, "softmax_scale": block.mixer.scale,
                              "attn_pdrop": block.dropout or 0, "alibi": True}  # fmt: skip


declare(
    "mpt", "MptForCausalLM",
    [*shape(50368, 2048, 24, 16, 2048, hidden_size="d_model", num_hidden_layers="n_layers",
            num_attention_heads="n_heads", max_position_embeddings="max_seq_len"),
     Derived("mixer.head_dim", head_width), Derived("mixer.kv_heads", all_heads), Only("no_bias", True),
     Derived("ffn.width", lambda draft: 4 * draft.get("width")),  # whatever expansion_ratio says, as in transformers
     Float("layer_norm_epsilon", "norm.eps", 1e-5), AttentionConfig(), *ends(True)[:2],
     Float("emb_pdrop", "embed_dropout", 0.0)],
    {"embed": "transformer.wte", "norm": "transformer.norm_f", "head": "lm_head.weight", "blocks": "transformer.blocks",
     "mixer_norm": "norm_1", "mixer.q mixer.k mixer.v": "attn.Wqkv", "mixer.o": "attn.out_proj", "ffn_norm": "norm_2",
     "ffn.up": "ffn.up_proj", "ffn.down": "ffn.down_proj"},
    ffn=MlpSpec, norm=NormSpec("layer", bias=False),
    fixed={**NO_BIAS, "ffn.bias": False, "ffn.act": "gelu", "mixer.alibi": True},
    ignored="""expansion_ratio resid_pdrop learned_pos_emb init_device logit_scale embedding_fraction norm_type verbose
        use_cache""",
)  # fmt: skip


def read(values: dict[str, Any]) -> None:
    """attn_config, which GGUF has key by key."""
    bias = values.pop("max_alibi_bias", 0)
    values.pop("d_inner", None)
    require(bias == 8, "mpt.attention.max_alibi_bias", 8, bias)
    values["attn_config"] = {"clip_qkv": values.pop("clip_qkv", 0.0) or None}


def write(values: dict[str, Any]) -> None:
    """The inverse; hidden units have no key of their own."""
    values |= {"clip_qkv": values["attn_config"]["clip_qkv"], "max_alibi_bias": 8.0, "d_inner": 4 * values["d_model"]}


GGUF.add("mpt", Gguf(
    "mpt",
    {"context_length": "max_seq_len", "embedding_length": "d_model", "block_count": "n_layers",
     "feed_forward_length": "d_inner", "attention.head_count": "n_heads",
     "attention.layer_norm_epsilon": "layer_norm_epsilon", "attention.clamp_kqv": "clip_qkv",
     "attention.max_alibi_bias": "max_alibi_bias"},
    fused={"mixer.q mixer.k mixer.v": "attn_qkv"}, rope=False, read=read, write=write,
))  # fmt: skip

"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867): 7B (one key/value head, one norm), 40B (groups, two norms), RW
(ALiBi, one layer after the other). Fused q, k, v lie group by group in all of them."""

from __future__ import annotations

from typing import Any

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import Act, Bool, Derived, Draft, Float, Key, Part, declare, ends, head_width, shape
from .gguf import GGUF, LAYER_KEYS, Gguf
from .rope import Rope


class Form(Part):
    """The flags that say which of the three it is."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        new, parallel = get.get("new_decoder_architecture", bool, False), get.get("parallel_attn", bool, True)
        heads = draft.get("mixer.heads")
        if new:
            kv = get.get("num_kv_heads", (int, type(None)), None) or heads
        else:
            kv = 1 if get.get("multi_query", bool, True) else heads
        norms = get.get("num_ln_in_parallel_attn", (int, type(None)), None) or (2 if new else 1)
        draft.set("mixer.kv_heads", kv)
        draft.set("block.parallel", new or parallel)
        draft.set("block.shared_norm", (new or parallel) and not (new and norms == 2))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        block = config.blocks[0]
        heads, kv = block.mixer.heads, block.mixer.kv_heads
        new = (block.parallel and not block.shared_norm) or kv not in (1, heads)
        norms = 1 if block.shared_norm or not new else 2
        out |= {"new_decoder_architecture": new, "parallel_attn": block.parallel, "num_kv_heads": kv,
                "multi_query": kv == 1, "num_ln_in_parallel_attn": norms}  # fmt: skip


def alibi_replaces_rope(draft: Draft) -> None:
    """Distances are added before the scores are scaled, unlike BLOOM's."""
    if draft.get("mixer.alibi"):
        draft.set("mixer.rope", None)
        draft.set("mixer.alibi_scale", draft.get("mixer.head_dim") ** -0.5)


class FalconRope(Rope):
    """No rotary positions beside ALiBi."""

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        if not config.blocks[0].mixer.alibi:
            super().write(config, out)


def names(config: ModelConfig) -> dict[str, str]:
    """Weight names, which tell two norms side by side from two in turn."""
    two = config.blocks[0].parallel and not config.blocks[0].shared_norm
    return {
        "embed": "transformer.word_embeddings", "norm": "transformer.ln_f", "head": "lm_head.weight",
        "blocks": "transformer.h", "mixer_norm": "ln_attn" if two else "input_layernorm",
        "ffn_norm": "ln_mlp" if two else "post_attention_layernorm",
        "mixer.q mixer.k mixer.v": "self_attention.query_key_value", "mixer.o": "self_attention.dense",
        "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h",
    }  # fmt: skip


declare(
    "falcon", "FalconForCausalLM",
    [*shape(65024, 4544, 32, 71, 2048), Form(), Derived("mixer.head_dim", head_width),
     Key("ffn_hidden_size", "ffn.width", lambda draft: 4 * draft.get("width")), Act("activation", "gelu"),
     Float("layer_norm_epsilon", "norm.eps", 1e-5), Bool("bias", "mixer.bias mixer.out_bias ffn.bias"),
     Bool("alibi", "mixer.alibi"), FalconRope(), *ends(True, block="hidden_dropout")],
    names, ffn=MlpSpec, norm=NormSpec("layer"), groups=lambda mixer: mixer.kv_heads, finish=alibi_replaces_rope,
    older={"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_head_kv": "num_kv_heads"},
    ignored="attention_dropout num_key_value_heads intermediate_size num_kv_heads multi_query",
)  # fmt: skip


def read(values: dict[str, Any]) -> None:
    """Which of the three it is: two norms side by side have two tensors."""
    two, kv = values.pop("two_norms"), values.get("num_kv_heads", 1)
    values["new_decoder_architecture"] = two or kv not in (1, values["num_attention_heads"])
    values["multi_query"], values["num_ln_in_parallel_attn"] = kv == 1, 2 if two else 1


TWO = {"mixer_norm": "attn_norm_2", "ffn_norm": "attn_norm"}
KEYS = {"attention.head_count_kv": "num_kv_heads", "feed_forward_length": "ffn_hidden_size",
        "attention.layer_norm_epsilon": "layer_norm_epsilon"}  # fmt: skip
GGUF.add("falcon", Gguf(
    "falcon", {**LAYER_KEYS, **KEYS},
    fixed={"activation": "gelu", "bias": False, "alibi": False, "parallel_attn": True},
    present={"two_norms": "blk.0.attn_norm_2.weight"}, fused={"mixer.q mixer.k mixer.v": "attn_qkv"}, read=read,
    variant=lambda config: {} if config.blocks[0].shared_norm else TWO,
))  # fmt: skip

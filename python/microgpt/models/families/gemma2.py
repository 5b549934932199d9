"""Gemma 2 (Gemma team 2024, arXiv:2408.00118): norms around both layers, soft caps, every second layer a window."""

from __future__ import annotations

from typing import Any

from .declare import ATTENTION_BIAS, Act, Float, Key, declare, ends, heads, shape
from .gemma import ACTS, CAUSAL, NORM, scale_embeddings
from .gguf import GGUF, LLAMA_KEYS, WINDOW, Gguf
from .llama import EPS, NAMES
from .rope import LayerTypes, Rope, every

SANDWICH = {
    **NAMES, "mixer_post_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}  # fmt: skip
SCALE = Key("query_pre_attn_scalar", "mixer.scale", 256, to=lambda n: n**-0.5, back=lambda s: round(s**-2))


def caps(attention: float | None, logits: float | None) -> list[Key]:
    """Soft caps on scores and on logits."""
    return [Float("attn_logit_softcapping", "mixer.soft_cap", attention, nullable=True),
            Float("final_logit_softcapping", "logit_soft_cap", logits, nullable=True)]  # fmt: skip


declare(
    "gemma2", "Gemma2ForCausalLM",
    [*shape(256000, 2304, 26, 8, 8192), *heads(4, 256), Key("intermediate_size", "ffn.width", 9216),
     Act("hidden_activation", "gelu_pytorch_tanh", ACTS), EPS, ATTENTION_BIAS,
     CAUSAL, SCALE, *caps(50.0, 30.0), LayerTypes(every(2)), Rope(), *ends(True)],
    SANDWICH, norm=NORM, fixed={"block.placement": "sandwich"},
    ignored="attention_dropout hidden_act cache_implementation", finish=scale_embeddings,
)  # fmt: skip


def scale_of(layers: int) -> Any:
    """What of GGUF follows from the number of layers: only the 27B models scale scores by the width of a head that
    would share the model's width, all others by their heads' own."""

    def read(values: dict[str, Any]) -> None:
        large = values["num_hidden_layers"] == layers
        own = values.get("head_dim", values["hidden_size"] // values["num_attention_heads"])
        values["query_pre_attn_scalar"] = values["hidden_size"] // values["num_attention_heads"] if large else own

    return read


CAPS = {name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")}
GGUF.add("gemma2", Gguf(
    "gemma2", {**LLAMA_KEYS, **WINDOW, **CAPS}, read=scale_of(46), plus_one=True,
    fixed={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True},
    partial=True,
))  # fmt: skip

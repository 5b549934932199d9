"""Gemma 3 (Gemma team 2025, arXiv:2503.19786), text: five windows to a full layer, rotary positions of each kind."""

from __future__ import annotations

from typing import Any

from .declare import ATTENTION_BIAS, SLIDING, Act, Key, declare, ends, heads, shape
from .gemma import ACTS, CAUSAL, NORM, scale_embeddings
from .gemma2 import SANDWICH, SCALE, caps, scale_of
from .gguf import GGUF, LLAMA_KEYS, WINDOW, Gguf
from .llama import EPS, QK_NORM
from .rope import LayeredRope, LayerTypes, every

declare(
    "gemma3_text", "Gemma3ForCausalLM",
    [*shape(262208, 2304, 26, 8, 131072), *heads(4, 256), Key("intermediate_size", "ffn.width", 9216),
     Act("hidden_activation", "gelu_pytorch_tanh", ACTS), EPS, ATTENTION_BIAS,
     CAUSAL, SCALE, *caps(None, None), LayerTypes(every("sliding_window_pattern", 6)), LayeredRope(1e6, 1e4),
     *ends(True)],
    {**SANDWICH, **QK_NORM}, norm=NORM, fixed={"block.placement": "sandwich", "mixer.qk_norm": NORM},
    ignored="attention_dropout hidden_act cache_implementation sliding_window_pattern _sliding_window_pattern",
    finish=scale_embeddings,
)  # fmt: skip


def local_theta(values: dict[str, Any]) -> None:
    """The layers with a window have a theta of their own."""
    values["rope_local_base_freq"] = values["rope_parameters"][SLIDING]["rope_theta"]


GGUF.add("gemma3_text", Gguf(
    "gemma3",
    {**LLAMA_KEYS, **WINDOW, "rope.freq_base_swa": "rope_local_base_freq",
     "final_logit_softcapping": "final_logit_softcapping"},
    read=scale_of(62), write=local_theta, plus_one=True,
    fixed={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
    partial=True,
))  # fmt: skip

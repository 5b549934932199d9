"""OLMo (Groeneveld et al. 2024, arXiv:2402.00838): Llama with LayerNorm that learns nothing, q, k, v bounded."""

from __future__ import annotations

from typing import Any

from ...nn.checks import require
from ...nn.spec import NormSpec
from .declare import ATTENTION_BIAS, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, LAYER_KEYS, Gguf
from .llama import BUFFERS, NAMES
from .rope import Rope

declare(
    "olmo", "OlmoForCausalLM",
    [*shape(50304, 4096, 32, 32, 2048), *heads(), *ffn(11008), ATTENTION_BIAS, Float("clip_qkv", "mixer.clip"), Rope(),
     *ends(False)],
    NAMES, norm=NormSpec("layer", weight=False, bias=False), ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip


def with_eps(values: dict[str, Any]) -> None:
    """Its norms' epsilon is no setting in config.json."""
    values["layer_norm_eps"] = 1e-5


def no_eps(values: dict[str, Any]) -> None:
    """The inverse."""
    eps = values.pop("layer_norm_eps", 1e-5)
    require(eps == 1e-5, "olmo.attention.layer_norm_epsilon", 1e-5, eps)


GGUF.add("olmo", Gguf(
    "olmo", {**LAYER_KEYS, "attention.clamp_kqv": "clip_qkv"}, fixed={"hidden_act": "silu", "attention_bias": False},
    interleaved=True, read=no_eps, write=with_eps,
))  # fmt: skip

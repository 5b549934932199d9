"""Gemma (Gemma team 2024, arXiv:2403.08295): scaled embeddings, norms by 1 + weight, GeGLU."""

from __future__ import annotations

from ...nn.spec import NormSpec
from .declare import ATTENTION_BIAS, Act, Draft, Key, Only, declare, ends, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BUFFERS, EPS, NAMES
from .rope import Rope

NORM = NormSpec("rms", 1e-6, bias=False, plus_one=True)
ACTS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"}  # "gelu" of early files means its tanh form
CAUSAL = Only("use_bidirectional_attention", (False, None))


def scale_embeddings(draft: Draft) -> None:
    """Embeddings are multiplied by sqrt(width)."""
    draft.set("embed_scale", draft.get("width") ** 0.5)


declare(
    "gemma", "GemmaForCausalLM",
    [*shape(256000, 3072, 28, 16, 8192), *heads(16, 256), Key("intermediate_size", "ffn.width", 24576),
     Act("hidden_act", "gelu_pytorch_tanh", ACTS), EPS, ATTENTION_BIAS, CAUSAL,
     Rope(), *ends(True)],
    NAMES, norm=NORM, ignored="attention_dropout hidden_activation", buffers=BUFFERS, finish=scale_embeddings,
)  # fmt: skip
GGUF.add("gemma", Gguf(
    "gemma", LLAMA_KEYS,
    fixed={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True},
    plus_one=True,
    partial=True,
))  # fmt: skip

"""Ministral 3: Mistral with YaRN and queries that grow with the position (as in Llama 4)."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError
from ..config import ModelConfig
from .common import Reader
from .declare import Draft, Float, Part, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BUFFERS, NAMES, NO_BIAS
from .rope import Rope, Window

BETA = "llama_4_scaling_beta"


class Temperature(Part):
    """The growth of queries, which stands among the rotary parameters."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        beta = (get.config.get("rope_parameters") or {}).get(BETA)
        scaling = draft.get("mixer.rope").scaling
        if beta is not None:
            if scaling is None:
                raise ConfigError(f"{get.where}: {BETA} needs original_max_position_embeddings")
            draft.set("mixer.temperature", (beta, scaling.original))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        found = config.blocks[0].mixer.temperature
        if found is not None:
            out["rope_parameters"][BETA] = found[0]


declare(
    "ministral3", "Ministral3ForCausalLM",
    [*shape(131072, 4096, 34, 32, 262144), *heads(8, 128), *ffn(14336), Float("rms_norm_eps", "norm.eps", 1e-5),
     Window(), Rope(1e6, known=(BETA,)),
     Temperature(), *ends(False)],
    NAMES, fixed=NO_BIAS, ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip


def read(values: dict[str, Any]) -> None:
    """The growth of queries, which config.json has among the rotary parameters."""
    beta = values.pop("temperature", None)
    if beta:
        values["rope_parameters"][BETA] = beta


def write(values: dict[str, Any]) -> None:
    """The inverse."""
    values["temperature"] = values["rope_parameters"].get(BETA)


GGUF.add("ministral3", Gguf(
    "mistral3", {**LLAMA_KEYS, "attention.temperature_scale": "temperature"},
    fixed={"hidden_act": "silu", "sliding_window": None}, interleaved=True, read=read, write=write,
))  # fmt: skip

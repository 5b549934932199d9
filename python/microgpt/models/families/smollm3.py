"""SmolLM3 (Hugging Face 2025): Llama whose every fourth layer has no positions."""

from __future__ import annotations

from typing import Any

from ...nn.checks import require
from ..config import ModelConfig
from .common import Reader
from .declare import Draft, Part, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .llama import BIAS, EPS, NAMES
from .rope import LayerTypes, Rope


class RopeLayers(Part):
    """no_rope_layers: 1 where a layer has rotary positions (sic), 0 where it has not."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        turns, count = get.get("no_rope_layers", (list, type(None)), None), len(draft.blocks)
        period = get.get("no_rope_layer_interval", int, 4)
        if turns is None:
            turns = [int(period < 1 or (i + 1) % period != 0) for i in range(count)]
        require(len(turns) == count, f"{get.where}: no_rope_layers", f"{count} numbers, one a layer", len(turns))
        for block, turn in zip(draft.blocks, turns, strict=True):
            if not turn:
                block["mixer.rope"] = None

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["no_rope_layers"] = [int(block.mixer.rope is not None) for block in config.blocks]


declare(
    "smollm3", "SmolLM3ForCausalLM",
    [*shape(128256, 2048, 36, 16, 32768), *heads(4), *ffn(11008), EPS, *BIAS,
     LayerTypes(lambda i, get: (i + 1) % 4 == 0, None, "use_sliding_window"),
     Rope(2000000.0), RopeLayers(), *ends(True)],
    NAMES, ignored="attention_dropout no_rope_layer_interval max_window_layers",
)  # fmt: skip
GGUF.add("smollm3", Gguf(
    "smollm3", LLAMA_KEYS, interleaved=True,
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
))  # fmt: skip

"""EXAONE 4.0 (LG AI Research 2025, arXiv:2507.11407): norms on what is added, full layers without positions."""

from __future__ import annotations

from typing import Any

from .declare import RMS, Draft, Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, QK_AFTER, WINDOW, Gguf
from .llama import NO_BIAS
from .olmo2 import AFTER
from .rope import LayerTypes, Rope, every, full_layers_without_positions


def finish(draft: Draft) -> None:
    """A model without windows has positions everywhere."""
    if any(block["mixer.window"] is not None for block in draft.blocks):
        full_layers_without_positions(draft)


declare(
    "exaone4", "Exaone4ForCausalLM",
    [*shape(102400, 4096, 32, 32, 2048), *heads(32), *ffn(16384),
     Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5),
     LayerTypes(every("sliding_window_pattern", 4)), Rope(), *ends(False)],
    AFTER, fixed={**NO_BIAS, "block.placement": "res_post", "mixer.qk_norm": RMS}, finish=finish,
    ignored="attention_dropout sliding_window_pattern cache_implementation",
)  # fmt: skip


def windows(values: dict[str, Any]) -> None:
    """In GGUF the models of 64 layers have windows, and no others."""
    window = values.get("sliding_window", 4096)
    values["sliding_window"] = window if values["num_hidden_layers"] == 64 else None


GGUF.add("exaone4", Gguf(
    "exaone4", {**NO_WIDTH, **WINDOW}, fixed={"hidden_act": "silu"}, names=QK_AFTER, read=windows,
))  # fmt: skip

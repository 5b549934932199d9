"""RecurrentGemma (Griffin; De et al. 2024, arXiv:2402.19427): recurrent blocks, and local attention between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...nn.checks import require
from ...nn.spec import NormSpec
from ...tensors import numpy_dtype
from ..config import ModelConfig
from .common import Reader
from .declare import Act, Bool, Derived, Draft, Float, Key, Part, all_heads, declare, head_width, look
from .rope import Rope

KINDS = {"recurrent": "rglru", "attention": "attention"}


@dataclass(frozen=True)
class BlockTypes(Part):
    """block_types: a list that is repeated until there is a name for each block."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        names = get.get("block_types", (list, tuple, type(None)), None) or ["recurrent", "recurrent", "attention"]
        where = f"{get.where}: block_types"
        for i, block in enumerate(draft.blocks):
            name = names[i % len(names)]
            require(isinstance(name, str) and name in KINDS, where, " or ".join(KINDS), name)
            block["mixer.type"] = KINDS[name]

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        names = {kind: name for name, kind in KINDS.items()}
        out["block_types"] = [names[block.mixer.kind] for block in config.blocks]


@dataclass(frozen=True)
class Halved(Part):
    """intermediate_size: twice the width of the feed-forward."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        size = get.get("intermediate_size", int, 3 * draft.get("width"))
        require(size % 2 == 0, f"{get.where}: intermediate_size", "an even number", size)
        draft.set("ffn.width", size // 2)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["intermediate_size"] = 2 * int(look(config, "ffn.width"))


@dataclass(frozen=True)
class Window(Part):
    """attention_window_size of the attention blocks; the number of positions is a limit of ours."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        draft.set("mixer.window", get.get("attention_window_size", int, 2048))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        try:
            out["attention_window_size"] = look(config, "mixer.window")
        except LookupError:
            return


class LocalRope(Rope):
    """Rotary positions of the attention blocks, if there are some."""

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        if any(block.mixer.kind == "attention" for block in config.blocks):
            super().write(config, out)


def _scale(draft: Draft) -> float:
    """The square root of the width, rounded to bfloat16, as the models were trained."""
    return float(np.array(draft.get("width") ** 0.5).astype(numpy_dtype("bfloat16")))


def _no_cap(cap: float) -> float:
    if cap <= 0:
        raise ConfigError(f"config.json: logits_soft_cap: expected a positive number, got {cap}")
    return cap


def _width(draft: Draft) -> int:
    return int(draft.get("width"))


ATTENTION = {f"attention.{each}": f"temporal_block.{each}_proj" for each in "qkvo"}
RGLRU = {
    "rglru.x": "temporal_block.linear_x", "rglru.y": "temporal_block.linear_y", "rglru.o": "temporal_block.linear_out",
    "rglru.conv": "temporal_block.conv_1d", "rglru.decay": "temporal_block.rg_lru.recurrent_param",
    **{f"rglru.{gate}.{kind}": f"temporal_block.rg_lru.{gate}_gate_{kind}"
       for gate in ("input", "recurrent") for kind in ("weight", "bias")},
}  # fmt: skip

declare(
    "recurrent_gemma", "RecurrentGemmaForCausalLM",
    [Key("num_hidden_layers", "layers", 26), Key("vocab_size", "vocab_size", 256000), Key("hidden_size", "width", 2560),
     Key("num_attention_heads", "mixer.heads rglru.heads", 10), Key("num_attention_heads", "rglru.heads", 10),
     Key("num_key_value_heads", "mixer.kv_heads", all_heads),
     Derived("mixer.head_dim", head_width), Key("max_position_embeddings", "max_positions", 8192, quiet=True),
     BlockTypes(), Window(), LocalRope(share=0.5), Bool("attention_bias", "mixer.bias"),
     Key("lru_width", "rglru.inner", _width), Key("conv1d_width", "rglru.taps", 4),
     Halved(), Act("hidden_activation", "gelu_pytorch_tanh"), Derived("rglru.act", lambda draft: draft.get("ffn.act")),
     Float("rms_norm_eps", "norm.eps", 1e-6), Float("logits_soft_cap", "logit_soft_cap", 30.0, to=_no_cap),
     Derived("embed_scale", _scale), Bool("tie_word_embeddings", "tie_embeddings", True),
     Float("initializer_range", "init_std", 0.02)],
    {"embed": "model.embed_tokens", "norm": "model.final_norm", "head": "lm_head.weight", "blocks": "model.layers",
     "mixer_norm": "temporal_pre_norm", "ffn_norm": "channel_pre_norm", **ATTENTION, **RGLRU,
     "ffn.gate": "mlp_block.gate_proj", "ffn.up": "mlp_block.up_proj", "ffn.down": "mlp_block.down_proj"},
    norm=NormSpec("rms", 1e-6, bias=False, plus_one=True),
    fixed={"mixer.out_bias": True, "ffn.bias": True},
    ignored="attention_dropout w_init_variance_scale final_w_init_variance_scale hidden_act head_dim layer_types",
    buffers=["temporal_block.rotary_emb.inv_freq"], loose=["model.normalizer"],
)  # fmt: skip

"""LFM2 (Liquid AI 2025): short convolutions, and attention with normed queries and keys in some layers."""

from __future__ import annotations

from typing import Any

from ...nn.checks import require
from ..config import ModelConfig
from .common import Reader
from .declare import FULL, RMS, Bool, Derived, Draft, Float, Key, Part, declare, ends, heads, shape
from .gguf import GGUF, NO_WIDTH, Gguf, Metadata
from .hybrid import CONV_PACKING, read_kv, write_kv
from .llama import BODY, NO_BIAS
from .rope import Rope

CONV = "conv"


class Kinds(Part):
    """layer_types: which layers convolve. Without it full_attn_idxs are those that attend, all by default."""

    def __init__(self, attends: Any = lambda i: True) -> None:
        self.attends = attends

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        types = get.get("layer_types", (list, type(None)), None)
        full = get.get("full_attn_idxs", (list, type(None)), None)
        if types is None:
            attends = self.attends if full is None else full.__contains__
            types = [FULL if attends(i) else CONV for i in range(len(draft.blocks))]
        where = f"{get.where}: layer_types"
        require(len(types) == len(draft.blocks), where, f"{len(draft.blocks)} names, one a layer", len(types))
        for kind, block in zip(types, draft.blocks, strict=True):
            require(kind in (FULL, CONV), where, f"{FULL} or {CONV}", kind)
            block["mixer.type"] = "attention" if kind == FULL else "short_conv"

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["layer_types"] = [FULL if block.mixer.kind == "attention" else CONV for block in config.blocks]


class AdjustedWidth(Part):
    """intermediate_size, of which two thirds are meant where block_auto_adjust_ff_dim is true, rounded up."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        width = get.get("block_ff_dim", int, get.get("intermediate_size", int, 12288))
        times = get.get("block_ffn_dim_multiplier", (float, int, type(None)), 1.0)
        multiple = get.get("block_multiple_of", int, 256)
        if get.get("block_auto_adjust_ff_dim", bool, True):
            width = int(2 * width / 3)
            if times is not None:
                width = -(-int(times * width) // multiple) * multiple
        draft.set("ffn.width", width)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["intermediate_size"], out["block_auto_adjust_ff_dim"] = config.blocks[0].ffn.width, False


CONVOLUTION = [
    Key("conv_L_cache", "short_conv.taps", 3), Bool("conv_bias", "short_conv.bias"),
    Derived("short_conv.width", lambda draft: draft.get("width")),
]  # fmt: skip
EPS = Float("norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5)
FIXED = {**NO_BIAS, "mixer.qk_norm": RMS}
NAMES = {
    **BODY, "norm": "model.embedding_norm", "mixer_norm": "operator_norm", "ffn_norm": "ffn_norm",
    "mixer.o": "self_attn.out_proj", "mixer.q_norm": "self_attn.q_layernorm", "mixer.k_norm": "self_attn.k_layernorm",
    "short_conv.gate_in short_conv.gate_out short_conv.inner": "conv.in_proj", "short_conv.out": "conv.out_proj",
    "short_conv.conv": "conv.conv",
    "glu.gate": "feed_forward.w1", "glu.up": "feed_forward.w3", "glu.down": "feed_forward.w2",
}  # fmt: skip
OLDER = {"tie_embedding": "tie_word_embeddings"}


def mixed(layers: int) -> list[str]:
    """Attention in every third layer, as LFM2's models have it, and at least in the last."""
    return [FULL if i % 3 == 2 or i + 1 == layers else CONV for i in range(layers)]


declare(
    "lfm2", "Lfm2ForCausalLM",
    [*shape(65536, 2560, 32, 32, 128000), *heads(8), AdjustedWidth(), *CONVOLUTION, EPS, Kinds(), Rope(1e6),
     *ends(True)],
    NAMES, fixed=FIXED, older=OLDER,
    ignored="conv_dim conv_dim_out conv_use_xavier_init block_dim block_mlp_init_scale block_norm_eps block_use_swiglu "
    "block_out_init_scale block_use_xavier_init num_heads theta use_pos_enc",
    sized=lambda width, layers, heads: {"intermediate_size": -(-8 * width // 24) * 8, "layer_types": mixed(layers),
                                        "block_auto_adjust_ff_dim": False},
)  # fmt: skip


def read_gguf(values: Metadata) -> None:
    """Which layers attend: those with key/value heads."""
    values["layer_types"] = [FULL if each else CONV for each in read_kv(values)]


def write_gguf(values: dict[str, Any]) -> None:
    """The inverse."""
    write_kv(values, [each == FULL for each in values["layer_types"]])


GGUF_TABLE = GGUF.add("lfm2", Gguf(
    "lfm2",
    {**{key: theirs for key, theirs in NO_WIDTH.items() if "rms" not in key}, "attention.head_count_kv": "kv",
     "attention.layer_norm_rms_epsilon": "norm_eps", "shortconv.l_cache": "conv_L_cache"},
    fixed={"conv_bias": False, "block_auto_adjust_ff_dim": False},
    names={"norm": "token_embd_norm", "mixer.conv": "shortconv.conv", "mixer.out": "shortconv.out_proj"},
    fused={"mixer.gate_in mixer.gate_out mixer.inner": "shortconv.in_proj"},
    packings={"mixer.conv.weight": CONV_PACKING}, read=read_gguf, write=write_gguf,
))  # fmt: skip

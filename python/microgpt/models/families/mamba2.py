"""Mamba-2 (Dao & Gu 2024, arXiv:2405.21060): blocks of the state-space layer alone."""

from __future__ import annotations

from typing import Any

from ...nn.mixers.mamba2 import Mamba2Spec
from ...nn.spec import NormSpec
from .declare import Bool, Float, Key, Only, declare
from .gguf import GGUF, Gguf, Metadata
from .hybrid import EXTRA, MAMBA2_GGUF, Expand, Limits, gguf_fused, gguf_packings, mamba2_names

declare(
    "mamba2", "Mamba2ForCausalLM",
    [Key("num_hidden_layers", "layers", 64), Key("vocab_size", "vocab_size", 32768), Key("hidden_size", "width", 4096),
     Key("num_heads", "mixer.heads", 128), Key("head_dim", "mixer.head_dim", 64), Key("state_size", "mixer.state", 128),
     Key("n_groups", "mixer.groups", 8), Key("conv_kernel", "mixer.taps", 4), Expand("mixer", "expand"),
     Bool("use_bias", "mixer.bias"), Bool("use_conv_bias", "mixer.conv_bias", True), Limits("mixer.limits"),
     Float("layer_norm_epsilon", "norm.eps mixer.norm.eps", 1e-5), Only("hidden_act", "silu"),
     # It has no positions: the number is a limit of ours.
     Key("max_position_embeddings", "max_positions", 2**20, quiet=True),
     Bool("tie_word_embeddings", "tie_embeddings"), Float("initializer_range", "init_std", 0.1)],
    {"embed": "backbone.embeddings", "norm": "backbone.norm_f", "head": "lm_head.weight", "blocks": "backbone.layers",
     "mixer_norm": "norm", **mamba2_names("mixer")},
    mixer=Mamba2Spec, ffn=None, fixed={"mixer.norm": NormSpec("rms", bias=False)}, ignored=EXTRA,
    sized=lambda width, layers, heads: {"num_heads": max(1, 2 * width // 64), "head_dim": min(64, 2 * width),
                                        "n_groups": 1},
)  # fmt: skip


def read_gguf(values: Metadata) -> None:
    """Factors and widths instead of numbers of channels."""
    values["expand"], values["head_dim"] = (values.over("inner_size", each) for each in ("hidden_size", "num_heads"))
    for name in ("unused", "again", "inner_size"):
        values.pop(name, None)


def write_gguf(values: dict[str, Any]) -> None:
    """The inverse. A key must be there and means nothing; llama.cpp b9190 counts heads by attention's."""
    values["inner_size"], values["unused"] = values["num_heads"] * values["head_dim"], 0
    values["again"] = values["num_heads"]
    values.setdefault("max_position_embeddings", 2**20)


GGUF.add("mamba2", Gguf(
    "mamba2",
    {"context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
     "attention.layer_norm_rms_epsilon": "layer_norm_epsilon", "feed_forward_length": "unused",
     "attention.head_count": "again", "ssm.conv_kernel": "conv_kernel", "ssm.state_size": "state_size",
     "ssm.time_step_rank": "num_heads", "ssm.group_count": "n_groups", "ssm.inner_size": "inner_size"},
    fixed={"hidden_act": "silu", "use_bias": False, "use_conv_bias": True, "time_step_limit": None}, rope=False,
    names={f"mixer.{ours}": theirs for ours, theirs in MAMBA2_GGUF.items()}, fused=gguf_fused(),
    packings=gguf_packings, read=read_gguf, write=write_gguf,
))  # fmt: skip

"""Mamba-2 (Dao & Gu 2024, arXiv:2405.21060): blocks of the state-space layer alone."""

from __future__ import annotations

from ...nn.mixers.mamba2 import Mamba2Spec
from ...nn.spec import NormSpec
from .declare import Bool, Float, Key, Only, declare
from .hybrid import EXTRA, Expand, Limits, mamba2_names

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

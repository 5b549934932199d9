"""Mamba (Gu & Dao 2023, arXiv:2312.00752): blocks of the selective scan alone. Its keys and names serve others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...io.names import Packing
from ...nn.checks import require
from ...nn.mixers.mamba import MambaSpec
from ..config import ModelConfig
from .common import Reader
from .declare import Bool, Draft, Float, Key, Only, Part, declare, look
from .gguf import GGUF, Gguf, Metadata

NAMES = {
    "embed": "backbone.embeddings", "norm": "backbone.norm_f", "head": "lm_head.weight", "blocks": "backbone.layers",
    "mixer_norm": "norm",
}  # fmt: skip
# Keys of initial values and of ways to compute that change no result.
IGNORED = """residual_in_fp32 rescale_prenorm_residual time_step_scale time_step_min time_step_max time_step_floor
    time_step_init_scheme use_mambapy use_falcon_mambapy use_associative_scan use_mamba_kernels intermediate_size
    layer_types d_inner d_model n_layer ssm_cfg fused_add_norm pad_vocab_size_multiple rms_norm"""


@dataclass(frozen=True)
class Expand(Part):
    """`theirs` times the width is the number of channels; `rank` is delta's or "auto", a sixteenth of the width."""

    ours: str  # the place of the layer
    theirs: str = "expand"
    rank: str = "time_step_rank"

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        width = draft.get("width")
        expand, rank = get.get(self.theirs, int, 2), get.get(self.rank, (int, str), "auto")
        require(isinstance(rank, int) or rank == "auto", f"{get.where}: {self.rank}", "a number or auto", rank)
        draft.set(f"{self.ours}.inner", expand * width)
        draft.set(f"{self.ours}.rank", -(-width // 16) if rank == "auto" else rank)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        try:
            inner, rank = look(config, f"{self.ours}.inner"), look(config, f"{self.ours}.rank")
        except LookupError:
            return
        out[self.theirs], out[self.rank] = inner // config.width, rank


def layer_names(kind: str, prefix: str) -> dict[str, str]:
    """Names of the weights of a layer of this kind ("mixer" where all are) below `prefix`."""
    table = {"conv": "conv1d", "select": "x_proj", "delta": "dt_proj", "a_log": "A_log", "skip": "D", "out": "out_proj"}
    joined = {f"{kind}.x {kind}.z": f"{prefix}.in_proj"}
    return {**joined, **{f"{kind}.{ours}": f"{prefix}.{theirs}" for ours, theirs in table.items()}}


def keys(tied: bool = True) -> list[Part]:
    """Keys of the models that are all Mamba."""
    return [
        Key("num_hidden_layers", "layers", 32),
        Key("vocab_size", "vocab_size", 50280),
        Key("hidden_size", "width", 768),
        Key("state_size", "mixer.state", 16),
        Key("conv_kernel", "mixer.taps", 4),
        Expand("mixer"),
        Bool("use_bias", "mixer.bias"),
        Bool("use_conv_bias", "mixer.conv_bias", True),
        Float("layer_norm_epsilon", "norm.eps", 1e-5),
        Only("hidden_act", ("silu", "swish")),
        # There are no positions: the number is a limit of ours.
        Key("max_position_embeddings", "max_positions", 2**20, quiet=True),
        Bool("tie_word_embeddings", "tie_embeddings", tied),
        Float("initializer_range", "init_std", 0.1),
    ]


def sized(width: int, layers: int, heads: int) -> Mapping[str, Any]:
    """Nothing: all follows from the width."""
    return {}


declare(
    "mamba", "MambaForCausalLM", keys(), {**NAMES, **layer_names("mixer", "mixer")},
    mixer=MambaSpec, ffn=None, ignored=IGNORED, sized=sized,
)  # fmt: skip

# -- GGUF: a = -exp(a_log) is stored, and a convolution's weight has two axes
GGUF_NAMES = {
    "mixer.conv": "ssm_conv1d", "mixer.select": "ssm_x", "mixer.delta": "ssm_dt", "mixer.a_log": "ssm_a",
    "mixer.skip": "ssm_d", "mixer.out": "ssm_out", "mixer.delta_norm": "ssm_dt_norm", "mixer.b_norm": "ssm_b_norm",
    "mixer.c_norm": "ssm_c_norm",
}  # fmt: skip
GGUF_FUSED = {"mixer.x mixer.z": "ssm_in"}
GGUF_KEYS = {"ssm.conv_kernel": "conv_kernel", "ssm.inner_size": "inner_size", "ssm.state_size": "state_size",
             "ssm.time_step_rank": "time_step_rank", "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
             "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
             "block_count": "num_hidden_layers", "feed_forward_length": "unused",
             "attention.head_count": "unused"}  # fmt: skip
GGUF_PACKINGS = {
    "mixer.a_log": Packing(
        lambda parts: -np.exp(parts[0].astype(np.float32)), lambda a: [np.log(-a.astype(np.float32))],
        lambda shapes: shapes[0],
    ),
    "mixer.conv.weight": Packing(
        lambda parts: parts[0][:, 0], lambda weight: [weight[:, None]], lambda shapes: (shapes[0][0], shapes[0][2])
    ),
}  # fmt: skip


def read_gguf(values: Metadata) -> None:
    """The factor of the width instead of the number of channels."""
    values.pop("unused", None)
    values["expand"] = values.over("inner_size", "hidden_size")
    del values["inner_size"]


def write_gguf(values: dict[str, Any]) -> None:
    """The inverse. Some keys must be there and mean nothing."""
    values["inner_size"], values["unused"] = values["expand"] * values["hidden_size"], 0
    values.setdefault("max_position_embeddings", 2**20)


GGUF.add("mamba", Gguf(
    "mamba", GGUF_KEYS, fixed={"hidden_act": "silu", "use_bias": False, "use_conv_bias": True}, rope=False,
    names=GGUF_NAMES, fused=GGUF_FUSED, packings=GGUF_PACKINGS, read=read_gguf, write=write_gguf,
))  # fmt: skip

"""Falcon Mamba (TII 2024, arXiv:2410.05355): Mamba whose delta, b and c are normed, without weights."""

from __future__ import annotations

from ...nn.mixers.mamba import MambaSpec
from ...nn.spec import NormSpec
from . import mamba
from .declare import Float, declare
from .gguf import GGUF, Gguf, Metadata
from .mamba import IGNORED, NAMES, keys, layer_names, sized

declare(
    "falcon_mamba", "FalconMambaForCausalLM", [*keys(), Float("mixer_rms_eps", "mixer.norm.eps", 1e-6)],
    {**NAMES, **layer_names("mixer", "mixer")},
    mixer=MambaSpec, ffn=None, fixed={"mixer.norm": NormSpec("rms", weight=False, bias=False)}, ignored=IGNORED,
    sized=sized,
)  # fmt: skip


def write_gguf(values: dict[str, object]) -> None:
    """Its files are told by a switch."""
    mamba.write_gguf(values)
    values["normed"] = True


def read_gguf(values: Metadata) -> None:
    """The inverse."""
    mamba.read_gguf(values)
    values.require(values["normed"] is True, "normed", True)
    del values["normed"]


# llama.cpp has one epsilon for all norms; the models' is 1e-6 where others have 1e-5.
GGUF.add("falcon_mamba", Gguf(
    "mamba", {**mamba.GGUF_KEYS, "ssm.dt_b_c_rms": "normed"}, told_by="ssm.dt_b_c_rms",
    fixed={"hidden_act": "silu", "use_bias": False, "use_conv_bias": True}, assumed={"mixer_rms_eps": 1e-6},
    rope=False, names=mamba.GGUF_NAMES, fused=mamba.GGUF_FUSED, packings=mamba.GGUF_PACKINGS, read=read_gguf,
    write=write_gguf,
))  # fmt: skip

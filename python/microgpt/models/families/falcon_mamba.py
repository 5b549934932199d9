"""Falcon Mamba (TII 2024, arXiv:2410.05355): Mamba whose delta, b and c are normed, without weights."""

from __future__ import annotations

from ...nn.mixers.mamba import MambaSpec
from ...nn.spec import NormSpec
from .declare import Float, declare
from .mamba import IGNORED, NAMES, keys, layer_names, sized

declare(
    "falcon_mamba", "FalconMambaForCausalLM", [*keys(), Float("mixer_rms_eps", "mixer.norm.eps", 1e-6)],
    {**NAMES, **layer_names("mixer", "mixer")},
    mixer=MambaSpec, ffn=None, fixed={"mixer.norm": NormSpec("rms", weight=False, bias=False)}, ignored=IGNORED,
    sized=sized,
)  # fmt: skip

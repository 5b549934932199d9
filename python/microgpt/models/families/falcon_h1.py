"""Falcon-H1 (TII 2025, arXiv:2507.22448): Mamba-2 and attention side by side in every block, with multipliers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...nn.checks import require
from ...nn.mixers.attention import AttentionSpec
from ...nn.mixers.mamba2 import Mamba2Spec
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import ATTENTION_BIAS, Bool, Draft, Float, Key, Part, declare, ends, ffn, heads, look, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf
from .hybrid import (
    ATTENTION,
    ENDS,
    EXTRA,
    SSM_FIXED,
    SSM_KEYS,
    gguf_fused,
    gguf_names,
    gguf_packings,
    mamba2_keys,
    mamba2_names,
    mamba2_sizes,
)
from .rope import Rope

NUMBER = (float, int, type(None))
NORM = NormSpec("rms", bias=False)


@dataclass(frozen=True)
class Inner(Part):
    """mamba_d_ssm, or where that is null mamba_expand times the width: the numbers of all Mamba-2 heads."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        count, expand = draft.get("mamba2.heads"), get.get("mamba_expand", int, 2)
        inner = get.get("mamba_d_ssm", (int, type(None)), 1024)
        inner = expand * draft.get("width") if inner is None else inner
        divides = count > 0 and inner % count == 0
        require(divides, f"{get.where}: mamba_n_heads", f"heads that divide {inner}", count)
        width = get.get("mamba_d_head", (int, str, type(None)), "auto")
        width = inner // count if width in ("auto", None) else width
        require(width == inner // count, f"{get.where}: mamba_d_head", str(inner // count), width)
        draft.set("mamba2.head_dim", width)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["mamba_d_ssm"] = look(config, "mamba2.heads") * look(config, "mamba2.head_dim")
        out["mamba_d_head"] = look(config, "mamba2.head_dim")


@dataclass(frozen=True)
class Pair(Part):
    """Two keys of a number each: what goes into a mixer and what comes out is multiplied by them."""

    before: str
    after: str
    ours: str

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        found = (get.get(name, NUMBER, None) for name in (self.before, self.after))
        draft.set(self.ours, tuple(1.0 if each is None else float(each) for each in found))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out[self.before], out[self.after] = look(config, self.ours)


class GluScales(Part):
    """mlp_multipliers: of the gate, and of the output."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        found = get.get("mlp_multipliers", (list, tuple, type(None)), None) or (1.0, 1.0)
        require(len(found) == 2, f"{get.where}: mlp_multipliers", "two numbers", found)
        for place, value in zip(("ffn.gate_scale", "ffn.out_scale"), found, strict=True):
            draft.set(place, value)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["mlp_multipliers"] = [look(config, "ffn.gate_scale"), look(config, "ffn.out_scale")]


class KeyScale(Part):
    """key_multiplier: keys enter scores alone, and turn by their positions whatever their length, so it is a factor of
    the scores' scale."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        found = get.get("key_multiplier", NUMBER, None)
        usual = 1.0 / math.sqrt(draft.get("mixer.head_dim"))
        draft.set("mixer.scale", None if found in (None, 1.0) else found * usual)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        scale, usual = look(config, "mixer.scale"), 1.0 / math.sqrt(look(config, "mixer.head_dim"))
        found = 1.0 if scale is None else scale / usual
        # The quotient is rounded: the number whose product is the scale lies at most one step away.
        near = (found, math.nextafter(found, 0.0), math.nextafter(found, math.inf))
        out["key_multiplier"] = next((each for each in near if each * usual == scale), found)


class ProjectorsBias(Part):
    """projectors_bias: the output projection's; here it goes with that of the other projections."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        found, other = get.get("projectors_bias", bool, False), draft.get("mamba2.bias")
        require(found == other, f"{get.where}: projectors_bias", f"{other} as mamba_proj_bias", found)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["projectors_bias"] = look(config, "mamba2.bias")


declare(
    "falcon_h1", "FalconH1ForCausalLM",
    [*shape(128000, 4096, 32, 32, 8192), *heads(kv=8), *ffn(14336), *mamba2_keys(inner=Inner()), ProjectorsBias(),
     Bool("mamba_rms_norm", "mamba2.norm", False, to=lambda on: NORM if on else None, back=lambda norm: bool(norm)),
     Bool("mamba_norm_before_gate", "mamba2.norm_first", True),
     Float("rms_norm_eps", "norm.eps mamba2.norm.eps", 1e-5), ATTENTION_BIAS, Bool("mlp_bias", "ffn.bias"), Rope(),
     Float("embedding_multiplier", "embed_scale", 1.0), Float("lm_head_multiplier", "logit_scale", 1.0),
     Pair("ssm_in_multiplier", "ssm_out_multiplier", "parallel.left_scales"),
     Pair("attention_in_multiplier", "attention_out_multiplier", "parallel.right_scales"),
     Key("ssm_multipliers", "mamba2.scales", (1.0,) * 5, (list, tuple), to=tuple, back=list),
     KeyScale(), GluScales(), *ends(False)],
    {**ENDS, **ATTENTION, **mamba2_names("mamba"), "norm": "model.final_layernorm", "ffn_norm": "pre_ff_layernorm",
     "ffn.gate": "feed_forward.gate_proj", "ffn.up": "feed_forward.up_proj", "ffn.down": "feed_forward.down_proj"},
    fixed={"mixer.type": "parallel", "parallel.left": Mamba2Spec, "parallel.right": AttentionSpec}, ignored=EXTRA,
    sized=lambda width, layers, heads: {**mamba2_sizes(width, layers, heads), "mamba_d_ssm": None},
)  # fmt: skip


def write_gguf(values: dict[str, Any]) -> None:
    """Without a norm, its place is any."""
    if not values["mamba_rms_norm"]:
        values["mamba_norm_before_gate"] = False


def folded(config: ModelConfig) -> tuple[ModelConfig, Mapping[str, float]]:
    """The multipliers go into the weights, as llama.cpp's converter has it: a file is read as a model without any."""
    growth: dict[str, float] = {}
    blocks = []
    for i, block in enumerate(config.blocks):
        mixer, ffn = block.mixer, block.ffn
        (ssm_in, ssm_out), (att_in, att_out) = mixer.left_scales, mixer.right_scales
        usual = 1.0 / math.sqrt(mixer.right.head_dim)
        keys = 1.0 if mixer.right.scale is None else mixer.right.scale / usual
        parts = zip(("z", "x", "b", "c", "dt"), mixer.left.scales, strict=True)
        found = {f"left.{name}": ssm_in * each for name, each in parts}
        found |= {"left.o": ssm_out, "right.q": att_in, "right.k": att_in * keys, "right.v": att_in, "right.o": att_out}
        found = {f"mixer.{name}": each for name, each in found.items()}
        found |= {"ffn.gate": ffn.gate_scale, "ffn.down": ffn.out_scale}
        growth |= {f"blocks.{i}.{name}.weight": each for name, each in found.items()}
        left, right = replace(mixer.left, scales=(1.0,) * 5), replace(mixer.right, scale=None)
        mixer = replace(mixer, left=left, right=right, left_scales=(1.0, 1.0), right_scales=(1.0, 1.0))
        blocks.append(replace(block, mixer=mixer, ffn=replace(ffn, gate_scale=1.0, out_scale=1.0)))
    scales = config.embed_scale, config.logit_scale
    growth |= {"embed.weight": scales[0], "head": scales[1]}
    same = not config.tie_embeddings or scales[0] == scales[1]
    require(same, "GGUF's falcon-h1: lm_head_multiplier", f"{scales[0]} as embedding_multiplier with tied embeddings",
            scales[1])  # fmt: skip
    config = replace(config, blocks=tuple(blocks), embed_scale=1.0, logit_scale=1.0)
    return config, {name: each for name, each in growth.items() if each != 1.0}


ONES = ("embedding", "lm_head", "key", "ssm_in", "ssm_out", "attention_in", "attention_out")
GGUF.add("falcon_h1", Gguf(
    "falcon-h1", {**LLAMA_KEYS, **SSM_KEYS},
    fixed={**SSM_FIXED, **{f"{each}_multiplier": 1.0 for each in ONES}, "mlp_multipliers": [1.0, 1.0],
           "ssm_multipliers": [1.0] * 5, "hidden_act": "silu", "mlp_bias": False, "projectors_bias": False,
           "mamba_norm_before_gate": False},
    present={"mamba_rms_norm": "blk.0.ssm_norm.weight"},
    names={**{f"mixer.right.{ours}": theirs for ours, theirs in
              (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output"))},
           "ffn_norm.weight": "ffn_norm"},  # without a suffix
    fused=gguf_fused("mixer.left"), packings=gguf_packings, variant=gguf_names, folded=folded,
    write=write_gguf,
))  # fmt: skip

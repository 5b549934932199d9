"""Jamba (Lieber et al. 2024, arXiv:2403.19887): layers of Mamba with some of attention, and experts in some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...nn.checks import require
from ...nn.ffn.moe import MoeSpec
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import Act, Bool, Derived, Draft, Float, Key, Part, declare, ends, head_width, shape
from .experts import IGNORED as EXPERTS_IGNORED
from .experts import experts
from .llama import BODY, NO_BIAS
from .mamba import IGNORED, Expand, layer_names


@dataclass(frozen=True)
class Period:
    """Keys of the blocks i for which i % period is the offset, with their defaults."""

    key: str
    period: int
    offset: int

    def read(self, get: Reader, count: int) -> list[bool]:
        """Which of `count` blocks they are."""
        period = get.get(f"{self.key}_period", int, self.period)
        offset = get.get(f"{self.key}_offset", int, self.offset)
        require(period >= 1, f"{get.where}: {self.key}_period", "at least 1", period)
        require(0 <= offset < period, f"{get.where}: {self.key}_offset", f"a number below {period}", offset)
        return [i % period == offset for i in range(count)]

    def write(self, chosen: list[bool], out: dict[str, Any]) -> None:
        """The inverse. TypeError if they follow no period."""
        found = [i for i, each in enumerate(chosen) if each]
        offset = found[0] if found else len(chosen)
        period = found[1] - offset if len(found) > 1 else len(chosen) + 1
        if offset >= period or chosen != [i % period == offset for i in range(len(chosen))]:
            raise TypeError("no period")
        out[f"{self.key}_period"], out[f"{self.key}_offset"] = period, offset


class Layers(Part):
    """Which blocks have attention, and which have experts."""

    attention = Period("attn_layer", 8, 4)
    experts = Period("expert_layer", 2, 1)

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        count = get.get("num_experts", int, 16)
        draft.set("ffn.experts", count)
        where = zip(
            draft.blocks, *(each.read(get, len(draft.blocks)) for each in (self.attention, self.experts)), strict=True
        )
        for block, attends, chooses in where:
            block["mixer.type"] = "attention" if attends else "mamba"
            block["ffn.type"] = "moe" if chooses and count > 1 else "glu"

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        self.attention.write([block.mixer.kind == "attention" for block in config.blocks], out)
        experts = [block.ffn.experts for block in config.blocks if block.ffn.kind == "moe"]
        out["num_experts"] = experts[0] if experts else 1
        if experts:
            self.experts.write([block.ffn.kind == "moe" for block in config.blocks], out)


ATTENTION = {f"attention.{each}": f"self_attn.{each}_proj" for each in "qkvo"}
MAMBA = {
    **layer_names("mamba", "mamba"), "mamba.delta_norm": "mamba.dt_layernorm", "mamba.b_norm": "mamba.b_layernorm",
    "mamba.c_norm": "mamba.c_layernorm",
}  # fmt: skip
ENDS = {name: theirs for name, theirs in BODY.items() if not name.startswith("mixer.")}

declare(
    "jamba", "JambaForCausalLM",
    [*shape(65536, 4096, 32, 32, 262144), Key("num_key_value_heads", "mixer.kv_heads", 8),
     Derived("mixer.head_dim", head_width), Layers(), Key("intermediate_size", "ffn.width glu.width", 14336),
     Act("hidden_act", "silu", ours="ffn.act glu.act"), *experts(16, 2)[1:],
     Key("mamba_d_state", "mamba.state", 16), Key("mamba_d_conv", "mamba.taps", 4),
     Expand("mamba", "mamba_expand", "mamba_dt_rank"), Bool("mamba_conv_bias", "mamba.conv_bias", True),
     Bool("mamba_proj_bias", "mamba.bias"), Float("rms_norm_eps", "norm.eps mamba.norm.eps", 1e-6), *ends(False)],
    {**ENDS, **ATTENTION, **MAMBA, "norm": "model.final_layernorm", "ffn_norm": "pre_ff_layernorm",
     "glu.gate": "feed_forward.gate_proj", "glu.up": "feed_forward.up_proj", "glu.down": "feed_forward.down_proj",
     "moe.router": "feed_forward.router", **{f"moe.{each}": f"feed_forward.experts.*.{each}_proj" for each in
                                             ("gate", "up", "down")}},
    ffn=MoeSpec, fixed={**NO_BIAS, "ffn.renormalize": False, "mamba.norm": NormSpec("rms", bias=False)},
    ignored=f"{EXPERTS_IGNORED} {IGNORED}",
)  # fmt: skip

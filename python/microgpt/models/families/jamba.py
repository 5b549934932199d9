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
from .experts import GGUF_KEYS, experts
from .experts import IGNORED as EXPERTS_IGNORED
from .gguf import GGUF, NO_WIDTH, Gguf, Metadata
from .hybrid import gguf_names, read_kv, write_kv
from .llama import BODY, NO_BIAS
from .mamba import GGUF_FUSED, GGUF_NAMES, GGUF_PACKINGS, IGNORED, Expand, layer_names


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
        if not any(block.mixer.kind == "attention" for block in config.blocks):
            out |= {"num_attention_heads": 1, "num_key_value_heads": 1}  # nothing has them; the defaults may not fit
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
     Derived("mixer.head_dim", head_width), Layers(),
     # each key twice: it is written whichever kind of feed-forward there is
     Key("intermediate_size", "ffn.width glu.width", 14336), Key("intermediate_size", "glu.width", 14336),
     Act("hidden_act", "silu", ours="ffn.act glu.act"), Act("hidden_act", "silu", ours="glu.act"), *experts(16, 2)[1:],
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


def read_gguf(values: Metadata) -> None:
    """Which layers have attention, those with key/value heads; and experts, those with a router."""
    attends, chosen, layers = read_kv(values), values.pop("chosen"), values["num_hidden_layers"]
    values["mamba_expand"] = values.over("inner_size", "hidden_size")
    del values["inner_size"]
    for period, blocks, what in (
        (Layers.attention, [i for i, kv in enumerate(attends) if kv], values.names["kv"]),
        (Layers.experts, chosen, "blk.*.ffn_gate_inp.weight"),
    ):
        try:
            period.write([i in blocks for i in range(layers)], values)
        except TypeError:
            require(False, f"blocks with {what}", "the first of each of equal numbers of blocks", blocks)
    if not chosen:
        values["num_experts"] = 1


def write_gguf(values: dict[str, Any]) -> None:
    """The inverse. llama.cpp knows no other number of channels, and ends the process at one."""
    require(values["mamba_expand"] == 2, "GGUF's jamba: mamba_expand", 2, values["mamba_expand"])
    write_kv(values, Layers.attention.read(Reader(values), values["num_hidden_layers"]))
    values["inner_size"] = 2 * values["hidden_size"]
    if values["num_experts"] == 1:
        values["num_experts"] = values["num_experts_per_tok"] = 0


GGUF.add("jamba", Gguf(
    "jamba",
    {**{key: theirs for key, theirs in NO_WIDTH.items() if "kv" not in key}, **GGUF_KEYS,
     "attention.head_count_kv": "kv", "expert_count": "num_experts", "ssm.conv_kernel": "mamba_d_conv",
     "ssm.state_size": "mamba_d_state", "ssm.inner_size": "inner_size", "ssm.time_step_rank": "mamba_dt_rank"},
    fixed={"hidden_act": "silu", "mamba_conv_bias": True, "mamba_proj_bias": False}, rope=False,
    present={"chosen": "blk.*.ffn_gate_inp.weight"}, names=GGUF_NAMES, fused=GGUF_FUSED, variant=gguf_names,
    packings=GGUF_PACKINGS, read=read_gguf, write=write_gguf,
))  # fmt: skip

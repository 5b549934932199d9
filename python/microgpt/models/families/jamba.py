"""Jamba (Lieber et al. 2024, arXiv:2403.19887): layers of Mamba with some of attention, dense feed-forwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...nn.checks import require
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import Bool, Derived, Draft, Float, Key, Part, declare, ends, ffn, head_width, shape
from .llama import BODY, NO_BIAS
from .mamba import IGNORED, Expand, layer_names


@dataclass(frozen=True)
class Period(Part):
    """Block i is of the kind `odd` where i % period is the offset, else of the kind `usual`."""

    half: str
    key: str
    odd: str
    usual: str
    period: int
    offset: int

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        period = get.get(f"{self.key}_period", int, self.period)
        offset = get.get(f"{self.key}_offset", int, self.offset)
        require(period >= 1, f"{get.where}: {self.key}_period", "at least 1", period)
        require(0 <= offset < period, f"{get.where}: {self.key}_offset", f"a number below {period}", offset)
        for i, block in enumerate(draft.blocks):
            block[f"{self.half}.type"] = self.odd if i % period == offset else self.usual

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part. TypeError if the blocks follow no period."""
        is_odd = [getattr(block, self.half).kind == self.odd for block in config.blocks]
        found = [i for i, each in enumerate(is_odd) if each]
        offset = found[0] if found else len(is_odd)
        period = found[1] - found[0] if len(found) > 1 else len(is_odd) + 1
        if is_odd != [i % period == offset for i in range(len(is_odd))] or offset >= period:
            raise TypeError("no period")
        out[f"{self.key}_period"], out[f"{self.key}_offset"] = period, offset


ATTENTION = {f"attention.{each}": f"self_attn.{each}_proj" for each in "qkvo"}
MAMBA = {
    **layer_names("mamba", "mamba"), "mamba.delta_norm": "mamba.dt_layernorm", "mamba.b_norm": "mamba.b_layernorm",
    "mamba.c_norm": "mamba.c_layernorm",
}  # fmt: skip
ENDS = {name: theirs for name, theirs in BODY.items() if not name.startswith("mixer.")}

declare(
    "jamba", "JambaForCausalLM",
    [*shape(65536, 4096, 32, 32, 262144), Key("num_key_value_heads", "mixer.kv_heads", 8),
     Derived("mixer.head_dim", head_width), *ffn(14336), Period("mixer", "attn_layer", "attention", "mamba", 8, 4),
     Key("mamba_d_state", "mamba.state", 16), Key("mamba_d_conv", "mamba.taps", 4),
     Expand("mamba", "mamba_expand", "mamba_dt_rank"), Bool("mamba_conv_bias", "mamba.conv_bias", True),
     Bool("mamba_proj_bias", "mamba.bias"), Float("rms_norm_eps", "norm.eps mamba.norm.eps", 1e-6), *ends(False)],
    {**ENDS, **ATTENTION, **MAMBA, "norm": "model.final_layernorm", "ffn_norm": "pre_ff_layernorm",
     "ffn.gate": "feed_forward.gate_proj", "ffn.up": "feed_forward.up_proj", "ffn.down": "feed_forward.down_proj"},
    fixed={**NO_BIAS, "mamba.norm": NormSpec("rms", bias=False)},
    ignored=f"attention_dropout {IGNORED}",
)  # fmt: skip

"""What families of several kinds of blocks share: lists of layer types, and Mamba-2's keys and names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...io.names import Packing
from ...nn.checks import require
from ...nn.spec import BlockSpec
from ..config import ModelConfig
from .common import Reader
from .declare import Bool, Draft, Key, Part
from .experts import GGUF_EXPERTS
from .gguf import Metadata
from .llama import BODY
from .rope import Rope

LINEAR = "linear_attention"
# Ways to write a number that JSON has not.
SPECIAL = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


@dataclass(frozen=True)
class Kinds(Part):
    """`key`: a list with a name for each block; `kinds` says what places a name sets, "mixer.type" and "ffn.type" of
    which tell them apart. `usual(i, get)` is block i's name where there is no list; `older` are other names.
    """

    kinds: Mapping[str, Mapping[str, Any]]
    usual: Callable[[int, Reader], str]
    key: str = "layer_types"
    older: Mapping[str, str] | None = None

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        where, count = f"{get.where}: {self.key}", len(draft.blocks)
        names = get.get(self.key, (list, type(None)), None)
        if names is None:
            names = [self.usual(i, get) for i in range(count)]
        require(len(names) == count, where, f"{count} names, one a layer", len(names))
        for block, name in zip(draft.blocks, names, strict=True):
            name = (self.older or {}).get(name, name) if isinstance(name, str) else name
            require(isinstance(name, str) and name in self.kinds, where, " or ".join(self.kinds), name)
            block.update(self.kinds[name])

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out[self.key] = [self.name(block) for block in config.blocks]

    def name(self, block: BlockSpec) -> str:
        """What the file calls such a block. TypeError if it has no name for it."""
        for name, places in self.kinds.items():
            types = {half: places[f"{half}.type"] for half in ("mixer", "ffn") if f"{half}.type" in places}
            if all(getattr(getattr(block, half), "kind", None) == kind for half, kind in types.items()):
                return name
        raise TypeError("a block of another kind")


@dataclass(frozen=True)
class Limits(Part):
    """time_step_limit: two numbers, the second of which may be infinite."""

    ours: str

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        found = get.get("time_step_limit", (list, tuple, type(None)), None) or (0.0, math.inf)
        where = f"{get.where}: time_step_limit"
        require(len(found) == 2, where, "two numbers", found)
        limits = []
        for each in found:
            number = SPECIAL.get(str(each.get("__float__"))) if isinstance(each, dict) else each
            require(isinstance(number, (int, float)) and not isinstance(number, bool), where, "two numbers", found)
            limits.append(None if number == math.inf else number)
        draft.set(self.ours, tuple(limits))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        found = (block.find("mamba2") for block in config.blocks)
        low, high = next((each[1].limits for each in found if each is not None), (0.0, None))
        if high is not None:
            out["time_step_limit"] = [low, high]
        elif low:
            raise TypeError("a lower limit alone")


@dataclass(frozen=True)
class Expand(Part):
    """`key` times the width is the heads' numbers together; `head`, where it has a key, is a head's width or "auto"."""

    ours: str  # the kind
    key: str
    head: str | None = None
    default: int = 2

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        expand = get.get(self.key, int, self.default)
        inner, heads = expand * draft.get("width"), draft.get(f"{self.ours}.heads")
        if self.head is not None:
            width = get.get(self.head, (int, str, type(None)), "auto")
            if width in ("auto", None):
                require(
                    heads > 0 and inner % heads == 0, f"{get.where}: {self.head}", f"heads that divide {inner}", heads
                )
                width = inner // heads
            require(isinstance(width, int), f"{get.where}: {self.head}", "a number or auto", width)
            draft.set(f"{self.ours}.head_dim", width)
        found = heads * draft.get(f"{self.ours}.head_dim")
        require(found == inner, f"{get.where}: {self.key}", f"{inner} numbers in heads", found)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        found = [block.mixer for block in config.blocks if getattr(block.mixer, "kind", None) in (self.ours, "mamba2")]
        if not found:
            return
        out[self.key] = found[0].inner // config.width
        if self.head is not None:
            out[self.head] = found[0].head_dim


class AttentionRope(Rope):
    """Rope of the layers of attention, if there are any."""

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        if any(getattr(block.mixer, "rope", None) is not None for block in config.blocks):
            super().write(config, out)


MAMBA2_INNER = Expand("mamba2", "mamba_expand", "mamba_d_head")


def mamba2_keys(state: int = 256, inner: Part = MAMBA2_INNER) -> list[Part]:
    """Keys of the layers of kind mamba2 in hybrids, with their defaults; `inner` is what says the width of heads."""
    return [
        Key("mamba_n_heads", "mamba2.heads", 128),
        Key("mamba_d_state", "mamba2.state", state),
        Key("mamba_n_groups", "mamba2.groups", 1),
        Key("mamba_d_conv", "mamba2.taps", 4),
        Bool("mamba_conv_bias", "mamba2.conv_bias", True),
        Bool("mamba_proj_bias", "mamba2.bias", False),
        inner,
        Limits("mamba2.limits"),
    ]


def mamba2_names(prefix: str) -> dict[str, str]:
    """Names of the weights of a mamba2 layer below `prefix`."""
    return {
        "mamba2.z mamba2.x mamba2.b mamba2.c mamba2.dt": f"{prefix}.in_proj",
        "mamba2.conv_x mamba2.conv_b mamba2.conv_c": f"{prefix}.conv1d",
        "mamba2.dt_bias": f"{prefix}.dt_bias",
        "mamba2.a_log": f"{prefix}.A_log",
        "mamba2.skip": f"{prefix}.D",
        "mamba2.norm": f"{prefix}.norm",
        "mamba2.o": f"{prefix}.out_proj",
    }


def mamba2_sizes(width: int, layers: int, heads: int) -> dict[str, Any]:
    """Keys of a mamba2 layer in a hybrid of another size: heads of 64, one where the width is less."""
    return {"mamba_n_heads": max(1, 2 * width // 64), "mamba_d_state": 128}


ATTENTION = {f"attention.{each}": f"self_attn.{each}_proj" for each in "qkvo"}
ENDS = {name: theirs for name, theirs in BODY.items() if not name.startswith("mixer.")}
EXTRA = "num_logits_to_keep mamba_chunk_size chunk_size residual_in_fp32 rescale_prenorm_residual attention_dropout"
EXTRA += " time_step_min time_step_max time_step_floor time_step_rank time_step_init_scheme layers_block_type"
EXTRA += " z_loss_coefficient output_router_logits"

# -- GGUF ---------------------------------------------------------------------------------------------------------
MAMBA2_GGUF = {"dt_bias": "ssm_dt.bias", "a_log": "ssm_a", "skip": "ssm_d", "norm": "ssm_norm", "o": "ssm_out"}
SSM_KEYS = {"ssm.conv_kernel": "mamba_d_conv", "ssm.state_size": "mamba_d_state", "ssm.time_step_rank": "mamba_n_heads",
            "ssm.group_count": "mamba_n_groups", "ssm.inner_size": "mamba_d_ssm"}  # fmt: skip
SSM_FIXED = {"mamba_conv_bias": True, "mamba_proj_bias": False, "time_step_limit": None, "attention_bias": False}


def gguf_fused(at: str = "mixer") -> dict[str, str]:
    """What of a mamba2 layer at a place is one tensor."""
    return {" ".join(f"{at}.{each}" for each in names.split()): theirs for names, theirs in
            (("z x b c dt", "ssm_in"), ("conv_x conv_b conv_c", "ssm_conv1d"))}  # fmt: skip


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Names of the layers that are called as others are: mamba2's, and experts that are not in every block."""
    found: dict[str, str] = {}
    for i, block in enumerate(config.blocks):
        layer = block.find("mamba2")
        if layer is not None:
            found |= {f"{i}.{layer[0]}.{ours}": theirs for ours, theirs in MAMBA2_GGUF.items()}
            for name in ("dt_bias", "a_log", "skip"):
                found[f"{layer[0]}.{name}"] = MAMBA2_GGUF[name]
        if block.ffn is not None and block.ffn.kind == "moe":
            found |= {f"{i}.{ours}": theirs for ours, theirs in GGUF_EXPERTS.items()}
    return found


def gguf_packings(config: ModelConfig) -> dict[str, Packing]:
    """A column for numbers of a head, with -exp of a_log; convolutions without their middle axis; a norm's row for each
    group."""
    layer = next((each for block in config.blocks if (each := block.find("mamba2"))), None)
    if layer is None:
        return {}
    at, groups = layer[0], layer[1].groups
    column = lambda shapes: (shapes[0][0], 1)  # noqa: E731
    return {
        f"{at}.a_log": Packing(lambda parts: -np.exp(parts[0].astype(np.float32))[:, None],
                               lambda a: [np.log(-a[:, 0].astype(np.float32))], column),
        f"{at}.skip": Packing(lambda parts: parts[0][:, None], lambda value: [value[:, 0]], column),
        f"{at}.conv_x {at}.conv_b {at}.conv_c.weight": CONV_PACKING,
        f"{at}.norm.weight": Packing(lambda parts: parts[0].reshape(groups, -1), lambda value: [value.reshape(-1)],
                                     lambda shapes: (groups, shapes[0][0] // groups)),
    }  # fmt: skip


CONV_PACKING = Packing(
    lambda parts: parts[0][:, 0], lambda weight: [weight[:, None]], lambda shapes: (shapes[0][0], shapes[0][2])
)


def read_kv(values: Metadata) -> list[int]:
    """Takes attention.head_count_kv, read as "kv", apart: the heads of a layer that has some; those of each layer."""
    kv = values.each("kv", values["num_hidden_layers"])
    values.require(len({*kv} - {0}) <= 1, "kv", "one number in all blocks that have some")
    del values["kv"]
    values["num_key_value_heads"] = max(kv) or values.whole("num_attention_heads")
    return kv


def write_kv(values: dict[str, Any], attends: list[bool]) -> None:
    """The inverse."""
    values["kv"] = np.array([values["num_key_value_heads"] if each else 0 for each in attends], np.int32)

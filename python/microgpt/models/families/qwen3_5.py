"""Qwen 3.5 (Qwen team 2026), the text model: three layers of gated DeltaNet to one of gated attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...io.names import Packing
from ...nn.checks import require
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import ATTENTION_BIAS, FULL, Float, Key, Part, declare, ends, ffn, heads, shape
from .gguf import GGUF, LLAMA_KEYS, Gguf, Metadata
from .hybrid import CONV_PACKING, ENDS, EXTRA, LINEAR, AttentionRope, Kinds
from .llama import GLU

PLUS_ONE = NormSpec("rms", 1e-6, bias=False, plus_one=True)


def usual(i: int, get: Reader) -> str:
    """Every fourth layer is attention, or as full_attention_interval says."""
    every = get.get("full_attention_interval", int, 4)
    return FULL if every > 0 and (i + 1) % every == 0 else LINEAR


KINDS = Kinds({LINEAR: {"mixer.type": "gated_delta"}, FULL: {"mixer.type": "attention"}}, usual)
DELTA_KEYS: list[Part] = [
    Key("linear_num_value_heads", "gated_delta.heads", 32),
    Key("linear_num_key_heads", "gated_delta.key_heads", 16),
    Key("linear_key_head_dim", "gated_delta.key_dim", 128),
    Key("linear_value_head_dim", "gated_delta.value_dim", 128),
    Key("linear_conv_kernel_dim", "gated_delta.taps", 4),
]
DELTA = {
    "gated_delta.conv_q gated_delta.conv_k gated_delta.conv_v": "linear_attn.conv1d",
    "gated_delta.dt_bias": "linear_attn.dt_bias", "gated_delta.a_log": "linear_attn.A_log",
    "gated_delta.norm": "linear_attn.norm", "gated_delta.o": "linear_attn.out_proj",
}  # fmt: skip
ATTENTION = {
    "attention.q attention.gate": "self_attn.q_proj@heads", "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj", "attention.o": "self_attn.o_proj", "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}  # fmt: skip
FIXED = {"mixer.gate": True, "mixer.qk_norm": PLUS_ONE, "gated_delta.norm": NormSpec("rms", 1e-6, bias=False)}
EPS = Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps gated_delta.norm.eps", 1e-6)
IGNORED = EXTRA + " full_attention_interval"


def delta_sizes(width: int, layers: int, heads: int) -> dict[str, int]:
    """Keys of the linear layers in a model of another size: as many heads as attention, one key head for two."""
    return {"linear_num_value_heads": heads, "linear_num_key_heads": heads // 2 if heads % 2 == 0 else heads,
            "linear_key_head_dim": width // heads, "linear_value_head_dim": width // heads}  # fmt: skip


declare(
    "qwen3_5_text", "Qwen3_5ForCausalLM",
    [*shape(248320, 4096, 32, 16, 32768), *heads(4, 256), *ffn(12288), *DELTA_KEYS, KINDS, EPS, ATTENTION_BIAS,
     AttentionRope(share=0.25, known=("mrope_section", "mrope_interleaved")), *ends(False)],
    {**ENDS, **GLU, **ATTENTION, **DELTA,
     "gated_delta.q gated_delta.k gated_delta.v": "linear_attn.in_proj_qkv", "gated_delta.z": "linear_attn.in_proj_z",
     "gated_delta.b": "linear_attn.in_proj_b", "gated_delta.a": "linear_attn.in_proj_a"},
    norm=PLUS_ONE, fixed=FIXED, ignored=IGNORED, sized=delta_sizes,
)  # fmt: skip


# -- GGUF, and what of it Qwen3-Next shares -----------------------------------------------------------------------
DELTA_GGUF = {
    "full_attention_interval": "every", "attention.recurrent_layers": "recurrent",
    "ssm.conv_kernel": "linear_conv_kernel_dim", "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads", "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.inner_size": "inner_size",
}  # fmt: skip
DELTA_NAMES = {"ffn_norm": "post_attention_norm", "mixer.z": "attn_gate", "mixer.dt_bias": "ssm_dt.bias",
               "mixer.a_log": "ssm_a"}  # fmt: skip
DELTA_FUSED = {"mixer.q mixer.gate": "attn_q", "mixer.q mixer.k mixer.v": "attn_qkv",
               "mixer.conv_q mixer.conv_k mixer.conv_v": "ssm_conv1d"}  # fmt: skip


def read_gguf(values: Metadata) -> None:
    """Which layers attend: every so many-th one, or as a list says."""
    values.setdefault("every", 4)
    count, every = values["num_hidden_layers"], values.whole("every", 1)
    linear = [(i + 1) % every for i in range(count)] if "recurrent" not in values else values.each("recurrent", count)
    values["layer_types"] = [LINEAR if each else FULL for each in linear]
    values["linear_value_head_dim"] = values.over("inner_size", "linear_num_value_heads")
    for name in ("every", "recurrent", "inner_size", "sections"):
        values.pop(name, None)


def write_gguf(values: dict[str, Any], arch: str = "qwen3next") -> None:
    """The inverse."""
    kinds, where = values["layer_types"], f"GGUF's {arch}: layer_types"
    require({FULL, LINEAR} == set(kinds), where, "both kinds", kinds)
    values["every"] = every = kinds.index(FULL) + 1
    usual = [LINEAR if (i + 1) % every else FULL for i in range(len(kinds))]
    require(kinds == usual, where, f"{FULL} in every {every}th", kinds)
    dims = values["linear_key_head_dim"], values["linear_value_head_dim"]
    require(dims[0] == dims[1], f"GGUF's {arch}: linear_value_head_dim", dims[0], dims[1])
    values["inner_size"] = values["linear_num_value_heads"] * dims[1]


def gguf_names(config: ModelConfig, both: str | None = "ssm_ba") -> dict[str, str]:
    """Both kinds of mixers have a q. `both` is the one tensor of b and a, if they are one."""
    betas = {"b": both, "a": both} if both else {"b": "ssm_beta", "a": "ssm_alpha"}
    names = {
        True: {"q": "attn_q", "gate": "attn_q", "k": "attn_k", "v": "attn_v"},
        False: {**dict.fromkeys("qkv", "attn_qkv"), **betas, "o": "ssm_out", "norm": "ssm_norm"},
    }
    return {f"{i}.mixer.{ours}": theirs for i, block in enumerate(config.blocks)
            for ours, theirs in names[block.mixer.kind == "attention"].items()}  # fmt: skip


def by_head(heads: int) -> Packing:
    """Two arrays of the same height, one after another for each head."""
    return Packing(
        lambda parts: parts[0].reshape(2, heads, -1, *parts[0].shape[1:]).swapaxes(0, 1).reshape(parts[0].shape),
        lambda value: [value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)],
        lambda shapes: shapes[0],
    )


def gguf_packings(config: ModelConfig) -> dict[str, Packing]:
    """Queries and gates head by head; decays instead of their logarithms."""
    found = {
        "mixer.a_log": Packing(lambda parts: -np.exp(parts[0].astype(np.float32)),
                               lambda a: [np.log(-a.astype(np.float32))], lambda shapes: shapes[0]),
        "mixer.conv_q mixer.conv_k mixer.conv_v.weight": CONV_PACKING,
    }  # fmt: skip
    for block in config.blocks:
        if block.mixer.kind == "attention":
            found["mixer.q mixer.gate.weight"] = by_head(block.mixer.heads)
    return found


def turned(packing: Packing | None, keys: int, heads: int, skipped: int = 0, axis: int = 0) -> Packing:
    """What `packing` makes, with value heads (behind `skipped` rows) in another order along an axis: the first of each
    key head, then the second of each, as llama.cpp repeats keys."""

    def moved(value: npt.NDArray[Any], order: tuple[int, int]) -> npt.NDArray[Any]:
        value = np.moveaxis(value, axis, 0)
        rest = value[skipped:]
        rest = rest.reshape(*order, -1, *value.shape[1:]).swapaxes(0, 1).reshape(rest.shape)
        return np.moveaxis(np.concatenate([value[:skipped], rest]), 0, axis)

    each = heads // keys
    inner = packing or Packing(lambda parts: parts[0], lambda value: [value], lambda shapes: shapes[0])
    return Packing(
        lambda parts: moved(inner.join(parts), (keys, each)), lambda value: inner.split(moved(value, (each, keys))),
        inner.shape,
    )  # fmt: skip


def turned_packings(config: ModelConfig) -> dict[str, Packing]:
    """gguf_packings, with value heads as `turned` has them."""
    found = gguf_packings(config)
    for i, block in enumerate(config.blocks):
        mixer = block.mixer
        if mixer.kind != "gated_delta" or mixer.heads == mixer.key_heads:
            continue
        keys = 2 * mixer.key_heads * mixer.key_dim
        for name, skipped, axis in (
            ("mixer.q mixer.k mixer.v.weight", keys, 0), ("mixer.conv_q mixer.conv_k mixer.conv_v.weight", keys, 0),
            ("mixer.z.weight", 0, 0), ("mixer.b.weight", 0, 0), ("mixer.a.weight", 0, 0), ("mixer.dt_bias", 0, 0),
            ("mixer.a_log", 0, 0), ("mixer.o.weight", 0, 1),
        ):  # fmt: skip
            found[f"{i}.{name}"] = turned(found.get(name), mixer.key_heads, mixer.heads, skipped, axis)
    return found


def write_text(values: dict[str, Any]) -> None:
    """The inverse of read_gguf. Positions of three axes are one number here, whichever pairs turn by which."""
    write_gguf(values, "qwen35")
    rope = values["rope_parameters"]
    pairs = int(values["head_dim"] * rope.get("partial_rotary_factor", 1.0)) // 2
    values["sections"] = np.array([-(-(pairs - i) // 3) for i in range(3)] + [0], np.int32)


GGUF.add("qwen3_5_text", Gguf(
    "qwen35", {**LLAMA_KEYS, **DELTA_GGUF, "rope.dimension_sections": "sections"},
    fixed={"hidden_act": "silu", "attention_bias": False}, names=DELTA_NAMES, fused=DELTA_FUSED,
    variant=lambda config: gguf_names(config, None), packings=turned_packings, plus_one=True, partial=True,
    read=read_gguf, write=write_text,
))  # fmt: skip

"""Types of a GGUF file by name, and which of them each tensor gets: llama.cpp's well-known mixtures among them."""

from __future__ import annotations

import re

from ..errors import ConfigError, nearest
from ..io.ggml import NAMED, GgmlType
from .config import ModelConfig

# What llama.cpp calls the mixture of types in a file (general.file_type), by our name of it.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q3_k_m": 12,
    "q4_k": 14, "q4_k_m": 15, "q5_k": 16, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32, "mxfp4": 38,
}  # fmt: skip
# Where rows do not fill the blocks of a type, the nearest one that they fill; at last f16.
FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"), "F16"),
}  # fmt: skip
# Of the output, or the embedding that is tied to it, where it is not the file's own.
OUTPUT = {**dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "IQ4_XS"), "Q6_K"), "MXFP4": "Q8_0"}
LOW_RANK = re.compile(r"\.time_mix_[wavg][12]\.")  # of RWKV-7: little to save, so they are not quantized


def type_of(name: str) -> str:
    """ "q4_k" for any spelling of it. Raises ConfigError with the known ones."""
    lowered = name.lower()
    if lowered not in FILE_TYPES:
        known = ", ".join(FILE_TYPES)
        raise ConfigError(f"type {name!r}: unknown GGUF type{nearest(lowered, FILE_TYPES)}; known: {known}")
    return lowered


def base_of(kind: str) -> GgmlType:
    """The type of most matrices in a file of `kind`."""
    return NAMED[kind.removesuffix("_m").upper()]


def _mixed(kind: str, name: str, layers: int) -> str:
    """llama.cpp's rule for *_M: more bits for values, what joins heads and what leaves a feed-forward, and of the
    latter in the first and last eighth of layers and each third between."""
    base = base_of(kind).name
    found = re.match(r"blk\.(\d+)\.(attn_v|attn_qkv|attn_output|ffn_down)", name)
    if not kind.endswith("_m") or not found:
        return base
    i, part = int(found[1]), found[2]
    more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
    if part == "attn_qkv":
        return {"Q3_K": "Q4_K", "Q4_K": "Q5_K", "Q5_K": "Q6_K"}[base]
    if base != "Q3_K":
        return "Q6_K" if more and part != "attn_output" else base
    if part == "attn_v":
        return "Q5_K" if i < 2 else "Q4_K"
    if part == "ffn_down":
        return "Q5_K" if i < layers // 16 else "Q4_K" if more else base
    return "Q4_K"


def tensor_type(name: str, shape: tuple[int, ...], kind: str, config: ModelConfig) -> GgmlType:
    """The type of a tensor by its name in a file of `kind`, one of FILE_TYPES."""
    # llama.cpp adds biases of experts in float32, and never quantizes what chooses them.
    plain = (
        name.endswith(("norm.weight", ".bias", "ssm_a", "ssm_d", "conv1d.weight", "shortconv.conv.weight"))
        or "ffn_gate_inp" in name
        or re.search(r"\.time_mix_(lerp_fused|w[12])\.", name)
    )
    if len(shape) < 2 or name.startswith(("position_embd", "token_types")) or plain:
        return NAMED["F32"]
    chosen = _mixed(kind, name, len(config.blocks))
    if LOW_RANK.search(name) and NAMED[chosen].weights > 1:
        return NAMED["F16"]
    if name == ("token_embd.weight" if config.tie_embeddings else "output.weight"):
        chosen = OUTPUT.get(chosen, chosen)
    while shape[-1] % NAMED[chosen].weights:
        chosen = FALLBACK[chosen]
    return NAMED[chosen]

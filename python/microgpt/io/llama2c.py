"""Models of llama2.c (https://github.com/karpathy/llama2.c): a `.bin` of seven sizes and then float32 weights."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from microgpt.errors import FormatError
from microgpt.io.stored import Stored, WeightFile

VERSIONED = 0x616B3432  # "ak42", how later versions of the format begin
_PICKLES = (b"\x80", b"PK\x03\x04")  # a bare pickle's PROTO, a zip archive


class Sizes(NamedTuple):
    """The header. `tied`: the head is the embedding."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool


def looks_like_pickle(path: Path) -> bool:
    """Whether a file begins as what torch.save writes. Raises FormatError when it cannot be read."""
    file = WeightFile(path)
    start = file.read(0, min(4, file.size)).tobytes()
    return start.startswith(_PICKLES)


def open_weights(path: Path | str) -> tuple[Sizes, dict[str, Stored]]:
    """The header and every tensor under the names of transformers' LlamaForCausalLM, but for rows of q and k, which
    lie pair by pair. Raises FormatError for a file that is none, or whose size is not what its header says."""
    file = WeightFile(path)
    if file.size < 28:
        raise FormatError(f"{path}: {file.size} bytes, too few for a llama2.c header")
    numbers = struct.unpack("<7i", file.read(0, 28).tobytes())
    if numbers[0] == VERSIONED:
        raise FormatError(f"{path}: a versioned llama2.c file, expected version 0 (export.py --version 0)")
    width, hidden, layers, heads, kv_heads, vocab, context = numbers
    sizes = Sizes(width, hidden, layers, heads, kv_heads, abs(vocab), context, vocab > 0)
    limits = zip(sizes[:7], (2**20, 2**24, 1024, 2**16, 2**16, 2**24, 2**24), strict=True)
    if any(not 1 <= value <= most for value, most in limits) or width % (2 * heads) or heads % kv_heads:
        raise FormatError(f"{path}: not a llama2.c file: impossible sizes {numbers} (dim, hidden, layers, heads, "
                          "kv_heads, vocab, context)")  # fmt: skip
    head = width // heads
    each = "model.layers.{}."
    plan: list[tuple[str, int, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", 1, (sizes.vocab, width)),
        (each + "input_layernorm.weight", layers, (width,)),
        (each + "self_attn.q_proj.weight", layers, (width, width)),
        (each + "self_attn.k_proj.weight", layers, (kv_heads * head, width)),
        (each + "self_attn.v_proj.weight", layers, (kv_heads * head, width)),
        (each + "self_attn.o_proj.weight", layers, (width, width)),
        (each + "post_attention_layernorm.weight", layers, (width,)),
        (each + "mlp.gate_proj.weight", layers, (hidden, width)),
        (each + "mlp.down_proj.weight", layers, (width, hidden)),
        (each + "mlp.up_proj.weight", layers, (hidden, width)),
        ("model.norm.weight", 1, (width,)),
        ("", 2, (context, head // 2)),  # tables of rotary cosines and sines, which follow from the rest
        *([] if sizes.tied else [("lm_head.weight", 1, (sizes.vocab, width))]),
    ]
    total = 28
    for _, count, shape in plan:
        rows, columns = (*shape, 1)[:2]
        total += 4 * count * rows * columns
    if total != file.size:
        raise FormatError(
            f"{path}: a llama2.c header of sizes {numbers} makes a file of {total} bytes, got {file.size}"
        )
    found, at = {}, 28
    for name, count, shape in plan:
        rows, columns = (*shape, 1)[:2]
        for i in range(count):
            size = 4 * rows * columns
            if name:
                found[name.format(i)] = file.stored(at, np.dtype("<f4"), shape)
            at += size
    return sizes, found

"""Granite 3 MoE (IBM 2024): Granite with experts."""

from __future__ import annotations

import numpy as np

from ...io.names import Packing
from ...nn.ffn.moe import MoeSpec
from .declare import ATTENTION_BIAS, declare, ends, ffn, heads, shape
from .experts import GGUF_EXPERTS, GGUF_KEYS, IGNORED, experts
from .gguf import GGUF, Gguf
from .granite import GGUF_KEYS as GRANITE_KEYS
from .granite import MULTIPLIERS
from .llama import BODY, EPS
from .rope import Rope

# Each expert's gate and up, one after the other: (experts, 2 * out, in).
GATE_UP = Packing(
    lambda parts: np.concatenate(parts, axis=1),
    lambda value: np.split(value, 2, axis=1),
    lambda shapes: (shapes[0][0], 2 * shapes[0][1], *shapes[0][2:]),
)

declare(
    "granitemoe", "GraniteMoeForCausalLM",
    [*shape(32000, 4096, 32, 32, 2048), *heads(), *ffn(11008), *experts(8, 2, "num_local_experts"), EPS, ATTENTION_BIAS,
     *MULTIPLIERS, Rope(), *ends(False)],
    {**BODY, "moe.router": "block_sparse_moe.router.layer", "moe.gate moe.up": "block_sparse_moe.input_linear",
     "moe.down": "block_sparse_moe.output_linear"},
    ffn=MoeSpec, packings={"moe.gate moe.up": GATE_UP}, ignored=IGNORED,
)  # fmt: skip
GGUF.add("granitemoe", Gguf(
    "granitemoe", {**GRANITE_KEYS, **GGUF_KEYS, "expert_count": "num_local_experts"},
    fixed={"hidden_act": "silu"}, present={"attention_bias": "blk.0.attn_q.bias"}, names=GGUF_EXPERTS, interleaved=True,
))  # fmt: skip

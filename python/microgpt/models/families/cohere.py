"""Command R (Cohere 2024): both layers side by side after one norm, scaled logits, a norm for each head's q and k."""

from __future__ import annotations

from ...nn.spec import NormSpec
from .declare import ATTENTION_BIAS, Bool, Float, declare, ends, ffn, heads, shape
from .llama import BUFFERS, NAMES, QK_NORM
from .rope import Rope

NORM = NormSpec("layer", bias=False)

declare(
    "cohere", "CohereForCausalLM",
    [*shape(256000, 8192, 40, 64, 8192), *heads(), *ffn(22528),
     Bool("use_qk_norm", "mixer.qk_norm", to=lambda yes: NORM if yes else None, back=lambda norm: norm is not None),
     Float("layer_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-5), ATTENTION_BIAS,
     Float("logit_scale", "logit_scale", 0.0625), Rope(500000.0, interleaved=True), *ends(True)],
    {**NAMES, **QK_NORM}, norm=NORM,
    fixed={"block.parallel": True, "block.shared_norm": True, "mixer.qk_norm_over": "heads"},
    ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip

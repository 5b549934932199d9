"""nanochat (Karpathy 2025): norms without weights, one after the embeddings, normed q and k, capped logits."""

from __future__ import annotations

from ...nn.ffn.mlp import MlpSpec
from ...nn.spec import NormSpec
from .declare import ATTENTION_BIAS, Float, declare, ends, ffn, heads, shape
from .llama import BODY
from .rope import Rope

NORM = NormSpec("rms", 1e-6, weight=False, bias=False)

declare(
    "nanochat", "NanoChatForCausalLM",
    [*shape(50304, 768, 12, 6, 2048), *heads(), *ffn(8192, "relu2"),
     Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-6), ATTENTION_BIAS,
     Float("final_logit_softcapping", "logit_soft_cap", 15.0, nullable=True), Rope(reverse=True), *ends(False)],
    {**BODY, "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"}, ffn=MlpSpec, norm=NORM,
    fixed={"mixer.qk_norm": NORM, "mixer.qk_norm_last": True, "ffn.bias": False}, model={"embed_norm": True},
    ignored="attention_dropout",
)  # fmt: skip

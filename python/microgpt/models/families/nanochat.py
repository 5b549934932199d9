"""nanochat (Karpathy 2025): norms without weights, one after the embeddings, normed q and k, capped logits."""

from __future__ import annotations

from ...nn.spec import MlpSpec, NormSpec
from .declare import Act, Bool, Float, Key, declare, ends, heads, shape
from .llama import BODY
from .rope import Rope

NORM = NormSpec("rms", 1e-6, weight=False, bias=False)

declare(
    "nanochat", "NanoChatForCausalLM",
    [*shape(50304, 768, 12, 6, 2048), *heads(), Key("intermediate_size", "ffn.width", 8192), Act("hidden_act", "relu2"),
     Float("rms_norm_eps", "norm.eps mixer.qk_norm.eps", 1e-6), Bool("attention_bias", "mixer.bias mixer.out_bias"),
     Float("final_logit_softcapping", "logit_soft_cap", 15.0, nullable=True), Rope(reverse=True), *ends(False)],
    {**BODY, "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"}, ffn=MlpSpec, norm=NORM,
    fixed={"mixer.qk_norm": NORM, "mixer.qk_norm_last": True, "ffn.bias": False}, model={"embed_norm": True},
    ignored="attention_dropout",
)  # fmt: skip

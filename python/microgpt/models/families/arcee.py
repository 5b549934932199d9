"""AFM-4.5B (Arcee 2025): Llama with a squared-ReLU MLP."""

from __future__ import annotations

from ...nn.ffn.mlp import MlpSpec
from .declare import Float, declare, ends, ffn, heads, shape
from .gguf import GGUF, NO_WIDTH, Gguf
from .llama import BIAS, BODY, MLP
from .rope import Rope

declare(
    "arcee", "ArceeForCausalLM",
    [*shape(32000, 2560, 32, 32, 4096), *heads(), *ffn(18432, "relu2"),
     Float("rms_norm_eps", "norm.eps", 1e-5), *BIAS, Rope(), *ends(False)],
    {**BODY, **MLP}, ffn=MlpSpec, ignored="attention_dropout",
)  # fmt: skip
GGUF.add("arcee", Gguf("arcee", NO_WIDTH, fixed={"hidden_act": "relu2"}, interleaved=True))

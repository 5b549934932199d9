"""StableLM (Bellagente et al. 2024, arXiv:2402.17834): Llama with LayerNorm and a quarter of each head turning."""

from __future__ import annotations

from ...nn.spec import NormSpec
from .declare import Bool, Float, Only, declare, ends, ffn, heads, shape
from .llama import BUFFERS, NAMES, NO_BIAS
from .rope import Rope

declare(
    "stablelm", "StableLmForCausalLM",
    [*shape(50304, 2560, 32, 32, 4096), *heads(32), *ffn(6912),
     Float("layer_norm_eps", "norm.eps", 1e-5), Bool("use_qkv_bias", "mixer.bias"), Only("qk_layernorm", False),
     Bool("use_parallel_residual", "block.parallel block.shared_norm"), Rope(share=0.25),
     *ends(False, block="hidden_dropout")],
    NAMES, norm=NormSpec("layer"), fixed=NO_BIAS, ignored="attention_dropout", buffers=BUFFERS,
)  # fmt: skip

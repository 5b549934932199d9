"""What families of experts share: keys of config.json, names of weights, layers that have no experts."""

from __future__ import annotations

from typing import Any

from ...nn.checks import whole
from ..config import ModelConfig
from .common import Reader
from .declare import Bool, Draft, Float, Key, Part

# Keys that ask for something to be returned, or for noise in training that nobody uses.
IGNORED = "attention_dropout output_router_logits router_jitter_noise"


def experts(count: int, chosen: int, key: str = "num_experts", aux: float = 0.001) -> list[Part]:
    """How many experts there are, how many work on a token, the weight of the loss that balances them."""
    return [Key(key, "ffn.experts", count), Key("num_experts_per_tok", "ffn.chosen", chosen),
            Float("router_aux_loss_coef", "ffn.balance_loss", aux)]  # fmt: skip


RENORMALIZE = Bool("norm_topk_prob", "ffn.renormalize")
NAMES = {
    "moe.router": "mlp.gate", "moe.gate": "mlp.experts.*.gate_proj", "moe.up": "mlp.experts.*.up_proj",
    "moe.down": "mlp.experts.*.down_proj",
}  # fmt: skip
GGUF_KEYS = {"expert_used_count": "num_experts_per_tok"}
GGUF_EXPERTS = {
    "ffn.router": "ffn_gate_inp", "ffn.gate": "ffn_gate_exps", "ffn.up": "ffn_up_exps", "ffn.down": "ffn_down_exps",
    "ffn.shared.gate": "ffn_gate_shexp", "ffn.shared.up": "ffn_up_shexp", "ffn.shared.down": "ffn_down_shexp",
    "ffn.shared_gate": "ffn_gate_inp_shexp",
}  # fmt: skip
DENSE = {"glu.gate": "mlp.gate_proj", "glu.up": "mlp.up_proj", "glu.down": "mlp.down_proj"}


class DenseLayers(Part):
    """decoder_sparse_step and mlp_only_layers: which layers have one feed-forward for all tokens."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        step = get.get("decoder_sparse_step", int, 1)
        whole(f"{get.where}: decoder_sparse_step", step, 1, 1024)
        dense = get.get("mlp_only_layers", (list, type(None)), None) or []
        for i, block in enumerate(draft.blocks):
            if i in dense or (i + 1) % step:
                block["ffn.type"] = "glu"

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["decoder_sparse_step"] = 1
        out["mlp_only_layers"] = [i for i, block in enumerate(config.blocks) if block.ffn.kind == "glu"]

"""The peer of the training benches: the same GPT in PyTorch eager, at its best on a CPU (fused AdamW, SDPA)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Model(nn.Module):
    """Our decoder's forward on our weights (an .npz of Decoder.arrays()); `config` as in train_step.CONFIGS."""

    def __init__(self, config: dict[str, Any], weights: str) -> None:
        super().__init__()
        self.config = config
        stored = {name: torch.from_numpy(value) for name, value in np.load(weights).items()}
        self.weight = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(v) for name, v in stored.items()})

    def get(self, name: str) -> Any:
        """A parameter by our name, None if there is none."""
        return self.weight.get(name.replace(".", "_"))

    def norm(self, x: Any, name: str) -> Any:
        """The layer norm or RMS norm called `name`."""
        width = (self.config["width"],)
        if self.config["model"] == "gpt":
            return functional.layer_norm(x, width, self.get(f"{name}.weight"), self.get(f"{name}.bias"))
        return functional.rms_norm(x, width, eps=1e-5)

    def linear(self, x: Any, name: str) -> Any:
        """The projection called `name`."""
        return functional.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"))

    def forward(self, ids: Any, wanted: Any) -> Any:
        """Mean cross-entropy of `wanted` (B, T) after `ids` (B, T)."""
        config, gpt = self.config, self.config["model"] == "gpt"
        rows, length = ids.shape
        x = functional.embedding(ids, self.get("embed.weight")) + self.get("positions.weight")[:length]
        if not gpt:
            x = self.norm(x, "embed_norm")
        for i in range(config["layers"]):
            at = f"blocks.{i}"
            h = self.norm(x, f"{at}.mixer_norm")
            q, k, v = (
                self.linear(h, f"{at}.mixer.{p}").view(rows, length, config["heads"], -1).transpose(1, 2) for p in "qkv"
            )
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.linear(y.transpose(1, 2).reshape(rows, length, config["width"]), f"{at}.mixer.o")
            h = self.linear(self.norm(x, f"{at}.ffn_norm"), f"{at}.ffn.up")
            h = functional.gelu(h, approximate="tanh") if gpt else functional.relu(h)
            x = x + self.linear(h, f"{at}.ffn.down")
        if gpt:
            x = self.norm(x, "norm")
        head = self.get("embed.weight") if gpt else self.get("head")
        return functional.cross_entropy(functional.linear(x, head).flatten(0, 1), wanted.flatten())


def adamw(model: Model, settings: dict[str, float]) -> Any:
    """Fused AdamW with decay on matrices alone; `settings`: lr, beta1, beta2, eps, weight_decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings["beta1"], settings["beta2"])
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings["lr"], betas=betas, eps=settings["eps"], fused=True
    )

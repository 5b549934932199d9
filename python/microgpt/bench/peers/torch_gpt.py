"""The same GPT in PyTorch, at its best on a CPU: scaled_dot_product_attention, fused AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found,unused-ignore]
from torch.nn import functional  # type: ignore[import-not-found,unused-ignore]

Weights = dict[str, Any]


def load(path: str) -> Weights:
    """Our decoder's weights, an .npz of float32 arrays, as leaves that want gradients."""
    with np.load(path) as stored:
        return {name: torch.from_numpy(stored[name]).requires_grad_(True) for name in stored.files}


def _norm(config: dict[str, Any], w: Weights, x: Any, name: str) -> Any:
    width = (config["width"],)
    if config["model"] == "gpt":
        return functional.layer_norm(x, width, w[f"{name}.weight"], w[f"{name}.bias"])
    return functional.rms_norm(x, width, eps=1e-5)


def _linear(w: Weights, x: Any, name: str) -> Any:
    return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def loss(config: dict[str, Any], w: Weights, ids: Any, wanted: Any) -> Any:
    """Mean cross-entropy of `wanted` (B, T) after `ids` (B, T); `config` as in configs.CONFIGS."""
    gpt = config["model"] == "gpt"
    rows, length = ids.shape
    x = functional.embedding(ids, w["embed.weight"]) + w["positions.weight"][:length]
    if not gpt:
        x = _norm(config, w, x, "embed_norm")
    for i in range(config["layers"]):
        at = f"blocks.{i}"
        h = _norm(config, w, x, f"{at}.mixer_norm")
        q, k, v = (
            _linear(w, h, f"{at}.mixer.{p}").view(rows, length, config["heads"], -1).transpose(1, 2) for p in "qkv"
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + _linear(w, y.transpose(1, 2).reshape(rows, length, config["width"]), f"{at}.mixer.o")
        h = _linear(w, _norm(config, w, x, f"{at}.ffn_norm"), f"{at}.ffn.up")
        h = functional.gelu(h, approximate="tanh") if gpt else functional.relu(h)
        x = x + _linear(w, h, f"{at}.ffn.down")
    if gpt:
        x = _norm(config, w, x, "norm")
    head = w["embed.weight"] if gpt else w["head"]
    return functional.cross_entropy(functional.linear(x, head).flatten(0, 1).float(), wanted.flatten())


def adamw(w: Weights, settings: dict[str, float]) -> Any:
    """Fused AdamW with decay on matrices alone; `settings`: lr, beta1, beta2, eps, weight_decay."""
    groups = [
        {"params": [p for p in w.values() if p.ndim >= 2], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in w.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings["beta1"], settings["beta2"])
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings["lr"], betas=betas, eps=settings["eps"], fused=True
    )

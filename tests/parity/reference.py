"""What transformers computes on random weights, family by family; used live by `make parity` and for the golden files.

A family is a row in TINY: its configuration and the golden file that `python -m tests.parity.reference` writes for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()

LLAMA = {
    "vocab_size": 61, "max_position_embeddings": 24, "hidden_size": 32, "intermediate_size": 56,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 12,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 3.0, "original_max_position_embeddings": 8}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 8,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 2.5, 4.0],
}  # fmt: skip
# name -> (model_type, settings)
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "llama": ("llama", LLAMA),
    "llama_llama3": ("llama", {**LLAMA, "rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 12}),
    "llama_yarn": ("llama", {**LLAMA, "rope_parameters": YARN, "attention_bias": True, "mlp_bias": True}),
    "llama_linear": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 99.0, "factor": 2.5}}),
    "llama_dynamic": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 99.0, "factor": 3}}),
    "llama_longrope": ("llama", {**LLAMA, "rope_parameters": LONGROPE, "num_key_value_heads": 1}),
}
TEN_MILLION = {
    "gpt2": {"vocab_size": 4096, "n_positions": 64, "n_embd": 320, "n_layer": 7, "n_head": 5},
    "llama": {
        "vocab_size": 4096, "max_position_embeddings": 64, "hidden_size": 320, "intermediate_size": 896,
        "num_hidden_layers": 7, "num_attention_heads": 10, "num_key_value_heads": 5,
    },
}  # fmt: skip
GOLDEN = ("gpt2", "llama")
ADAMW = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}


def make(model_type: str, settings: dict[str, Any], seed: int) -> Any:
    """A model with every weight random, biases and norms too, so that no term can hide."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **settings, **NO_DROPOUT.get(model_type, {}))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "wte" not in name and "wpe" not in name and "embed" not in name:
                parameter.mul_(2.0)
    return model


def run(model: Any, batches: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Logits and gradients on the first batch (B, T+1), then the losses of one AdamW step a batch."""
    model.train()
    first = torch.from_numpy(batches[0].astype(np.int64))
    logits = model(first[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), first[:, 1:].flatten())
    loss.backward()
    result = {"logits": logits.detach().numpy()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        result[f"grad.{name}"] = parameter.grad.numpy().copy()
    model.zero_grad()
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    settings = dict(ADAMW)
    weight_decay = settings.pop("weight_decay")
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}], **settings
    )
    losses = []
    for batch in batches:
        ids = torch.from_numpy(batch.astype(np.int64))
        out = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    result["losses"] = np.array(losses)
    return result


def tokens(vocab: int, length: int, steps: int, batch: int, seed: int) -> np.ndarray[Any, Any]:
    """(steps, batch, length + 1) random ids: two batches in turn, so that the steps have something to learn."""
    rng = np.random.default_rng(seed)
    two = rng.integers(0, vocab, (2, batch, length + 1))
    return two[np.arange(steps) % 2].astype(np.int32)


def write_golden(name: str, path: Path) -> None:
    """Weights, inputs and results of a tiny model in one .npz file (no torch needed to read it)."""
    model_type, settings = TINY[name]
    model = make(model_type, settings, seed=1)
    ids = tokens(61, 24, 10, 3, seed=2)
    weights = {f"weight.{name}": p.detach().numpy().copy() for name, p in model.named_parameters()}
    np.savez_compressed(path, ids=ids, **weights, **run(model, ids))


if __name__ == "__main__":
    for each in GOLDEN:
        write_golden(each, Path(__file__).parents[1] / "golden" / f"{each}_tiny.npz")

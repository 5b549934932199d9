"""What transformers' GPT-2 computes on random weights; used live by `make parity` and to write the golden file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

TINY = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
TEN_MILLION = {"vocab_size": 4096, "n_positions": 64, "n_embd": 320, "n_layer": 7, "n_head": 5}
ADAMW = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def make(settings: dict[str, int], seed: int) -> GPT2LMHeadModel:
    """A model with every weight random, biases and norms too, so that no term can hide."""
    torch.manual_seed(seed)
    config = GPT2Config(**settings, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager")
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "wte" not in name and "wpe" not in name:
                parameter.mul_(2.0)
    return model


def run(model: GPT2LMHeadModel, batches: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
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


def tokens(settings: dict[str, int], steps: int, batch: int, seed: int) -> np.ndarray[Any, Any]:
    """(steps, batch, T+1) random ids: two batches in turn, so that the steps have something to learn."""
    rng = np.random.default_rng(seed)
    two = rng.integers(0, settings["vocab_size"], (2, batch, settings["n_positions"] + 1))
    return two[np.arange(steps) % 2].astype(np.int32)


def write_golden(path: Path) -> None:
    """Weights, inputs and results of the tiny model in one .npz file (no torch needed to read it)."""
    model = make(TINY, seed=1)
    ids = tokens(TINY, 10, 3, seed=2)
    weights = {f"weight.{name}": p.detach().numpy().copy() for name, p in model.named_parameters()}
    result = run(model, ids)
    np.savez_compressed(path, ids=ids, **weights, **result)


if __name__ == "__main__":
    write_golden(Path(__file__).parents[1] / "golden" / "gpt2_tiny.npz")

"""Runs our model on a reference's weights and inputs, and measures how far apart the results are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from microgpt import _kernels as k
from microgpt.io.names import from_file, to_file
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.nn import Ctx, Layout
from microgpt.optim import AdamW, Optimizer, decay_groups

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Distance:
    """Largest absolute logit error, per-tensor ‖Δ‖/‖g‖, and absolute error of each loss."""

    logits: float
    gradients: dict[str, float]
    losses: np.ndarray[Any, Any]


def distance(
    config: ModelConfig, weights: Arrays, ids: np.ndarray[Any, Any], want: Arrays, adamw: dict[str, Any], clip: float
) -> Distance:
    """`ids` (steps, B, T+1); `want` holds logits (B, T, V), grad.NAME in the file's names, losses (steps)."""
    family = FAMILIES.get(config.family)
    assert family.rules is not None
    rules = family.rules(config)
    model = Decoder(config)
    model.load_arrays(from_file(rules, weights, "reference", family.optional(config)))
    beta1, beta2 = adamw["betas"]
    optimizer = Optimizer(model, AdamW(beta1, beta2, adamw["eps"]), decay_groups(adamw["weight_decay"]), clip)
    batch, length = ids.shape[1], ids.shape[2] - 1
    layout = Layout.packed([length] * batch)

    def inputs(step: int) -> tuple[Any, Any]:
        return (
            k.from_numpy(ids[step, :, :-1].reshape(-1).astype(np.int32)),
            k.from_numpy(ids[step, :, 1:].reshape(-1).astype(np.int32)),
        )

    tokens, targets = inputs(0)
    logits = model.logits(model.hidden(tokens, Ctx(layout))).numpy().reshape(want["logits"].shape)
    model.loss(tokens, targets, Ctx(layout)).backward()
    ours = to_file(rules, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    gradients = {}
    for name, value in ours.items():
        wanted = want[f"grad.{name}"].astype(np.float64)
        gradients[name] = float(np.linalg.norm(value - wanted) / np.linalg.norm(wanted))
    optimizer.arenas.forget_gradients()
    losses = []
    for step in range(len(ids)):
        tokens, targets = inputs(step)
        optimizer.feed(step + 1, adamw["lr"])
        loss = model.loss(tokens, targets, Ctx(layout))
        loss.backward()
        optimizer.launch(loss)
        losses.append(loss.item())
    return Distance(
        float(np.abs(logits.astype(np.float64) - want["logits"]).max()), gradients, np.abs(losses - want["losses"])
    )

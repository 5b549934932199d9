"""Families against golden files that transformers wrote (tests/parity/reference.py); no PyTorch needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt.models.families import FAMILIES
from tests.parity.compare import distance

FOLDER = Path(__file__).parent / "golden"
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    },
    "llama": {
        "vocab_size": 61, "max_position_embeddings": 24, "hidden_size": 32, "intermediate_size": 56,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
ADAMW = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("name", SETTINGS)
def test_tiny_model_matches_transformers(name: str):
    stored = dict(np.load(FOLDER / f"{name}_tiny.npz"))
    weights = {key[7:]: value for key, value in stored.items() if key.startswith("weight.")}
    far = distance(FAMILIES.get(name).read(SETTINGS[name]), weights, stored["ids"], stored, ADAMW, clip=1.0)
    assert far.logits <= 1e-4
    assert {key: d for key, d in far.gradients.items() if d > 1e-4} == {}
    assert len(far.losses) == 10 and far.losses.max() <= 1e-5
    assert stored["losses"][-1] < stored["losses"][0] - 0.05  # the reference run really learned something

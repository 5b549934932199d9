"""GPT-2 against a golden file that transformers wrote (tests/parity/gpt2_reference.py); no PyTorch needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from microgpt.models.families.gpt2 import read
from tests.parity.compare import distance

GOLDEN = Path(__file__).parent / "golden" / "gpt2_tiny.npz"
SETTINGS = {
    "vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0,
}  # fmt: skip
ADAMW = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def test_tiny_gpt2_matches_transformers():
    stored = dict(np.load(GOLDEN))
    weights = {name[7:]: value for name, value in stored.items() if name.startswith("weight.")}
    far = distance(read(SETTINGS), weights, stored["ids"], stored, ADAMW, clip=1.0)
    assert far.logits <= 1e-4
    assert {name: d for name, d in far.gradients.items() if d > 1e-4} == {}
    assert len(far.losses) == 10 and far.losses.max() <= 1e-5
    assert stored["losses"][-1] < stored["losses"][0] - 0.05  # the reference run really learned something

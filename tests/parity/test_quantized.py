"""Quantized GGUF files beside llama.cpp: how far each is from a float64 forward of the same dequantized weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from microgpt.api import LanguageModel
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import open_checkpoint, take
from microgpt.models.quantized import weights_of
from microgpt.tokenizers.ids import IdsTokenizer
from tests.parity.test_llamacpp import CHILD, IDS, LLAMA


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_rounded_activations_cost_no_more_than_llamacpps(kind: str, tmp_path: Path):
    pytest.importorskip("cyllama", reason="needs cyllama (llama.cpp)")
    config = FAMILIES.get("llama").read({**LLAMA, "num_hidden_layers": 6, "initializer_range": 0.06})
    tokenizer = IdsTokenizer(512)
    path = tmp_path / "m.gguf"
    LanguageModel(Decoder(config, seed=3), tokenizer).export(path, type=kind)
    np.save(tmp_path / "ids.npy", np.array(IDS))
    child = [sys.executable, "-c", CHILD, "decoder", str(tmp_path / "ids.npy"), str(path)]
    subprocess.run(child, check=True, capture_output=True)
    theirs = np.load(str(path) + ".npy").astype(np.float64)
    found = open_checkpoint(path)
    truth = LanguageModel(take(found, "float64"), tokenizer).logits(IDS).astype(np.float64)
    ours = LanguageModel(take(found, keep=True), tokenizer)

    def error(logits: np.ndarray) -> float:
        return float(np.sqrt(((logits - truth) ** 2).mean()))

    rounded = error(ours.logits(IDS))
    for weight in weights_of(ours.decoder).values():
        weight.activations = "float"
    exact = float(np.abs(ours.logits(IDS) - truth).max())
    print(f"{kind}: ours {rounded:.5f}, llama.cpp {error(theirs):.5f}; with activations as they are {exact:.1e}")
    assert rounded <= 1.05 * error(theirs)
    assert exact <= 1e-4

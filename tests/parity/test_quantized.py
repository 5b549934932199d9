"""Quantized GGUF files beside llama.cpp: how far each is from a float64 forward of the same dequantized weights, and
files made of models that are quantized already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

import microgpt
from microgpt.api import LanguageModel
from microgpt.io.gguf import GgufFile
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import open_checkpoint, take
from microgpt.models.quantized import weights_of
from microgpt.qtensor import GGUF_TYPES
from microgpt.tokenizers.ids import IdsTokenizer
from tests.parity.test_llamacpp import CHILD, IDS, LLAMA

TOKENIZER = IdsTokenizer(512)


def model() -> LanguageModel:
    config = FAMILIES.get("llama").read({**LLAMA, "num_hidden_layers": 6, "initializer_range": 0.06})
    return LanguageModel(Decoder(config, seed=3), TOKENIZER)


def llamacpp(path: Path) -> np.ndarray:
    """Its logits (tokens, vocabulary), with keys and values in float32 and without flash attention."""
    np.save(path.with_suffix(".ids.npy"), np.array(IDS))
    child = [sys.executable, "-c", CHILD, "decoder", str(path.with_suffix(".ids.npy")), str(path)]
    subprocess.run(child, check=True, capture_output=True)
    return np.load(str(path) + ".npy").astype(np.float64)


def error(logits: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(((logits - truth) ** 2).mean()))


@pytest.mark.parametrize("kind", [name.lower() for name in GGUF_TYPES])
def test_rounded_activations_cost_no_more_than_llamacpps(kind: str, tmp_path: Path):
    path = tmp_path / "m.gguf"
    model().export(path, type=kind)
    theirs = llamacpp(path)
    found = open_checkpoint(path)
    truth = LanguageModel(take(found, "float64"), TOKENIZER).logits(IDS).astype(np.float64)
    ours = LanguageModel(take(found, keep=True), TOKENIZER)
    kinds = {weight.type.name for weight in weights_of(ours.decoder).values()}
    assert GGUF_TYPES[kind.upper()] in kinds and len(weights_of(ours.decoder)) == 2 + 7 * 6
    rounded = error(ours.logits(IDS), truth)
    for weight in weights_of(ours.decoder).values():
        weight.activations = "float"
    exact = float(np.abs(ours.logits(IDS) - truth).max())
    print(f"{kind}: ours {rounded:.5f}, llama.cpp {error(theirs, truth):.5f}, ratio "
          f"{rounded / error(theirs, truth):.3f}; with activations as they are {exact:.1e}")  # fmt: skip
    assert rounded <= 1.05 * error(theirs, truth)
    assert exact <= 1e-4


@pytest.mark.parametrize(("bits", "group", "kind"), [(4, 32, "Q4_0"), (4, 128, "Q4_0"), (8, 32, "Q8_0")])
def test_a_model_that_we_quantized_goes_to_llamacpp(bits: int, group: int, kind: str, tmp_path: Path):
    ours, path = model(), tmp_path / "m.gguf"
    microgpt.quantize(ours, bits, group)
    ours.export(path)
    found, reader = GgufFile(path), gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = weights_of(ours.decoder)
    for i in range(6):
        for name, theirs in (("mixer.v", "attn_v"), ("ffn.down", "ffn_down")):
            tensor = tensors[f"blk.{i}.{theirs}.weight"]
            assert found.tensors[tensor.name].kind.name == kind
            numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(numbers, weights[f"blocks.{i}.{name}.weight"].dequantize())
    truth = LanguageModel(take(open_checkpoint(path), "float64"), TOKENIZER).logits(IDS).astype(np.float64)
    theirs = error(llamacpp(path), truth)
    kept = LanguageModel(take(open_checkpoint(path), keep=True), TOKENIZER)  # activations in groups of 32
    assert error(kept.logits(IDS), truth) <= 1.05 * theirs and theirs < 0.05 * truth.std()
    assert group > 32 or np.array_equal(kept.logits(IDS), ours.logits(IDS))

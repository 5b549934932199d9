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


def model(seed: int = 3) -> LanguageModel:
    config = FAMILIES.get("llama").read({**LLAMA, "num_hidden_layers": 6, "initializer_range": 0.06})
    return LanguageModel(Decoder(config, seed=seed), TOKENIZER)


def llamacpp(*paths: Path) -> np.ndarray:
    """Its logits (models, tokens, vocabulary), with keys and values in float32 and without flash attention."""
    ids = paths[0].with_suffix(".ids.npy")
    np.save(ids, np.array(IDS))
    subprocess.run([sys.executable, "-c", CHILD, "decoder", ids, *paths], check=True, capture_output=True)
    return np.stack([np.load(f"{path}.npy") for path in paths]).astype(np.float64)


def error(logits: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(((logits - truth) ** 2).mean()))


@pytest.mark.parametrize("kind", [*(name.lower() for name in GGUF_TYPES), "q3_k_m", "q4_k_m", "q5_k_m"])
def test_rounded_activations_cost_no_more_than_llamacpps(kind: str, tmp_path: Path):
    """Of two models together: the ratio of one has a spread of 0.02."""
    paths = [tmp_path / f"{seed}.gguf" for seed in (3, 4)]
    truth, rounded, exact = [], [], []
    for seed, path in zip((3, 4), paths, strict=True):
        model(seed).export(path, type=kind)
        found = open_checkpoint(path)
        truth.append(LanguageModel(take(found, "float64"), TOKENIZER).logits(IDS).astype(np.float64))
        ours = LanguageModel(take(found, keep=True), TOKENIZER)
        weights = weights_of(ours.decoder).values()
        assert GGUF_TYPES[kind.removesuffix("_m").upper()] in {weight.type.name for weight in weights}
        assert len(weights) == 2 + 7 * 6
        rounded.append(ours.logits(IDS))
        for weight in weights:
            weight.activations = "float"
        exact.append(ours.logits(IDS))
    right = np.stack(truth)
    own, theirs = error(np.stack(rounded), right), error(llamacpp(*paths), right)
    far = float(np.abs(np.stack(exact) - right).max())
    print(
        f"{kind}: ours {own:.5f}, llama.cpp {theirs:.5f}, ratio {own / theirs:.3f}; activations as they are {far:.1e}"
    )
    assert own <= 1.05 * theirs
    assert far <= 1e-4


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
    theirs = error(llamacpp(path)[0], truth)
    kept = LanguageModel(take(open_checkpoint(path), keep=True), TOKENIZER)  # activations in groups of 32
    assert error(kept.logits(IDS), truth) <= 1.05 * theirs and theirs < 0.05 * truth.std()
    assert group > 32 or np.array_equal(kept.logits(IDS), ours.logits(IDS))

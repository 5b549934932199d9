"""GGUF beside gguf-py, live: `make parity`. Needs the package `gguf`."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import microgpt
from microgpt.io import ggml
from microgpt.io.ggml_quantize import quantize
from microgpt.io.gguf import GgufFile
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.gguf import FILE_TYPES, save_gguf
from microgpt.models.pretrained import open_checkpoint, take
from microgpt.qtensor import GGUF_TYPES, QTensor
from microgpt.tokenizers.ids import IdsTokenizer
from tests.parity import gguf_files as files
from tests.test_golden import SETTINGS
from tests.test_qtypes import blocks
from tests.test_quantized_experts import wide_experts


@pytest.mark.parametrize("name", files.known())
def test_dequantized_weights_have_its_bits(name: str):
    """On any bits at all, and on rows that are no multiple of the pieces that are turned at a time."""
    kind = ggml.NAMED[name]
    raw = files.blocks(name, 2 * ggml.CHUNK // kind.weights + 3, np.random.default_rng(1))
    got = ggml.dequantize(raw.reshape(-1), kind, (len(raw), kind.weights))
    assert np.array_equal(got.reshape(-1).view(np.uint32), files.meaning(name, raw))


@pytest.mark.parametrize("name", files.WRITTEN)
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e3])
def test_quantized_weights_have_its_bytes(name: str, scale: float):
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((300, 512)) * scale).astype(np.float32)
    x[:4, :32] = files.row(rng) * np.float32(scale)
    with np.errstate(all="ignore"):
        want = gguf.quantize(x, files.reference(name)).reshape(-1).view(np.uint8)
    assert np.array_equal(quantize(x, ggml.NAMED[name]), want)


@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_reads_what_we_write(tmp_path: Path, family: str, kind: str):
    """Every key and every tensor."""
    wide = {"llama": {"hidden_size": 256, "intermediate_size": 512}, "gpt2": {"n_embd": 256}}[family]
    model = Decoder(FAMILIES.get(family).read({**SETTINGS[family], **wide}), seed=1)
    path = microgpt.LanguageModel(model, IdsTokenizer(61, 1, 2)).export(tmp_path / "m.gguf", type=kind)
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    assert {t.name for t in theirs.tensors} == set(ours.tensors)
    for tensor in theirs.tensors:
        want = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        assert np.array_equal(ours.array(tensor.name).astype(np.float32).reshape(-1), want), tensor.name
        assert list(tensor.shape)[::-1] == list(ours.tensors[tensor.name].shape)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert field.contents() == ours.metadata[key] or np.allclose(field.contents(), ours.metadata[key]), key


def test_we_read_what_it_writes(tmp_path: Path):
    files.write_file(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (files.GOLDEN / "gguf_py.gguf").read_bytes()
    ours, theirs = GgufFile(tmp_path / "x.gguf"), gguf.GGUFReader(tmp_path / "x.gguf")
    for tensor in theirs.tensors:
        want = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.array(tensor.name).astype(np.float32).reshape(want.shape), want)


@pytest.mark.parametrize("kind", sorted(GGUF_TYPES))
def test_blocks_that_stay_quantized_have_the_numbers_of_gguf_py(kind: str) -> None:
    raw = blocks(kind, 40, 512)
    want = gguf.dequantize(raw, files.reference(kind)).reshape(40, 512)
    got = QTensor.from_ggml(kind, raw, (40, 512)).dequantize()
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize(
    ("family", "kind"), [("qwen3_moe", "q4_0"), ("olmoe", "q6_k"), ("gpt_oss", "q8_0"), ("qwen3_moe", "q4_k")]
)
def test_experts_that_stay_quantized_have_the_numbers_of_gguf_py(tmp_path: Path, family: str, kind: str) -> None:
    save_gguf(wide_experts(family, 256), tmp_path / "m.gguf", kind)
    tensors = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    theirs = {each.name: gguf.dequantize(each.data, each.tensor_type) for each in tensors}
    model = take(open_checkpoint(tmp_path / "m.gguf"), keep=True)
    for i, block in enumerate(model.blocks):
        for part in ("gate", "up", "down"):
            weight = getattr(block.ffn, part).weight
            assert isinstance(weight, QTensor)
            assert np.array_equal(weight.dequantize(), theirs[f"blk.{i}.ffn_{part}_exps.weight"])

"""GGUF files of models that are quantized already: the same blocks, or blocks of the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import microgpt
from microgpt.api import LanguageModel
from microgpt.errors import ConfigError
from microgpt.io import ggml
from microgpt.io.gguf import GgufFile
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.gguf_types import FILE_TYPES, base_of
from microgpt.models.quantized import weights_of
from microgpt.qtensor import QTensor
from microgpt.tokenizers.ids import IdsTokenizer
from tests.cli_tools import run
from tests.tiny_families import BASE

BLOCKS = [kind for kind in FILE_TYPES if base_of(kind).weights > 1]
SIZES = {**BASE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 61}


def model(**changes: object) -> LanguageModel:
    return LanguageModel(Decoder(FAMILIES.get("llama").read({**SIZES, **changes}), seed=1), IdsTokenizer(61))


@pytest.mark.parametrize("kind", BLOCKS)
def test_kept_blocks_are_written_byte_for_byte(tmp_path: Path, kind: str) -> None:
    """Those of q and k, whose rows are in another order here, too."""
    model().export(tmp_path / "first.gguf", type=kind)
    kept = microgpt.load(tmp_path / "first.gguf", quantize="keep")
    assert len(weights_of(kept.decoder)) == 2 + 7 * 2
    kept.export(tmp_path / "second.gguf")
    first, second = GgufFile(tmp_path / "first.gguf"), GgufFile(tmp_path / "second.gguf")
    assert {name: info.kind for name, info in first.tensors.items()} == {
        name: info.kind for name, info in second.tensors.items()
    }
    assert second.metadata["general.file_type"] == FILE_TYPES[kind.removesuffix("_m")]
    for name, stored in first.weights().items():
        again = second.weights()[name]
        if stored.blocks is None:
            assert np.array_equal(stored.array(), again.array()), name
        else:
            rows = stored.shape[0]
            assert again.blocks is not None and np.array_equal(stored.blocks[1](0, rows), again.blocks[1](0, rows)), (
                name
            )


@pytest.mark.parametrize(
    ("bits", "group", "kind"), [(4, 32, "Q4_0"), (4, 64, "Q4_0"), (8, 96, "Q8_0"), (8, 256, "Q8_0")]
)
def test_groups_of_a_multiple_of_32(tmp_path: Path, bits: int, group: int, kind: str) -> None:
    made = model(tie_word_embeddings=True)
    microgpt.quantize(made, bits, group)
    made.export(tmp_path / "m.gguf")
    found = GgufFile(tmp_path / "m.gguf")
    assert found.metadata["general.file_type"] == FILE_TYPES[kind.lower()]
    kinds = {name: info.kind.name for name, info in found.tensors.items()}
    assert kinds["token_embd.weight"] == "Q8_0" and kinds["blk.1.attn_q.weight"] == kind
    weights = weights_of(made.decoder)
    for i in range(2):
        for ours, theirs in (("mixer.v", "attn_v"), ("ffn.down", "ffn_down")):
            numbers = found.array(f"blk.{i}.{theirs}.weight")
            assert np.array_equal(numbers, weights[f"blocks.{i}.{ours}.weight"].dequantize())
    ids = [1, 5, 2, 9, 3]
    back = microgpt.load(tmp_path / "m.gguf", quantize="keep")
    for weight in [*weights.values(), *weights_of(back.decoder).values()]:
        weight.activations = "float"
    assert np.array_equal(back.logits(ids), made.logits(ids))


def test_experts(tmp_path: Path) -> None:
    """All experts of a layer are one tensor; their blocks come back with the same numbers, bit for bit."""
    config = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
    made = LanguageModel(Decoder(FAMILIES.get("mixtral").read(config), seed=1), IdsTokenizer(61))
    microgpt.quantize(made, 4)
    made.export(tmp_path / "experts.gguf")
    assert GgufFile(tmp_path / "experts.gguf").tensors["blk.0.ffn_down_exps.weight"].kind.name == "Q4_0"
    before = weights_of(made.decoder)
    after = weights_of(microgpt.load(tmp_path / "experts.gguf", quantize="keep").decoder)
    assert before.keys() == after.keys() and sum(each.ndim == 3 for each in before.values()) == 2 * 3
    for name, weight in before.items():
        for ours, again in zip(weight.matrices(), after[name].matrices(), strict=True):
            assert np.array_equal(ours.dequantize(), again.dequantize()), name


def test_scales_of_bfloat16() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (40, 128), np.uint8)
    scales = rng.normal(0, 0.02, (40, 2)).astype("bfloat16").astype(np.float32)
    weight = QTensor.pack("int4_bf16", codes, scales, group=64)
    assert weight.ggml_kind == "Q4_0"
    numbers = ggml.dequantize(weight.to_ggml().reshape(-1), ggml.NAMED["Q4_0"], (40, 128))
    assert np.array_equal(numbers, weight.dequantize())
    scales[3, 1] = 2.0**20  # beyond float16
    assert QTensor.pack("int4_bf16", codes, scales, group=64).ggml_kind is None


def test_what_no_block_holds_becomes_numbers(tmp_path: Path) -> None:
    made = model()
    microgpt.quantize(made, 4, 16)  # but tables, whose groups are of 16 too
    numbers = weights_of(made.decoder)["blocks.0.ffn.down.weight"].dequantize()
    with pytest.warns(UserWarning, match=r"quantized weights \(int4, int8\) that no blocks .* numbers of f16"):
        made.export(tmp_path / "m.gguf")
    assert GgufFile(tmp_path / "m.gguf").metadata["general.file_type"] == FILE_TYPES["f16"]
    made.export(tmp_path / "m.gguf", type="f32")  # which loses nothing
    assert np.array_equal(GgufFile(tmp_path / "m.gguf").array("blk.0.ffn_down.weight"), numbers)
    with pytest.raises(ConfigError, match="lost what q4_k would round"):
        made.export(tmp_path / "m.gguf", type="q4_k")
    codes, scales = np.zeros((8, 64), np.uint8), np.ones((8, 2), np.float32)
    order = np.arange(64)[::-1].copy()
    assert QTensor.pack("int4", codes, scales, permutation=order).ggml_kind is None
    assert QTensor.pack("zero4", codes, scales, zeros=np.zeros((8, 2), np.uint8)).ggml_kind is None
    assert QTensor.pack("int4", codes[:, :40], scales).ggml_kind is None  # no whole blocks


def test_the_command_keeps_blocks(tmp_path: Path) -> None:
    model().export(tmp_path / "m.gguf", type="q4_k_m")
    assert run("convert", str(tmp_path / "m.gguf"), str(tmp_path / "again.gguf"), "--type", "keep").exit_code == 0
    first, second = GgufFile(tmp_path / "m.gguf"), GgufFile(tmp_path / "again.gguf")
    assert [info.kind.name for info in first.tensors.values()] == [info.kind.name for info in second.tensors.values()]
    quantized = str(tmp_path / "quantized")
    assert run("quantize", str(tmp_path / "m.gguf"), "-o", quantized, "--filter", "*.down.weight=q6_k").exit_code == 0
    assert run("convert", quantized, str(tmp_path / "own.gguf")).exit_code == 0
    kinds = {name: info.kind.name for name, info in GgufFile(tmp_path / "own.gguf").tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == "Q6_K" and kinds["blk.0.ffn_up.weight"] == "Q4_0"

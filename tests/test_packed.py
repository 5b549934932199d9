"""Folders that others quantized: the exact numbers, kept quantized where a type holds them, and damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt.errors import CheckpointError, ConfigError, FormatError
from microgpt.io import safetensors
from microgpt.io.packed import opened
from microgpt.io.stored import Stored
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import open_checkpoint, save_decoder, take
from microgpt.tokenizers.char import CharTokenizer
from tests import packed_tools as made
from tests.format_tools import theirs
from tests.tiny_families import BASE

Tensors = made.Tensors
SHAPE = (48, 128)


def stored_of(tensors: Tensors) -> dict[str, Stored]:
    return {name: Stored(value.shape, value.dtype.name, lambda value=value: value) for name, value in tensors.items()}  # type: ignore[misc]


def named(tensors: Tensors) -> Tensors:
    return {f"w.{name}": value for name, value in tensors.items()}


def numbers(tensors: Tensors, settings: dict[str, Any]) -> np.ndarray:
    found = opened(stored_of(tensors), {"quantization_config": settings}, "here")
    assert set(found) == {"w.weight"}
    stored = found["w.weight"]
    whole = stored.array()
    assert whole.dtype == np.float32 and whole.shape == stored.shape
    if stored.rows is not None:
        assert np.array_equal(stored.rows(3, 17), whole[3:17])
    return whole


# -- layouts ---------------------------------------------------------------
@pytest.mark.parametrize("order", ["", "plain", "act"])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, version: str, order: str):
    tensors, meaning = made.gptq(SHAPE, bits, 32, np.random.default_rng(bits), version, order)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": version}
    assert np.array_equal(numbers(named(tensors), settings), meaning)


def test_gptq_with_a_scale_for_all_and_a_zero_point_beyond_the_codes():
    tensors, meaning = made.gptq(SHAPE, 4, 128, np.random.default_rng(0))
    settings = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    assert np.array_equal(numbers(named(tensors), settings), meaning)
    tensors["qzeros"] = np.full_like(tensors["qzeros"], -1)  # 15 less one means 16
    scale = np.repeat(tensors["scales"].astype(np.float32).T, 128, 1)
    got = numbers(named(tensors), settings)
    assert np.array_equal(got, meaning - scale * np.rint((meaning - got) / scale))
    assert got.max() < 0


@pytest.mark.parametrize("group", [32, 128])
def test_awq(group: int):
    tensors, meaning = made.awq(SHAPE, group, np.random.default_rng(0))
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    assert np.array_equal(numbers(named(tensors), settings), meaning)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("shape", "block"), [(SHAPE, 64), (SHAPE, 4096), ((5, 33), 64), ((300, 128), 64)])
def test_bitsandbytes(shape: tuple[int, int], block: int, double: bool):
    tensors, meaning = made.bitsandbytes("w.weight", shape, block, double, np.random.default_rng(0))
    found = opened(stored_of(tensors), {"quantization_config": {"quant_method": "bitsandbytes"}}, "here")
    assert set(found) == {"w.weight"}
    stored = found["w.weight"]
    assert np.array_equal(stored.array(), meaning)
    assert stored.rows is not None and np.array_equal(stored.rows(1, 4), meaning[1:4])


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_compressed_tensors(bits: int, dense: bool, zeros: bool):
    tensors, meaning = made.compressed(SHAPE, bits, 32, np.random.default_rng(0), zeros, dense, order=zeros)
    weights = {"num_bits": bits, "type": "int", "group_size": 32}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": weights}}}  # fmt: skip
    assert np.array_equal(numbers(named(tensors), settings), meaning)


def test_compressed_tensors_of_whole_bytes():
    tensors, meaning = made.int_quantized(SHAPE, np.random.default_rng(0))
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}}  # fmt: skip
    assert np.array_equal(numbers(named(tensors), settings), meaning)


# -- folders ---------------------------------------------------------------
def _gptq(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    tensors, meaning = made.gptq(shape, 4, 32, rng, order="act")
    return {f"{name}.{part}": value for part, value in tensors.items()}, meaning


def _awq(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    tensors, meaning = made.awq(shape, 32, rng)
    return {f"{name}.{part}": value for part, value in tensors.items()}, meaning


def _bnb(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    return made.bitsandbytes(f"{name}.weight", shape, 64, True, rng)


def _compressed(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    tensors, meaning = made.compressed(shape, 4, 32, rng)
    return {f"{name}.{part}": value for part, value in tensors.items()}, meaning


KINDS: dict[str, tuple[Callable[..., tuple[Tensors, np.ndarray]], dict[str, Any]]] = {
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}),
    "awq": (_awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "bitsandbytes": (_bnb, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "compressed": (_compressed, {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
    }),
}  # fmt: skip


def folder_of(kind: str, folder: Path) -> Decoder:
    """A Llama whose layers' matrices are quantized, and the model that it means."""
    values = {**BASE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = Decoder(FAMILIES.get("llama").read(values), seed=1)
    folder.mkdir()
    save_decoder(model, folder)
    CharTokenizer("abcdefgh \n").save(folder)
    pack, settings = KINDS[kind]
    own = {rule.theirs: rule.parts()[0] for rule in FAMILIES.get("llama").rules(model.config)}  # type: ignore[misc]
    rng, arrays, stored = np.random.default_rng(3), model.arrays(), {}
    for name, value in theirs(model).items():
        if value.ndim < 2 or "proj" not in name:
            stored[name] = value
            continue
        tensors, meaning = pack(name.removesuffix(".weight"), value.shape, rng)
        stored |= tensors
        arrays[own[name]][...] = meaning
    (folder / "model.safetensors").unlink()
    safetensors.save(folder / "model.safetensors", stored)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_folders(tmp_path: Path, kind: str):
    model = folder_of(kind, tmp_path / "m")
    read = take(open_checkpoint(tmp_path / "m"))
    for name, value in model.arrays().items():
        assert np.array_equal(read.arrays()[name], value), name
    again = microgpt.load(tmp_path / "m", quantize="int8")
    assert again.logits([1, 2, 3]).shape[0] == 3


# -- bad input -------------------------------------------------------------
def changed(kind: str, **change: Any) -> tuple[Tensors, dict[str, Any]]:
    pack, settings = KINDS[kind]
    tensors, _ = pack("w", SHAPE, np.random.default_rng(0))
    for name, value in change.items():
        key = next((each for each in tensors if each.endswith(name)), None)
        if key is None:
            settings = {**settings, name: value}
        elif value is None:
            del tensors[key]
        else:
            tensors[key] = value(tensors[key])
    return tensors, settings


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("gptq", {"bits": 5}, ConfigError, "bits"),
    ("gptq", {"bits": "4"}, ConfigError, "bits"),
    ("gptq", {"group_size": 0}, ConfigError, "group_size"),
    ("gptq", {"group_size": 64}, FormatError, "scales"),
    ("gptq", {"checkpoint_format": "marlin"}, ConfigError, "checkpoint_format"),
    ("gptq", {"qzeros": None}, FormatError, "qzeros is missing"),
    ("gptq", {"qzeros": lambda a: a[:, :-1]}, FormatError, "do not fit"),
    ("gptq", {"qweight": lambda a: a.astype(np.int64)}, FormatError, "int32"),
    ("gptq", {"qweight": lambda a: a[:0]}, FormatError, "does not fit"),
    ("gptq", {"scales": lambda a: a[0]}, FormatError, "does not fit"),
    ("gptq", {"g_idx": lambda a: a + 1}, FormatError, "0 to 3"),
    ("gptq", {"g_idx": lambda a: a[1:]}, FormatError, "g_idx"),
    ("awq", {"version": "gemv"}, ConfigError, "gemm"),
    ("awq", {"bits": 8}, ConfigError, "bits"),
    ("awq", {"qzeros": lambda a: a.T}, FormatError, "do not fit"),
    ("awq", {"scales": None}, FormatError, "scales is missing"),
    ("bitsandbytes", {"load_in_8bit": True}, ConfigError, "8-bit"),
    ("bitsandbytes", {"w.weight": lambda a: a[1:]}, FormatError, "do not fit"),
    ("bitsandbytes", {"nested_absmax": None}, FormatError, "nested_absmax"),
    ("bitsandbytes", {"nested_absmax": lambda a: a[:0]}, FormatError, "nested_absmax"),
    ("bitsandbytes", {"nested_quant_map": lambda a: a[1:]}, FormatError, "256"),
    ("bitsandbytes", {"quant_map": lambda a: a[1:]}, FormatError, "16"),
    ("bitsandbytes", {"nf4": lambda a: a[:-3]}, FormatError, "JSON"),
    ("bitsandbytes", {"nf4": lambda a: np.frombuffer(b"[]", np.uint8)}, FormatError, "object"),
    ("bitsandbytes", {"nf4": lambda a: np.frombuffer(b'{"blocksize": 64, "shape": [4, -4]}', np.uint8)}, FormatError,
     "shape"),
    ("compressed", {"format": "float-quantized"}, ConfigError, "pack-quantized"),
    ("compressed", {"config_groups": {"a": {"weights": {"num_bits": 9}}}}, ConfigError, "num_bits"),
    ("compressed", {"config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}}}, ConfigError, "float"),
    ("compressed", {"weight_packed": lambda a: a[:, 1:]}, FormatError, "words do not hold"),
    ("compressed", {"weight_shape": lambda a: np.array([48, 1 << 40])}, FormatError, "do not fit"),
    ("compressed", {"weight_scale": lambda a: a[1:]}, FormatError, "do not fit"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "error", "words"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)])
def test_what_does_not_fit_is_named(kind: str, change: dict[str, Any], error: type[Exception], words: str):
    tensors, settings = changed(kind, **change)
    with pytest.raises(error, match=words):
        opened(stored_of(tensors), {"quantization_config": settings}, "here")["w.weight"].array()


def test_matrices_that_do_not_fit_the_model(tmp_path: Path):
    folder_of("gptq", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(CheckpointError, match="down_proj"):
        open_checkpoint(tmp_path / "m")

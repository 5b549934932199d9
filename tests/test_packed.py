"""Folders that others quantized: the exact numbers, kept quantized where a type holds them, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt.errors import CheckpointError, ConfigError, FormatError
from microgpt.io.packed import opened
from microgpt.io.stored import Stored
from microgpt.models.kept import from_packed
from microgpt.models.pretrained import open_checkpoint, take
from microgpt.models.quantized import Scheme, places, weights_of
from microgpt.qtensor import QTensor
from microgpt.tensors import numpy_dtype
from tests import packed_tools as made
from tests.format_tools import a_model, mlx
from tests.packed_tools import KINDS, folder_of

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
@pytest.mark.parametrize("kind", KINDS)
def test_folders(tmp_path: Path, kind: str):
    model = folder_of(kind, tmp_path / "m")
    read = take(open_checkpoint(tmp_path / "m"))
    for name, value in model.arrays().items():
        assert np.array_equal(read.arrays()[name], value), name
    again = microgpt.load(tmp_path / "m", quantize="int8")
    assert again.logits([1, 2, 3]).shape[0] == 3
    with pytest.raises(ConfigError, match="matches no weight"):
        microgpt.load(tmp_path / "m", quantize=Scheme("int4", "int8", 32, (("x", "int8"),)))


TYPES = {"gptq": "zero4", "awq": "zero4", "bitsandbytes": "nf4_double", "compressed": "int4_bf16"}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_stay_quantized(tmp_path: Path, kind: str):
    model = folder_of(kind, tmp_path / "m")
    kept = microgpt.load(tmp_path / "m", quantize="keep")
    found = weights_of(kept.decoder)
    assert set(found) == {name for name in places(model) if name.startswith("blocks")}
    for name, weight in found.items():
        assert weight.type.name == TYPES[kind], name
        assert np.array_equal(weight.dequantize(), model.arrays()[name]), name
    for weight in found.values():  # the source's own bits: codes, scales and zero points; order and tables beside them
        groups, beside = weight.size // weight.group, {"zero4": 4 * weight.shape[1], "nf4_double": 4 * (16 + 257)}
        each = {"zero4": 2.5, "int4_bf16": 2, "nf4_double": 1}[weight.type.name]
        most = weight.size / 2 + groups * each + (0 if kind == "awq" else beside.get(weight.type.name, 0)) + 4
        assert weight.nbytes <= most, (weight, most)
    kept.save(tmp_path / "saved")
    again = microgpt.load(tmp_path / "saved")
    assert np.array_equal(again.logits([1, 5, 2]), kept.logits([1, 5, 2]))


@pytest.mark.parametrize("float_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_folders_stay_quantized(tmp_path: Path, bits: int, float_type: str):
    model = a_model(family="llama")
    mlx(model, tmp_path / "m", bits, float_type=numpy_dtype(float_type))
    found = weights_of(take(open_checkpoint(tmp_path / "m"), keep=True))
    assert set(found) == set(places(model))
    for name, weight in found.items():
        assert weight.type.name == f"affine{bits}" + ("_bf16" if float_type == "bfloat16" else "")
        assert np.array_equal(weight.dequantize(), model.arrays()[name]), name


def kept(tensors: Tensors, settings: dict[str, Any]) -> QTensor | None:
    found = opened(stored_of(named(tensors)), {"quantization_config": settings}, "here")["w.weight"]
    made = from_packed(found.packed, "float32")
    if made is not None:
        assert np.array_equal(made.dequantize(), found.array())
    return made


def test_the_type_that_holds_a_matrix():
    rng = np.random.default_rng(0)
    gptq = {"quant_method": "gptq", "group_size": 32}
    for bits, symmetric, floats, order, type in (
        (4, True, "float16", "", "int4"),
        (4, True, "bfloat16", "act", "int4_bf16"),
        (8, False, "float16", "act", "zero8"),
        (4, False, "bfloat16", "plain", "zero4_bf16"),
        (3, True, "float16", "", None),
        (4, True, "float32", "", None),
    ):
        tensors, _ = made.gptq(SHAPE, bits, 32, rng, order=order, symmetric=symmetric, floats=floats)
        weight = kept(tensors, {**gptq, "bits": bits})
        assert (None if weight is None else weight.type.name) == type
    tensors, _ = made.gptq(SHAPE, 4, 32, rng, order="act")
    tensors["g_idx"][tensors["g_idx"] == 0] = 1  # groups of other sizes
    assert kept(tensors, {**gptq, "bits": 4}) is None
    tensors, _ = made.gptq(SHAPE, 4, 32, rng)
    tensors["qzeros"][0, 0] = -1  # 15 less one means 16, which no code is
    assert kept(tensors, {**gptq, "bits": 4}) is None
    tensors, _ = made.int_quantized(SHAPE, rng)
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized",
                "config_groups": {"g": {"weights": {"num_bits": 8}}}}  # fmt: skip
    weight = kept(tensors, settings)
    assert weight is not None and weight.type.name == "int8_channel"
    for block, double, type in ((64, False, "nf4"), (64, True, "nf4_double"), (4096, True, None)):
        tensors, meaning = made.bitsandbytes("w.weight", SHAPE, block, double, rng)
        stored = opened(stored_of(tensors), {"quantization_config": {"quant_method": "bitsandbytes"}}, "here")
        packed = stored["w.weight"].packed
        weight = None if packed is None else from_packed(packed, "float32")
        assert (None if weight is None else weight.type.name) == type
        assert weight is None or np.array_equal(weight.dequantize(), meaning)


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

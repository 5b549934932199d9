"""GGUF files and their element types: against golden files of gguf-py, and files that are wrong in every way."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from microgpt.errors import FormatError, NonFiniteError, ShapeError, StorageError
from microgpt.io import files, ggml, gguf, gguf_writer
from microgpt.io.ggml import NAMED
from microgpt.io.ggml_quantize import ENCODERS, quantize
from microgpt.io.gguf import GgufFile
from microgpt.io.gguf_writer import Planned

GOLDEN = Path(__file__).parent / "golden"
STORED = dict(np.load(GOLDEN / "ggml.npz"))
U64 = 2**64 - 1


# --- element types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [key[4:] for key in STORED if key.startswith("raw.")])
def test_blocks_mean_what_gguf_py_says(name: str) -> None:
    raw, kind = STORED[f"raw.{name}"], NAMED[name]
    got = ggml.dequantize(raw.reshape(-1), kind, (1, kind.weights))
    assert np.array_equal(got.reshape(-1).view(np.uint32), STORED[f"bits.{name}"])
    out = np.empty((3, kind.weights), np.float32)
    assert ggml.dequantize(np.tile(raw.reshape(-1), 3), kind, (3, kind.weights), out) is out
    assert np.array_equal(out[2].view(np.uint32), STORED[f"bits.{name}"])


def test_every_type_of_the_specification_is_there() -> None:
    assert sorted(NAMED) == sorted(
        "F32 F16 BF16 F64 I8 I16 I32 I64 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
    )


@pytest.mark.parametrize("name", [key[6:] for key in STORED if key.startswith("bytes.")])
def test_rows_are_quantized_to_the_bytes_of_gguf_py(name: str) -> None:
    assert np.array_equal(quantize(STORED["row"], NAMED[name]), STORED[f"bytes.{name}"])


@pytest.mark.parametrize("name", ["F32", "F64", "I8", "I16", "I32", "I64"])
def test_plain_numbers(name: str) -> None:
    values = np.array([[1, -2, 3], [0, 100, -128]])
    raw = quantize(values, NAMED[name])
    assert raw.size == 6 * NAMED[name].block_bytes
    assert np.array_equal(ggml.dequantize(raw, NAMED[name], (2, 3)), values)


def relative_error(name: str, x: np.ndarray[Any, Any], importance: np.ndarray[Any, Any] | None = None) -> float:
    back = ggml.dequantize(quantize(x, NAMED[name], importance), NAMED[name], x.shape)
    return float(np.sqrt(np.mean((x - back) ** 2) / np.mean(x**2)))


# Of 16 rows of 2,048 numbers (seed 3) by llama.cpp's own quantizer (b9190, ggml_quantize_chunk): normal, Laplace.
LLAMACPP: dict[str, tuple[float, float]] = {
    "Q4_0": (0.085434, 0.106573), "Q4_1": (0.077283, 0.091619), "Q5_0": (0.042457, 0.053703),
    "Q5_1": (0.037677, 0.044254), "Q8_0": (0.005329, 0.006725), "Q2_K": (0.293972, 0.339098),
    "Q3_K": (0.149917, 0.17589), "Q4_K": (0.070333, 0.084212), "Q5_K": (0.035917, 0.042718),
    "Q6_K": (0.017539, 0.021694), "IQ4_NL": (0.075507, 0.088038), "IQ4_XS": (0.076086, 0.0887),
    "MXFP4": (0.115368, 0.127642),
}  # fmt: skip


PLAINLY = ("Q4_0", "Q5_0", "Q8_0")  # have gguf-py's bytes unless there is an importance of columns


@pytest.mark.parametrize("name", ENCODERS)
def test_errors_are_no_larger_than_llamacpps(name: str) -> None:
    importance = np.ones(2048) if name in PLAINLY else None
    for spread, theirs in zip(("normal", "laplace"), LLAMACPP[name], strict=True):
        x = getattr(np.random.default_rng(3), spread)(size=(16, 2048)).astype(np.float32)
        assert 0.7 * theirs < relative_error(name, x, importance) <= theirs


@pytest.mark.parametrize("name", ENCODERS)
def test_columns_that_matter_are_rounded_better(name: str) -> None:
    rng = np.random.default_rng(5)
    x, importance = rng.normal(size=(32, 512)).astype(np.float32), np.exp(2 * rng.normal(size=512))
    kind = NAMED[name]

    def error(raw: np.ndarray[Any, Any]) -> float:
        return float((importance * (ggml.dequantize(raw, kind, x.shape) - x) ** 2).sum())

    assert error(quantize(x, kind, importance)) < error(quantize(x, kind))
    if name not in PLAINLY:
        assert np.array_equal(quantize(x, kind, np.ones(512)), quantize(x, kind))
    with pytest.raises(ShapeError, match="a number for each of 512 columns"):
        quantize(x, kind, importance[:256])


@pytest.mark.parametrize("name", ENCODERS)
def test_what_the_blocks_hold_exactly_comes_back(name: str) -> None:
    """Weights on a grid that the type has, with scales that are powers of two, both ends of the range in each group."""
    kind, rng = NAMED[name], np.random.default_rng(4)
    size = 16 if name in ("Q2_K", "Q3_K", "Q6_K") else 32
    low, high = RANGES[name]
    if name.startswith("IQ4") or name == "MXFP4":
        entries = ggml.IQ4_VALUES if name.startswith("IQ4") else ggml.MXFP4_VALUES
        whole = entries[rng.integers(0, 16, (8, 256 // size, size))]
        low, high = int(entries.min()), int(entries.max())
    else:
        whole = rng.integers(low, high + 1, (8, 256 // size, size))
    whole[:, :, 0], whole[:, :, 1] = low, high
    # Parts' scales of half the most that a block's integers hold, and of the most.
    most = {"Q2_K": 15, "Q3_K": -32, "Q4_K": 63, "Q5_K": 63, "Q6_K": -128, "IQ4_XS": -32}.get(name, 2)
    x = whole * np.where(np.arange(256 // size) % 2, most, most // 2 if kind.weights == 256 else 1)[:, None] / 64
    x = x.astype(np.float32).reshape(8, 256)
    assert np.array_equal(ggml.dequantize(quantize(x, kind), kind, x.shape), x)
    zero = np.zeros((1, 256), np.float32)
    assert np.array_equal(ggml.dequantize(quantize(zero, kind), kind, zero.shape), zero)


RANGES = {
    "Q4_0": (-8, 7), "Q4_1": (0, 15), "Q5_0": (-16, 15), "Q5_1": (0, 31), "Q8_0": (-127, 127), "Q2_K": (0, 3),
    "Q3_K": (-4, 3), "Q4_K": (0, 15), "Q5_K": (0, 31), "Q6_K": (-32, 31), "IQ4_NL": (0, 0), "IQ4_XS": (0, 0),
    "MXFP4": (0, 0),
}  # fmt: skip


def test_errors_of_types() -> None:
    with pytest.raises(ShapeError, match="rows of Q4_K expected a multiple of 256 numbers, got 128"):
        quantize(np.zeros((2, 128), np.float32), NAMED["Q4_K"])
    with pytest.raises(ShapeError, match=r"Q8_0 of shape \(2, 32\): got 67 bytes"):
        ggml.dequantize(np.zeros(67, np.uint8), NAMED["Q8_0"], (2, 32))
    for name in ENCODERS:
        for bad in (np.nan, np.inf):
            with pytest.raises(NonFiniteError, match=f"finite numbers for {name}"):
                quantize(np.full((1, 256), bad, np.float32), NAMED[name])
        if name == "MXFP4":  # whose scales are powers of two up to 2^127
            continue
        with pytest.raises(NonFiniteError, match="beyond float16"):
            quantize(np.full((1, 256), -3e38, np.float32), NAMED[name])


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_file_of_gguf_py() -> None:
    found = GgufFile(GOLDEN / "gguf_py.gguf")
    assert found.version == 3 and found.alignment == 32
    assert found.metadata["general.architecture"] == "llama" and found.metadata["a.string"] == "ünïcode"
    numbers = {
        "uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 4_000_000_000,
        "int32": -2_000_000_000, "uint64": 2**63, "int64": -(2**62), "float64": 0.1, "bool": True,
    }  # fmt: skip
    assert {key: found.metadata[f"a.{key}"] for key in numbers} == numbers
    assert found.metadata["a.float32"] == np.float32(0.1)
    assert found.metadata["b.strings"] == ["", "a", "βγ"]
    assert [found.metadata[f"b.{key}"].tolist() for key in ("ints", "floats", "bools")] == [
        [1, -2, 3], [0.5, -1.5], [True, False],
    ]  # fmt: skip
    rng = np.random.default_rng(6)
    assert np.array_equal(found.array("x.f32"), rng.standard_normal((3, 5)).astype(np.float32))
    assert np.array_equal(found.array("x.f16"), rng.standard_normal((2, 3, 4)).astype(np.float16))
    x = rng.standard_normal((2, 64)).astype(np.float32)
    largest = np.abs(x).max()
    # Half a step of the largest scale (1/127 of the range, with float16's rounding), half of bfloat16's last bit.
    assert np.abs(found.array("x.q8_0") - x).max() <= largest * (0.5 + 2.0**-11 * 127) / 127
    bf16 = found.array("x.bf16")
    assert bf16.dtype == ml_dtypes.bfloat16 and bf16.shape == (2, 64)
    assert {name: (stored.shape, stored.dtype) for name, stored in found.weights().items()} == {
        "x.f32": ((3, 5), "float32"), "x.f16": ((2, 3, 4), "float16"), "x.q8_0": ((2, 64), "float32"),
        "x.bf16": ((2, 64), "bfloat16"),
    }  # fmt: skip


def test_written_files_are_read_back(tmp_path: Path) -> None:
    metadata: dict[str, Any] = {
        "general.architecture": "x", "flag": False, "small": 7, "negative": -7, "large": 2**40, "most": U64,
        "least": -(2**63), "real": 0.25, "wide": np.float64(0.1), "byte": np.uint8(3), "strings": ["a", "ü"],
        "ints": [1, -2], "reals": [0.5], "array": np.array([1, 2], np.uint64), "none": [],
    }  # fmt: skip
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    y = np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32)
    plan = [
        Planned("x", x.shape, NAMED["F32"], lambda: x),
        Planned("y", y.shape, NAMED["Q8_0"], lambda: y),
        Planned("scalar", (), NAMED["F32"], lambda: np.array(2.5, np.float32)),
    ]
    size = gguf_writer.write(tmp_path / "m.gguf", metadata, plan)
    assert size == (tmp_path / "m.gguf").stat().st_size and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    found = GgufFile(tmp_path / "m.gguf")
    for key, value in metadata.items():
        got = found.metadata[key]
        same = np.array_equal(got, value) if isinstance(got, np.ndarray) else got == value
        assert same and isinstance(got, bool) == isinstance(value, bool), key
    assert np.array_equal(found.array("x"), x) and found.array("scalar") == 2.5
    assert np.array_equal(found.raw("y"), quantize(y, NAMED["Q8_0"]))
    assert np.array_equal(found.rows("y", 7, 9), found.array("y")[7:9])
    gguf_writer.write(tmp_path / "m.gguf", {}, [])  # replaces it
    assert GgufFile(tmp_path / "m.gguf").tensors == {}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    gguf_writer.write(path, {"a": 1}, [])
    good = path.read_bytes()
    x = np.zeros((2, 2), np.float32)

    def broken() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf_writer.write(path, {}, [Planned("x", (2, 2), NAMED["F32"], broken)])
    with pytest.raises(FormatError, match=r"'x': expected shape \(3, 2\), got \(2, 2\)"):
        gguf_writer.write(path, {}, [Planned("x", (3, 2), NAMED["F32"], lambda: x)])
    for bad, message in [
        ({"a": object()}, "'a': GGUF has no type"),
        ({"a": 2**64}, "'a': GGUF has no type"),
        ({"a": np.zeros((2, 2))}, "'a': expected a list"),
    ]:
        with pytest.raises(FormatError, match=message):
            gguf_writer.write(path, bad, [])
    twice = [Planned("x", (2, 2), NAMED["F32"], lambda: x)] * 2
    with pytest.raises(FormatError, match=r"'x'.*each name once"):
        gguf_writer.write(path, {}, twice)
    monkeypatch.setattr(files, "rename", lambda old, new: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="ENOSPC"):
        gguf_writer.write(path, {}, twice[:1])
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


# --- files that are wrong ---------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, code: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", code) + data


def tensor(name: str | bytes = "x", shape: tuple[int, ...] = (4,), code: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, offset)


def a_file(
    keys: list[bytes] = [],  # noqa: B006
    tensors: list[bytes] = [],  # noqa: B006
    data: int = 0,
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
) -> bytes:
    count_tensors, count_keys = (
        own if own is not None else len(listed) for own, listed in zip(counts, (tensors, keys), strict=True)
    )
    head = b"GGUF" + struct.pack("<IQQ", version, count_tensors, count_keys) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data if tensors else 0)


def align(value: int, code: int = 4) -> list[bytes]:
    return [entry("general.alignment", code, value.to_bytes(4, "little"))]


GOOD = a_file(align(32), [tensor()], 16)
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated at byte 0"),
    "magic": (b"GGML" + GOOD[4:], "not a GGUF file"),
    "version_0": (a_file(version=0), "version.* expected 2 or 3, got 0"),
    "version_1": (a_file(version=1), "version.* expected 2 or 3, got 1"),
    "version_99": (a_file(version=99), "expected 2 or 3, got 99"),
    "big_endian": (a_file(version=3 << 24), "it is big-endian"),
    "n_tensors_u64max": (a_file(counts=(U64, 0)), "number of tensors.* at most 0"),
    "n_kv_u64max": (a_file(counts=(0, U64)), "number of metadata keys"),
    "n_tensors_too_many": (a_file(counts=(2, 0), tensors=[tensor()], data=16), "truncated|length|number of tensors"),
    "key_len_u64max": (a_file([struct.pack("<Q", U64) + b"abcde"]), "length of a metadata key"),
    "key_too_long": (a_file([entry("k" * 1025, 0, b"\0")]), "length of a metadata key.* at most 1024, got 1025"),
    "key_not_utf8": (a_file([entry(b"\xff\xfe", 0, b"\0")]), "a metadata key.*UTF-8"),
    "str_len_2e63": (a_file([entry("k", 8, struct.pack("<Q", 2**63))]), "length of 'k'"),
    "value_not_utf8": (a_file([entry("k", 8, text(b"a\xc3"))]), "'k'.*UTF-8"),
    "value_type_13": (a_file([entry("k", 13, bytes(8))]), "type of 'k'.* 0 to 12, got 13"),
    "bool_2": (a_file([entry("k", 7, b"\2")]), "bool of 0 or 1, got 2"),
    "bools_2": (a_file([entry("k", 9, struct.pack("<IQ", 7, 2) + b"\1\2")]), "bools of 0 or 1, got 2"),
    "arr_len_2e60": (a_file([entry("k", 9, struct.pack("<IQ", 0, 2**60) + bytes(9))]), "length of 'k'.* got 115292150"),
    "arr_len_times_8_wraps": (a_file([entry("k", 9, struct.pack("<IQ", 10, 2**61) + bytes(9))]), "length of 'k'"),
    "arr_strings_2e24": (a_file([entry("k", 9, struct.pack("<IQ", 8, 2**24) + bytes(80))]), "at most 10, got"),
    "arr_type_99": (a_file([entry("k", 9, struct.pack("<IQ", 99, 1) + bytes(8))]), "element type of 'k'"),
    "arr_too_deep": (a_file([entry("k", 9, struct.pack("<IQ", 9, 1) * 9 + bytes(99))]), "at most 4 arrays"),
    "align_0": (a_file(align(0)), "general.alignment.* got 0"),
    "align_13": (a_file(align(13)), "general.alignment.* got 13"),
    "align_4": (a_file(align(4)), "general.alignment.* got 4"),
    "align_0x80000000": (a_file(align(1 << 31)), "general.alignment.* got 2147483648"),
    "align_int32_type": (a_file(align(64, 5)), "general.alignment.* a value of type 5"),
    "dim_0": (a_file([], [tensor(shape=(4, 0))], 32), "lengths of at least 1"),
    "dim_neg": (a_file([], [tensor(shape=(U64, 4))], 32), "shape of 'x'.* at most"),
    "dim_2e42p1": (a_file([], [tensor(shape=(2**42 + 1, 2**22))], 32), "shape of 'x'.* at most"),
    "two_dims_7FFF": (a_file([], [tensor(shape=(0x7FFFFFFFFFFFFFC0, 0x7FFFFFFFFFFFFFC0))], 32), "shape of 'x'"),
    "five_axes": (a_file([], [tensor(shape=(1, 1, 1, 1, 1))], 32), "number of axes of 'x'.* at most 4, got 5"),
    "axes_u32max": (a_file([], [text("x") + struct.pack("<I", 2**32 - 1) + bytes(40)], 32), "number of axes"),
    "type_255": (a_file([], [tensor(code=255)], 32), "type of 'x'.* got number 255"),
    "type_removed": (a_file([], [tensor(code=4)], 32), "type of 'x'.* got number 4"),
    "half_a_block": (a_file([], [tensor(shape=(33,), code=8)], 64), "rows of 'x'.* multiple of 32"),
    "offset_past_eof": (a_file([], [tensor(offset=1 << 40)], 32), "offset of 'x': expected 0"),
    "offset_u64max": (a_file([], [tensor(offset=U64 - 31)], 32), "offset of 'x': expected 0"),
    "offset_unaligned": (a_file([], [tensor(offset=8)], 64), "offset of 'x': expected 0, got 8"),
    "overlap": (a_file([], [tensor("a"), tensor("b", offset=0)], 64), "offset of 'b': expected 32, got 0"),
    "gap": (a_file([], [tensor("a"), tensor("b", offset=64)], 96), "offset of 'b': expected 32, got 64"),
    "size_past_eof": (a_file([], [tensor(shape=(16,))], 60), "truncated: 'x' takes 64 bytes, 60 are left"),
    "trailing": (a_file([], [tensor()], 33), "1 bytes behind the last tensor"),
    "a_zip_behind": (a_file([], [tensor()], 32) + b"PK\3\4" * 20, "80 bytes behind the last tensor"),
    "dup_key": (a_file([entry("k", 0, b"\0"), entry("k", 1, b"\0")]), "'k'.* each key once"),
    "dup_tensor": (a_file([], [tensor(), tensor(offset=32)], 64), "'x'.* each name once"),
    "name_too_long": (a_file([], [tensor("n" * 1025)], 32), "length of a tensor's name"),
    "name_not_utf8": (a_file([], [tensor(b"\xff")], 32), "a tensor's name.*UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    data, message = WRONG[name]
    (tmp_path / "x.gguf").write_bytes(data)
    started = time.process_time()
    with pytest.raises(FormatError, match=message) as caught:
        GgufFile(tmp_path / "x.gguf")
    assert time.process_time() - started < 0.1
    assert "x.gguf: " in str(caught.value) and len(str(caught.value)) < 500


def test_a_good_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(GOOD)
    assert GgufFile(path).array("x").tolist() == [0.0] * 4
    whole = (GOLDEN / "gguf_py.gguf").read_bytes()
    last = GgufFile(GOLDEN / "gguf_py.gguf").tensors["x.bf16"]
    for length in range(last.start + last.bytes):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"truncated|at most|expected"):
            GgufFile(path)
    for bad in (tmp_path, tmp_path / "none", Path("/dev/zero")):
        with pytest.raises(FormatError, match="cannot read"):
            GgufFile(bad)


def test_a_large_good_header_is_read_in_linear_time(tmp_path: Path) -> None:
    """100,000 tensors and a vocabulary of 1,000,000 strings, the limit of the first: seconds, not minutes."""
    strings = b"".join(text(f"t{i}") for i in range(1_000_000))
    keys = [entry("v", 9, struct.pack("<IQ", 8, 1_000_000) + strings)]
    rows = [tensor(f"blk.{i}", (1,), 0, 32 * i) for i in range(gguf.MOST_TENSORS)]
    (tmp_path / "x.gguf").write_bytes(a_file(keys, rows, 32 * len(rows)))
    started = time.process_time()
    found = GgufFile(tmp_path / "x.gguf")
    assert time.process_time() - started < 10.0
    assert len(found.tensors) == 100_000 and found.metadata["v"][-1] == "t999999"
    (tmp_path / "x.gguf").write_bytes(a_file(keys, [*rows, tensor("y", (1,), 0, 32 * len(rows))], 32 * len(rows) + 32))
    started = time.process_time()
    with pytest.raises(FormatError, match=r"number of tensors.* at most 100000, got 100001"):
        GgufFile(tmp_path / "x.gguf")
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("window", [1, 7, 64, 1 << 20])
def test_a_header_is_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    whole = GgufFile(GOLDEN / "gguf_py.gguf")
    monkeypatch.setattr(gguf, "WINDOW", window)
    found = GgufFile(GOLDEN / "gguf_py.gguf")
    assert found.metadata["b.strings"] == ["", "a", "\u03b2\u03b3"] and found.tensors == whole.tensors
    assert found.metadata["b.ints"].tolist() == [1, -2, 3] and found.metadata["a.string"] == "\u00fcn\u00efcode"
    assert np.array_equal(found.array("x.f32"), whole.array("x.f32"))


def test_typed_look_ups() -> None:
    found = GgufFile(GOLDEN / "gguf_py.gguf")
    assert found.get("a.bool", (int, bool)) is True
    assert found.get("a.uint8", int) == 200 and found.get("none", int, None) is None
    for key, kind, message in [
        ("none", int, "missing metadata key 'none'"),
        ("a.bool", int, "'a.bool' expected int, got bool"),
        ("a.string", (int, float), "'a.string' expected int or float, got str"),
    ]:
        with pytest.raises(FormatError, match=message):
            found.get(key, kind)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="no tensor 'y'"):
        found.raw("y")

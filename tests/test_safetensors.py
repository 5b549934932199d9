"""Safetensors: round trips, bytes that depend on the content alone, hostile files."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from microgpt.errors import (
    DTypeError,
    FormatError,
    StorageError,
)
from microgpt.io import safetensors as st


def tensors() -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {"z": np.zeros((0, 3), np.float32), "scalar": np.array(2.5, np.float32)}
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "bool", "uint8"):
        made[f"a.{name}"] = (np.arange(6).reshape(2, 3) % 5).astype(name)
    made["b.bfloat16"] = np.array([1.5, -2.0, 0.0]).astype(ml_dtypes.bfloat16)
    return made


def test_safetensors_round_trip(tmp_path: Path) -> None:
    import safetensors

    made = tensors()
    path = tmp_path / "x.safetensors"
    size = st.save(path, made)
    assert size == path.stat().st_size
    found = st.load(path)
    assert list(found) == sorted(made)
    for name, array in made.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes() and found[name].flags.writeable
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_safetensors_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    made = tensors()
    meta = {f"k{i}": "ü" for i in range(9)}
    st.save(tmp_path / "a", made, meta)
    st.save(tmp_path / "b", dict(reversed(made.items())), dict(reversed(meta.items())))
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.pop("__metadata__") == meta and int.from_bytes(data[:8], "little") % 8 == 0
    for entry in header.values():  # each tensor aligned to its own type
        begin, end = entry["data_offsets"]
        width = (end - begin) // max(1, int(np.prod(entry["shape"])))
        assert begin % max(width, 1) == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4), np.float32).T, r"tensor 'x': expected a C-contiguous array, got strides \(4, 16\)"),
        (np.zeros(3, ">f4"), "tensor 'x': expected little-endian, got big-endian >f4"),
        (np.zeros(3, np.complex64), "tensor 'x': expected one of float64, .* got complex64"),
        (np.array(["a"], object), "tensor 'x': expected one of .* got object"),
    ],
)
def test_safetensors_refuses_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(DTypeError, match=message):
        st.save(tmp_path / "x", {"x": array})
    assert not (tmp_path / "x").exists()
    with pytest.raises(DTypeError, match="__metadata__"):
        st.save(tmp_path / "x", {"__metadata__": np.zeros(1)})


def test_safetensors_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FormatError, match=r"x\.safetensors: cannot read: No such file"):
        st.load(path)
    os.mkfifo(tmp_path / "pipe")
    for bad in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FormatError, match="not a regular file"):
            st.load(bad)
    st.save(path, {"x": np.arange(4, dtype=np.int32)})
    with pytest.raises(StorageError, match=r"writing x\.safetensors failed .*EEXIST"):
        st.save(path, {})
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(FormatError, match=r"x\.safetensors: not a valid safetensors file"):
            st.load(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(FormatError, match="not a valid"):
        st.load(path)


def test_safetensors_mutants(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    st.save(path, tensors())
    good = path.read_bytes()
    chance = random.Random(2)
    head = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    for _ in range(1500):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            bad[chance.randrange(head)] = chance.choice(b'\0\xff0129"{}[]:,FU-ae ')
        path.write_bytes(bad)
        try:
            for array in st.load(path).values():
                assert array.nbytes <= len(good)
        except FormatError:
            refused += 1
    assert refused > 1000


def raw(header: object, data: int = 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BIG = 2**63 - 1
WRONG = {
    "hdr_len_u64max": (raw({"x": entry()}, length=2**64 - 1), "a header of 18446744073709551615 bytes"),
    "hdr_len_0": (raw(b""), "a header of 0 bytes"),
    "not_brace": (raw(b" " + json.dumps({"x": entry()}).encode()), "does not begin with {"),
    "not_utf8": (raw(b'{"\xff": 1}'), "not JSON"),
    "not_json": (raw(b"{x}"), "not JSON"),
    "nan": (raw(b'{"x": NaN}'), "not JSON"),
    "dup_key": (raw(b'{"x": 1, "x": 2}'), "a key stands twice"),
    "depth_1e5": (raw(b'{"x": ' + b"[" * 100_000), "not JSON"),
    "metadata_non_string": (
        raw({"__metadata__": {"a": 1}, "x": entry()}),
        "__metadata__ expected an object of strings",
    ),
    "metadata_list": (raw({"__metadata__": [], "x": entry()}), "__metadata__ expected"),
    "overlap": (raw({"x": entry(), "y": entry(offsets=(8, 24))}, 24), "'y' begins at 8, expected 16"),
    "same_place": (raw({"x": entry(), "y": entry()}), "'y' begins at 0, expected 16"),
    "gap": (raw({"x": entry(), "y": entry(offsets=(24, 40))}, 40), "'y' begins at 24, expected 16"),
    "trailing": (raw({"x": entry()}, 17), "the tensors end at byte"),
    "a_zip_behind": (raw({"x": entry()}, 16) + b"PK\3\4", "the tensors end at byte"),
    "truncated": (raw({"x": entry()}, 15), "tensor|the tensors end"),
    "shape_mismatch": (raw({"x": entry(shape=(5,))}), r"'x' of F32 \[5\] takes 20 bytes"),
    "shape_overflow": (raw({"x": entry(shape=(BIG, BIG))}), "'x' of F32"),
    "shape_overflow_to_16": (raw({"x": entry(shape=(2**32, 2**30 + 1))}), "'x' of F32"),
    "many_axes": (raw({"x": entry(shape=[1] * 10_000)}), "not lists of sizes"),
    "dtype_unknown": (raw({"x": entry("F33")}), "expected a dtype of F64, .* got 'F33'"),
    "dtype_number": (raw({"x": entry(5)}), "expected a dtype of"),
    "neg_offset": (raw({"x": entry(offsets=(-16, 0))}), "not lists of sizes"),
    "swapped_offsets": (raw({"x": entry(offsets=(16, 0))}), "data_offsets are"),
    "float_offset": (raw({"x": entry(offsets=(0.0, 16.0))}), "not lists of sizes"),
    "bool_shape": (raw({"x": entry(shape=(True, 4))}), "not lists of sizes"),
    "offset_past_eof": (raw({"x": entry(offsets=(BIG - 16, BIG))}), "data_offsets are"),
    "three_offsets": (raw({"x": entry(offsets=(0, 8, 16))}), "not lists of sizes"),
    "no_dtype": (raw({"x": {"shape": [4], "data_offsets": [0, 16]}}), "expected dtype, shape and data_offsets"),
    "more_keys": (raw({"x": {**entry(), "more": 1}}), "expected dtype, shape and data_offsets"),
    "not_an_object": (raw({"x": 5}), "expected dtype, shape and data_offsets"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_headers_are_refused(tmp_path: Path, name: str) -> None:
    data, message = WRONG[name]
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        st.open_weights(tmp_path / "x.safetensors")
    assert "x.safetensors: not a valid safetensors file: " in str(caught.value) and len(str(caught.value)) < 400


def test_headers_beyond_the_limit_are_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(100_000_100)  # a hole: takes no room
    started = time.process_time()
    with pytest.raises(FormatError, match="a header of 100000001 bytes, expected 2 to 100000000"):
        st.load(path)
    assert time.process_time() - started < 0.1


def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    made = {f"blocks.{i}": np.full(1, i % 256, np.uint8) for i in range(100_000)}
    st.save(tmp_path / "x", made)
    started = time.process_time()
    found = st.open_weights(tmp_path / "x")
    assert time.process_time() - started < 10.0
    assert len(found) == 100_000 and found["blocks.77"].array()[0] == 77

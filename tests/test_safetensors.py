"""Safetensors: round trips, bytes that depend on the content alone, hostile files."""

from __future__ import annotations

import json
import os
import random
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

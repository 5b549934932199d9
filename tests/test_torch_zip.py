"""Files of torch.save, written here without PyTorch: what is read, and what is refused."""

from __future__ import annotations

import collections
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt.errors import CheckpointError
from microgpt.io.torch_zip import read_torch
from microgpt.models.rwkv import read_rwkv7


class Storage:
    """Numbers that a pickle names by a persistent id."""

    def __init__(self, kind: str, numbers: np.ndarray[Any, Any]) -> None:
        self.kind, self.numbers = kind, numbers


class Tensor:
    """What pickles as torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)."""

    def __init__(self, storage: Storage, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.arguments = storage, offset, size, stride, False, collections.OrderedDict()

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments  # type: ignore[attr-defined]


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules with the names that pickles of PyTorch hold."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2() -> None:
        raise AssertionError("nothing of a file is called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    torch._utils = utils  # type: ignore[attr-defined]
    for kind in ("FloatStorage", "BFloat16Storage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def write(path: Path, value: Any) -> None:
    storages: list[Storage] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, each: Any) -> Any:
            if not isinstance(each, Storage):
                return None
            if each not in storages:
                storages.append(each)
            kind = getattr(sys.modules["torch"], each.kind)
            return "storage", kind, str(storages.index(each)), "cpu", each.numbers.size

    out = io.BytesIO()
    Pickler(out, 2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", out.getvalue())
        for i, each in enumerate(storages):
            archive.writestr(f"model/data/{i}", each.numbers.tobytes())


@pytest.mark.usefixtures("torch_names")
def test_tensors_are_read(tmp_path: Path) -> None:
    """Views of one storage, turned ones, none, and bfloat16, which becomes the float32 of the same value."""
    numbers = np.arange(12, dtype=np.float32)
    storage = Storage("FloatStorage", numbers)
    halves = Storage("BFloat16Storage", np.array([0x3F80, 0xC000, 0x7FC0], np.uint16))
    write(tmp_path / "m.pth", collections.OrderedDict(
        rows=Tensor(storage, (3, 4), (4, 1)), turned=Tensor(storage, (4, 3), (1, 4)),
        part=Tensor(storage, (2,), (5,), 1), empty=Tensor(storage, (0, 4), (4, 1)), halves=Tensor(halves, (3,), (1,)),
    ))  # fmt: skip
    found = read_torch(tmp_path / "m.pth")
    np.testing.assert_array_equal(found["rows"], numbers.reshape(3, 4))
    np.testing.assert_array_equal(found["turned"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], [1, 6])
    assert found["empty"].shape == (0, 4)
    np.testing.assert_array_equal(found["halves"], np.array([1.0, -2.0, np.nan], np.float32))


@pytest.mark.usefixtures("torch_names")
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((13,), (1,), 0), ((3, 4), (5, 1), 0), ((1,), (1,), 12), ((2,), (-1,), 3), ((2,), (1, 1), 0)],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path: Path, size: Any, stride: Any, offset: int) -> None:
    storage = Storage("FloatStorage", np.arange(12, dtype=np.float32))
    write(tmp_path / "m.pth", {"x": Tensor(storage, size, stride, offset)})
    with pytest.raises(CheckpointError, match=r"beyond the 12 numbers|impossible numbers"):
        read_torch(tmp_path / "m.pth")


def archived(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", data)


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    archived(path, pickle.dumps(Path("x"), 2))
    with pytest.raises(CheckpointError, match=r"names pathlib\.\w+, which is no part of a tensor"):
        read_torch(path)
    archived(path, b"cos\nsystem\n(V touch\ntR.")
    with pytest.raises(CheckpointError, match=r"names os\.system"):
        read_torch(path)
    archived(path, pickle.dumps(("a", 2), 2))
    with pytest.raises(CheckpointError, match="expected a dictionary of tensors"):
        read_torch(path)
    archived(path, pickle.dumps({"x": 1}, 2)[:-3])
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        read_torch(path)
    path.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(CheckpointError, match=r"expected one data\.pkl, got 0"):
        read_torch(path)


def test_other_models_are_no_rwkv() -> None:
    with pytest.raises(CheckpointError, match=r"f: not an RWKV-7 model: missing 'emb\.weight'"):
        read_rwkv7({}, "f")
    some = {name: np.zeros((3, 4), np.float32) for name in ("emb.weight", "head.weight")}
    some |= {"ln_out.weight": np.zeros(4, np.float32), "ln_out.bias": np.zeros(4, np.float32)}
    with pytest.raises(CheckpointError, match="no blocks"):
        read_rwkv7(some, "f")
    with pytest.raises(CheckpointError, match=r"missing 'blocks\.1\.ln1\.weight'|missing 'blocks\.0\.ln1\.weight'"):
        read_rwkv7({**some, "blocks.1.ln2.weight": np.zeros(4, np.float32)}, "f")


@pytest.mark.usefixtures("torch_names")
def test_a_file_does_not_grow(tmp_path: Path) -> None:
    """Neither compressed numbers, nor one number many times, nor one storage in many tensors."""
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 100000)
    with pytest.raises(CheckpointError, match=r"x/data\.pkl is compressed"):
        read_torch(path)
    storage = Storage("FloatStorage", np.zeros(1000, np.float32))
    write(path, {"x": Tensor(storage, (1001,), (0,))})
    with pytest.raises(CheckpointError, match="reaches beyond the 1000 numbers"):
        read_torch(path)
    write(path, {str(i): Tensor(storage, (1000,), (1,)) for i in range(100)})
    with pytest.raises(CheckpointError, match="more memory than a file of this size"):
        read_torch(path)

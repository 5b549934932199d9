"""Files of torch.save without PyTorch: a zip of a pickle that names tensors, and of their numbers.

The pickle is read by an unpickler that knows what tensors are made of and refuses everything else, so nothing of a file
is ever called.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

# Storage class -> NumPy type of its numbers; bfloat16 is the upper half of a float32.
STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2", "DoubleStorage": "<f8",
            "LongStorage": "<i8", "IntStorage": "<i4", "ByteStorage": "<u1", "CharStorage": "<i1",
            "BoolStorage": "<u1"}  # fmt: skip
MOST = 2**34  # bytes of one tensor


class _Unpickler(pickle.Unpickler):
    """Knows OrderedDict, storages, and how a tensor is made of one."""

    def __init__(self, data: bytes, storage: Callable[[str, str], npt.NDArray[Any]], where: str) -> None:
        super().__init__(io.BytesIO(data))
        self.storage, self.where = storage, where

    def find_class(self, module: str, name: str) -> Any:
        """What a file may name."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module in ("torch", "torch.storage") and name in STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *rest: data
        raise CheckpointError(f"{self.where}: names {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ("storage", class, key, device, numbers)."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and pid[1] in STORAGES):
            raise CheckpointError(f"{self.where}: expected a storage, got {pid!r:.80}")
        return self.storage(pid[1], str(pid[2]))

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> npt.NDArray[Any]:
        """A view of a storage, copied; its bounds are checked before."""
        whole = all(type(each) is int and each >= 0 for each in (offset, *size, *stride))
        if not isinstance(storage, np.ndarray) or not whole or len(size) != len(stride):
            raise CheckpointError(f"{self.where}: a tensor of impossible numbers")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if count and (last >= storage.size or count * storage.itemsize > MOST):
            raise CheckpointError(f"{self.where}: a tensor of {size} reaches beyond the {storage.size} numbers it has")
        steps = tuple(step * storage.itemsize for step in stride)
        view = (
            np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps)
            if count
            else np.empty(size, storage.dtype)
        )
        return np.ascontiguousarray(view)


def read_torch(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """Name -> array of a dictionary of tensors that torch.save wrote; bfloat16 becomes float32.

    Raises CheckpointError for what is no such file, is cut short, or names anything that is no tensor.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                raise CheckpointError(f"{where}: expected one data.pkl, got {len(names)}")
            prefix = names[0][: -len("data.pkl")]
            loaded: dict[str, npt.NDArray[Any]] = {}

            def storage(kind: str, key: str) -> npt.NDArray[Any]:
                if key not in loaded:
                    numbers = np.frombuffer(archive.read(f"{prefix}data/{key}"), STORAGES[kind])
                    if kind == "BFloat16Storage":
                        numbers = (numbers.astype("<u4") << 16).view("<f4")
                    loaded[key] = numbers
                return loaded[key]

            found = _Unpickler(archive.read(names[0]), storage, where).load()
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken pickle or zip ends in
        raise CheckpointError(f"{where}: not a file of torch.save: {type(error).__name__}: {error}") from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(each, np.ndarray) for name, each in found.items()
    ):
        raise CheckpointError(f"{where}: expected a dictionary of tensors")
    return dict(found)

"""Files of torch.save without PyTorch: a zip of a pickle that names tensors, and of their numbers.

The pickle is read by a stack machine that knows what tensors are made of and refuses everything else, so nothing of a
file is ever called.
"""

from __future__ import annotations

import math
import pickletools
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
EXPANDS = 4  # bytes of tensors to a byte of the file at most: bfloat16 becomes float32, and a storage may serve two
MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": MARK, "EMPTY_TUPLE": ()}
MAKERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
PLAIN = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}


class _Machine:
    """The part of a pickle's stack machine that dictionaries of tensors need. Opcodes come from pickletools, which runs
    nothing; what is named is one of three things of ours, and anything else is refused."""

    def __init__(self, storage: Callable[[str, str], npt.NDArray[Any]], where: str, most: int) -> None:
        self.storage, self.where = storage, where
        self.left = most  # bytes that tensors may still take
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """What the pickle makes."""
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in MAKERS:
                self.stack.append(MAKERS[name]())
            elif name in PLAIN:
                self.stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                self.stack[-count:] = [tuple(self.stack[-count:])]
            elif name == "TUPLE":
                found = tuple(self._marked())
                self.stack.append(found)
            elif name in ("SETITEM", "SETITEMS"):
                pairs = self._marked() if name == "SETITEMS" else [self.stack.pop(-2), self.stack.pop()]
                self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
            elif name == "GLOBAL":
                self.stack.append(self._known(*argument.split(" ", 1)))
            elif name == "BINPERSID":
                self.stack.append(self._storage(self.stack.pop()))
            elif name == "REDUCE":
                arguments, made = self.stack.pop(), self.stack.pop()
                self.stack.append(made(*arguments) if made in (dict, self.tensor, _first) else self._refuse(made))
            elif name == "BUILD":  # attributes of a dictionary: nothing of a tensor
                self.stack.pop()
            elif name == "STOP":
                return self.stack.pop()
            elif name != "PROTO":
                raise CheckpointError(f"{self.where}: opcode {name}, which no dictionary of tensors has")
        raise CheckpointError(f"{self.where}: not a file of torch.save: no end")

    def _marked(self) -> list[Any]:
        at = max(i for i, each in enumerate(self.stack) if each is MARK)
        found, self.stack = self.stack[at + 1 :], self.stack[:at]
        return found

    def _known(self, module: str, name: str) -> Any:
        """What a file may name."""
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module in ("torch", "torch.storage") and name in STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _first
        raise CheckpointError(f"{self.where}: names {module}.{name}, which is no part of a tensor")

    def _refuse(self, what: Any) -> Any:
        raise CheckpointError(f"{self.where}: calls {what!r:.80}, which is no part of a tensor")

    def _storage(self, pid: Any) -> Any:
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
        if count and (last >= storage.size or count > storage.size):
            raise CheckpointError(f"{self.where}: a tensor of {size} reaches beyond the {storage.size} numbers it has")
        self.left -= count * storage.itemsize
        if self.left < 0:
            raise CheckpointError(f"{self.where}: its tensors take more memory than a file of this size holds")
        steps = tuple(step * storage.itemsize for step in stride)
        view = (
            np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps)
            if count
            else np.empty(size, storage.dtype)
        )
        return np.ascontiguousarray(view)


def _first(data: Any, *rest: Any) -> Any:
    return data


def read_torch(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """Name -> array of a dictionary of tensors that torch.save wrote; bfloat16 becomes float32.

    Raises CheckpointError for what is no such file, is cut short, or names anything that is no tensor.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.save compresses nothing; what is compressed may be far larger than the file.
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise CheckpointError(f"{where}: {packed[0]} is compressed, which torch.save never does")
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

            found = _Machine(storage, where, EXPANDS * Path(path).stat().st_size).run(archive.read(names[0]))
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken pickle or zip ends in
        raise CheckpointError(f"{where}: not a file of torch.save: {type(error).__name__}: {error}") from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(each, np.ndarray) for name, each in found.items()
    ):
        raise CheckpointError(f"{where}: expected a dictionary of tensors")
    return dict(found)

"""Matrices of files as QTensors: codes and scales as the file has them, or numbers rounded while they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, NonFiniteError
from ..io.packed import Packed
from ..io.stored import Stored
from ..qtensor import GGUF_TYPES, QTensor
from ..tensors import Room, numpy_dtype
from .quantized import Report, Row, Scheme, q_bytes, restored, rounded


class Untouched(Room):
    """Addresses for parameters most of which are replaced before anything is written there. An array of its own would
    have its first page, which may be of 2 MB, touched by the allocator; these lie together in a gigabyte at a time."""

    def __init__(self, dtype: str, numbers: int) -> None:
        super().__init__(dtype)
        self.MOST = self.BLOCK = min(1 << 30, numbers * numpy_dtype(dtype).itemsize + self.LEAST)


def taken(
    stored: Stored,
    row: Row | None,
    keep: bool,
    scheme: Scheme | None,
    table: bool,
    dtype: str,
    name: str,
    report: Report | None,
    where: str,
    room: Room,
) -> QTensor | None:
    """A matrix, or one for each expert, as codes and scales: as the file has it, or rounded; None where it stays
    numbers."""
    if row is not None:
        return restored(row, stored, dtype, where + name, room)
    if keep:
        return kept(stored, dtype, where + name, room)
    kind = None if scheme is None else scheme.of(name, table)
    if scheme is None or kind is None:
        return None
    parts = [_pieces(each) for each in stored.parts()]
    return rounded(parts, stored.shape, kind, scheme.group, dtype, name, report, where, room)


def kept(stored: Stored, dtype: str, what: str, room: Room | None = None) -> QTensor | None:
    """The codes and scales of a file, None where no type of ours holds them. Raises NonFiniteError naming `what`."""
    if len(stored.shape) == 3 and stored.part is None:
        return None
    parts = stored.parts()
    if all(each.packed is not None for each in parts):
        try:
            return from_packed([each.packed for each in parts], dtype, room, len(stored.shape) == 3)
        except NonFiniteError as error:
            raise NonFiniteError(f"{what}: {error}") from None
    kinds = {None if each.blocks is None else each.blocks[0] for each in parts}
    kind = kinds.pop()
    if kind is None or kinds or kind not in GGUF_TYPES:
        return None
    if len(stored.shape) == 2:
        assert stored.blocks is not None
        return QTensor.from_ggml(*stored.blocks, stored.shape, dtype, room, what)
    made = QTensor(stored.shape, GGUF_TYPES[kind], 32, dtype, room)
    for e, each in enumerate(parts):
        assert each.blocks is not None
        QTensor.from_ggml(*each.blocks, each.shape, dtype, made.place(e), f"{what} of expert {e}")
    return made


def kept_bytes(weights: Mapping[str, Stored], dtype: str) -> int:
    """Memory of a file's tensors where its codes are kept, about; `dtype` is that of the others."""
    item, total = numpy_dtype(dtype).itemsize, 0
    for stored in weights.values():
        part = stored.turned(0) if stored.turned else stored.part(0) if stored.part else stored
        one, packed = part.size, part.packed
        if part.blocks is not None and part.blocks[0] in GGUF_TYPES:
            one = q_bytes(GGUF_TYPES[part.blocks[0]], 32, *part.shape)
        elif packed is not None:
            one = one * packed.bits // 8 + 6 * one // max(1, packed.group)  # scales, and at most minima as wide
        else:
            one *= item
        total += one * (stored.size // max(1, part.size))
    return total


def _pieces(stored: Stored) -> Callable[[int, int], npt.NDArray[Any]]:
    """Rows of a tensor as they come."""
    if stored.rows is not None:
        return stored.rows
    found: list[npt.NDArray[Any]] = []

    def rows(start: int, stop: int) -> npt.NDArray[Any]:
        if not found:
            found.append(stored.array())
        part: npt.NDArray[Any] = found[0][start:stop]
        if stop == stored.shape[0]:
            found.clear()  # the next expert's turn
        return part

    return rows


# -- matrices of others' folders ---------------------------------------------------------------------------------------
class _Codes(NamedTuple):
    """What a matrix would be: its type, its columns in the order of groups, its zeros where they say something."""

    type: str | None
    order: npt.NDArray[Any] | None
    zeros: npt.NDArray[Any] | None


def from_packed(
    packed: Packed | Sequence[Packed], dtype: str, room: Room | None = None, experts: bool = False
) -> QTensor | None:
    """A matrix, or with `experts` several as one, as a QTensor of the same numbers; None where no type holds them."""
    parts = [packed] if isinstance(packed, Packed) else list(packed)
    if any(_broken(each) for each in parts):
        return None
    found = [_codes_of(each) for each in parts]
    if len({each.type for each in found}) > 1:  # what one expert has, all have
        found = [_codes_of(each, asymmetric=True) for each in parts]
    types = {each.type for each in found}
    type = types.pop()
    if type is None or types:
        return None
    ordered, shape = any(each.order is not None for each in found), parts[0].shape
    try:
        made = QTensor((len(parts), *shape) if experts else shape, type, parts[0].group, dtype, room, ordered)
    except ConfigError:  # such a group
        return None
    for target, each, codes in zip(made.matrices(), parts, found, strict=True):
        _fill(target, each, codes)
    return made


def _broken(packed: Packed) -> bool:
    """Whether groups are of other sizes than the one."""
    if packed.order is None:
        return False
    wanted = np.arange(packed.shape[1]) // packed.group
    return not np.array_equal(np.sort(packed.order, kind="stable"), wanted)


def _codes_of(packed: Packed, asymmetric: bool = False) -> _Codes:
    """`asymmetric`: with zeros although they are all alike."""
    n, half = packed.shape[0], 1 << (packed.bits - 1)
    order = None if packed.order is None else np.argsort(packed.order, kind="stable")
    zeros = None if packed.zeros is None else packed.zeros(0, n)
    groups = packed.scales(0, 1).shape[1]
    if asymmetric and zeros is None and packed.minimums is None and packed.offset == half:
        zeros = np.full((n, groups), half, np.uint8)
    elif not asymmetric and zeros is not None and (zeros == half).all():
        zeros = None
    return _Codes(_type_of(packed, zeros, groups), order, zeros)


def _fill(made: QTensor, packed: Packed, codes_of: _Codes) -> None:
    _, order, zeros = codes_of
    n, inner = packed.shape
    scales = packed.scales(0, n)
    if made.ordered:
        made.set_order(np.arange(inner) if order is None else order)
    nested = packed.nested if made.type.name == "nf4_double" else None
    made.set_tables(packed.table, None if nested is None else nested[1:])
    bytes_of = None if nested is None else nested[0](0, n)
    minimums = None if packed.minimums is None else packed.minimums(0, n)
    whole = packed.codes(0, n) if packed.whole else None
    for start, stop in made.pieces():
        codes = packed.codes(start, stop) if whole is None else whole[start:stop]
        made.put(
            start,
            codes if order is None else codes[:, order],
            scales[start:stop] if bytes_of is None else bytes_of[start:stop],
            None if minimums is None else minimums[start:stop],
            None if zeros is None else zeros[start:stop].astype(np.uint8),
        )


def _type_of(packed: Packed, zeros: npt.NDArray[Any] | None, groups: int) -> str | None:
    if packed.table is not None:
        return "nf4" if packed.nested is None else "nf4_double"
    if packed.bits not in (4, 8):
        return None
    symmetric = zeros is None and packed.minimums is None
    if symmetric and (packed.zeros is None and packed.offset != 1 << (packed.bits - 1)):
        return None
    if symmetric and packed.bits == 8 and groups == 1 and packed.order is None:
        return "int8_channel"
    if packed.floats == "float32" or (zeros is not None and zeros.max() >= 1 << packed.bits):
        return None
    kind = "int" if symmetric else "affine" if packed.minimums is not None else "zero"
    return f"{kind}{packed.bits}{'_bf16' if packed.floats == 'bfloat16' else ''}"

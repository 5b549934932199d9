"""QTensor: a weight (N, K) of a few bits a number, as the products read it.

The types are rows of a table in csrc/core/qtensor.h: codes of 4 or 8 bits, value = scale * (code - offset), a float16
scale for each group of K or a float32 one for each row. The matmul looks at a weight's type; there is no layer for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _kernels as k
from .errors import ConfigError, NonFiniteError, ShapeError, UsageError, nearest
from .tensor import Room, Tensor, numpy_dtype

Array = k.Array

PIECE = 1 << 20  # numbers quantized at a time: what is between a file and the codes stays small


class QType(NamedTuple):
    """`bits` of a code; value = scale * (code - `offset`); scales of `scale_bytes`, one a row where `channel`."""

    number: int
    name: str
    bits: int
    offset: int
    scale_bytes: int
    channel: bool
    step: int  # groups are multiples of it

    def group(self, inner: int, group: int) -> int:
        """Numbers that share a scale, in rows of `inner`. Raises ConfigError for a group that kernels do not have."""
        if self.channel:
            return max(self.step, -(-inner // self.step) * self.step)
        least, most = k.Q_LEAST_GROUP, k.Q_MOST_GROUP
        if not (isinstance(group, int) and least <= group <= most and group % self.step == 0):
            raise ConfigError(f"group_size: expected a multiple of {self.step} from {least} to {most}, got {group!r}")
        return group


Q_TYPES = {row[0]: QType(number, *row) for number, row in enumerate(k.q_types())}


def q_type(name: str) -> QType:
    """The row of the table. Raises ConfigError naming the nearest."""
    if name not in Q_TYPES:
        raise ConfigError(f"unknown quantized type {name!r}{nearest(name, Q_TYPES)}; known: {', '.join(Q_TYPES)}")
    return Q_TYPES[name]


class QTensor:
    """A quantized weight of `shape` (N, K); `dtype` is that of the numbers it stands for.

    Products multiply its codes with activations rounded to int8 (`activations` "int8", a scale for each row and group),
    or its numbers with the activations as they are ("float"). It takes no gradient; gradients go through it.
    """

    __slots__ = ("activations", "data", "dtype", "group", "shape", "type")

    slot = None
    ndim = 2

    def __init__(
        self,
        shape: tuple[int, int],
        type: str = "int4",
        group: int = 32,
        dtype: str = "float32",
        room: Room | None = None,
    ) -> None:
        """Memory for codes and scales, in `room` if given. Raises ConfigError, ShapeError."""
        n, inner = shape
        self.type = q_type(type)
        if not 0 < inner <= k.Q_MOST_K or n < 1:
            raise ShapeError(f"a quantized weight expected two axes of 1 to {k.Q_MOST_K} columns, got {tuple(shape)}")
        self.shape = (n, inner)
        self.group = self.type.group(inner, group)
        self.dtype = dtype
        self.activations = "int8"
        size = k.q_bytes(self.type.number, n, inner, self.group)
        self.data: Array = k.empty((size,), "uint8") if room is None else room.take((size,))

    @classmethod
    def from_float(
        cls, values: Any, type: str = "int4", group: int = 32, dtype: str | None = None, what: str = "weight"
    ) -> QTensor:
        """Round numbers (N, K), an array or a tensor, to the nearest codes; a scale of 4 bits is searched for.

        Raises NonFiniteError naming `what` for NaN, infinity or numbers beyond the scales, ShapeError, ConfigError.
        """
        numbers = values.numpy() if isinstance(values, (Tensor, Array)) else np.asarray(values)
        if numbers.ndim != 2:
            raise ShapeError(f"{what}: expected two axes (out, in), got {numbers.shape}")
        kept = dtype or (values.dtype if isinstance(values, (Tensor, Array)) else "float32")
        made = cls(numbers.shape, type, group, kept)
        made.fill(lambda start, stop: numbers[start:stop], what)
        return made

    @classmethod
    def from_codes(
        cls, codes: npt.NDArray[Any], scales: npt.NDArray[Any], type: str, group: int = 32, dtype: str = "float32"
    ) -> QTensor:
        """Codes (N, K) and scales (N, groups of K) of others, kept as they are."""
        made = cls(codes.shape, type, group, dtype)
        made.put(0, codes, scales)
        return made

    def fill(self, rows: Callable[[int, int], npt.NDArray[Any]], what: str = "weight") -> None:
        """Quantize what rows(start, stop) gives, piece by piece."""
        for start, stop in self.pieces():
            values = rows(start, stop)
            if values.dtype not in (np.float32, np.float64, numpy_dtype("bfloat16")):
                values = values.astype(np.float32)
            wide = np.abs(values.astype(np.float32, copy=False)).max(initial=0.0)
            if not wide < (3e38 if self.type.channel else 65504.0 * (self.type.offset - 1)):
                raise NonFiniteError(f"{what}: expected finite numbers that fit {self.type.name}, got {wide}")
            k.quantize(k.from_numpy(np.ascontiguousarray(values)), self.data, *self._sizes(), first=start)

    def put(self, first: int, codes: npt.NDArray[Any], scales: npt.NDArray[Any]) -> None:
        """Codes and scales of rows from `first` on, a multiple of 32, as others made them."""
        n, inner = codes.shape
        groups = -(-inner // self.group)
        if inner != self.shape[1] or scales.shape != (n, groups):
            raise ShapeError(f"scales: expected ({n}, {groups}) for codes {codes.shape}, got {scales.shape}")
        if codes.size and int(codes.max()) >> self.type.bits:
            raise ShapeError(f"codes: expected numbers below {1 << self.type.bits}, got {int(codes.max())}")
        given = k.from_numpy(np.ascontiguousarray(codes, np.uint8))
        scale = k.from_numpy(np.ascontiguousarray(scales, np.float32))
        k.q_pack(given, scale, self.data, *self._sizes(), first=first)

    def pieces(self) -> list[tuple[int, int]]:
        """Rows that are worked on at a time: start and stop."""
        step = max(1, PIECE // self.shape[1] // k.Q_COLS) * k.Q_COLS
        return [(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)]

    def dequantize(self, start: int = 0, stop: int | None = None, dtype: str = "float32") -> npt.NDArray[Any]:
        """The numbers of rows start..stop - 1, or of all."""
        end = self.shape[0] if stop is None else stop
        y = k.empty((end - start, self.shape[1]), dtype)
        k.q_dequantize(self.data, y, *self._sizes(), first=start)
        return y.numpy()

    def rows(self, ids: Array, dtype: str | None = None) -> Array:
        """Rows at ids (T) int32 as numbers (T, K): what an embedding reads."""
        y = k.empty((*ids.shape, self.shape[1]), dtype or self.dtype)
        k.q_dequantize(self.data, y, *self._sizes(), ids=ids)
        return y

    def _sizes(self) -> tuple[int, int, int, int]:
        return self.type.number, *self.shape, self.group

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Type, N, K and group, in the kernels' order."""
        return self._sizes()

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of codes and scales, filling included."""
        return self.data.nbytes

    @property
    def bits_per_weight(self) -> float:
        """nbytes in bits over the weights."""
        return 8.0 * self.nbytes / self.size

    @property
    def requires_grad(self) -> bool:
        """Never."""
        return False

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if wanted:
            raise UsageError("a quantized weight cannot be trained: put an adapter (LoRA) on the layer and train that")

    def freeze(self) -> None:
        """It takes no gradient as it is."""

    def __repr__(self) -> str:
        return f"QTensor({self.shape}, {self.type.name}, group {self.group})"


class KVRows:
    """Cached keys or values (rows, heads, width), of a type that need not be the queries': attention looks at it.

    `dtype` float32, bfloat16, or int8: codes -127..127 with a float32 scale max |x| / 127 for each row and head. What
    is written is rounded to nearest. It takes no gradient. Raises ConfigError for another type.
    """

    __slots__ = ("data", "dtype", "scales", "shape")

    slot = None
    ndim = 3

    def __init__(self, shape: tuple[int, int, int], dtype: str) -> None:
        if dtype not in ("float32", "bfloat16", "int8"):
            raise ConfigError(f"a cache of keys and values: expected float32, bfloat16 or int8, got {dtype!r}")
        rows, heads, _ = self.shape = shape
        self.dtype = dtype
        self.data: Array = k.empty(shape, "uint8" if dtype == "int8" else dtype)
        self.scales: Array | None = k.empty((heads, rows + k.KV_PAD), "float32") if dtype == "int8" else None

    def put(self, x: Array, places: Array) -> None:
        """Row t of x (T, heads, width) becomes row places[t] (int32) of the cache."""
        k.kv_put(x, places, self.data, self.shape[1], self.shape[2], self.scales)

    def copy_rows(self, source: int, target: int, count: int) -> None:
        """Rows target .. target + count - 1 become those from `source` on."""
        data = self.data.numpy()
        data[target : target + count] = data[source : source + count]
        if self.scales is not None:
            scales = self.scales.numpy()
            scales[:, target : target + count] = scales[:, source : source + count]

    def numbers(self) -> npt.NDArray[np.float64]:
        """What it holds, as float64."""
        data = self.data.numpy()
        if self.scales is None:
            return data.astype(np.float64)
        scales = self.scales.numpy()[:, : self.shape[0]].T.astype(np.float64)
        return data.view(np.int8).astype(np.float64) * scales[:, :, None]

    @property
    def nbytes(self) -> int:
        """Memory of numbers and scales."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

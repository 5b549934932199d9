"""QTensor: a weight (N, K), or one for each of E experts (E, N, K), of a few bits a number, as the products read it.

The types are rows of a table in csrc/core/qtensor.h: a code's value (itself less an offset, or an entry of a table)
times a scale, plus a minimum where a type has one; a scale for each group of K, or for each row. Codes and scales are
the source's, at its own bits a weight. The matmul looks at a weight's type; there is no layer for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _kernels as k
from .errors import ConfigError, FormatError, NonFiniteError, ShapeError, UsageError, nearest
from .tensors import Room, Tensor, numpy_dtype

Array = k.Array

PIECE = 1 << 20  # numbers quantized at a time: what is between a file and the codes stays small


class QType(NamedTuple):
    """`bits` of a code; value = scale * (code - `offset`) (+ minimum), a scale a row where `channel`."""

    number: int
    name: str
    bits: int
    offset: int
    channel: bool
    step: int  # groups are multiples of it
    fixed: int  # the only group, or 0
    least: int  # what is added to a group: 0 nothing, 1 a minimum, 2 -scale times an integer zero
    rounds: bool  # we round numbers to it
    product: bool  # its codes are integers, which products with int8 activations take; else they take its numbers
    starts: int  # sums of codes that activations keep of a group
    block: int  # bytes of a GGUF block of 32 or 256 numbers, or 0

    def group(self, inner: int, group: int) -> int:
        """Numbers that share a scale, in rows of `inner`. Raises ConfigError for a group that kernels do not have."""
        if self.channel:
            return max(self.step, -(-inner // self.step) * self.step)
        if self.fixed:
            return self.fixed
        least, most = k.Q_LEAST_GROUP, k.Q_MOST_GROUP
        if not (isinstance(group, int) and least <= group <= most and group % self.step == 0):
            raise ConfigError(f"group_size: expected a multiple of {self.step} from {least} to {most}, got {group!r}")
        return group


Q_TYPES = {row[0]: QType(number, *row) for number, row in enumerate(k.q_types())}
# Types by GGUF's names, where a file's blocks are kept as they are; Q4_0 and Q8_0 are types of ours in groups of 32.
GGUF_TYPES = {"Q4_0": "int4", "Q8_0": "int8"}
GGUF_TYPES |= {name.upper(): name for name, row in Q_TYPES.items() if row.block and row.fixed}
NESTED = 256  # scales of nf4_double that share a float32, counted row after row


def q_type(name: str) -> QType:
    """The row of the table. Raises ConfigError naming the nearest."""
    if name not in Q_TYPES:
        raise ConfigError(f"unknown quantized type {name!r}{nearest(name, Q_TYPES)}; known: {', '.join(Q_TYPES)}")
    return Q_TYPES[name]


def _exact(values: Any, type: QType, what: str) -> Array:
    """Scales or minima as float32, finite and such as the type holds. Raises NonFiniteError, ConfigError."""
    wide = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(wide).all():
        raise NonFiniteError(f"{what}: expected finite numbers, got NaN or infinity")
    held: np.dtype[Any] = np.dtype(np.float32)
    if not type.channel and type.product:
        held = numpy_dtype("bfloat16") if type.name.endswith("_bf16") else np.dtype(np.float16)
    with np.errstate(over="ignore"):
        kept = wide.astype(held).astype(np.float32)
    if held.itemsize == 2 and not np.array_equal(kept, wide):
        raise ConfigError(f"{what}: expected numbers of {held.name} for {type.name}, got others")
    return k.from_numpy(wide)


class Place(Room):
    """Memory that is there already, for the one array that will be taken."""

    def __init__(self, data: Array) -> None:
        self._data = data

    def take(self, shape: Sequence[int]) -> Array:
        """The memory. Raises ShapeError where it is not as large as the shape."""
        if tuple(shape) != self._data.shape:
            raise ShapeError(f"a place of {self._data.shape} for {tuple(shape)}")
        return self._data


class QTensor:
    """A quantized weight of `shape` (N, K), or (E, N, K); `dtype` is that of the numbers it stands for.

    Products multiply its codes with activations rounded to int8 (`activations` "int8", a scale for each row and group),
    or its numbers with the activations as they are ("float"). It takes no gradient; gradients go through it.
    """

    __slots__ = ("activations", "data", "dtype", "group", "ordered", "shape", "sizes", "type")

    slot = None

    def __init__(
        self,
        shape: tuple[int, ...],
        type: str = "int4",
        group: int = 32,
        dtype: str = "float32",
        room: Room | None = None,
        ordered: bool = False,
    ) -> None:
        """Memory for codes and scales, in `room` if given; `ordered`: also for an order of K. Raises ConfigError,
        ShapeError.
        """
        self.type = q_type(type)
        if len(shape) not in (2, 3) or min(shape) < 1 or shape[-1] > k.Q_MOST_K:
            raise ShapeError(
                f"a quantized weight expected two axes, or three, of 1 to {k.Q_MOST_K} columns, got {tuple(shape)}"
            )
        if ordered and self.type.channel:
            raise ConfigError(f"{type} has one scale a row: an order of its columns says nothing")
        self.shape = tuple(shape)
        n, inner = self.shape[-2:]
        self.group = self.type.group(inner, group)
        self.sizes = (self.type.number, n, inner, self.group)  # of a matrix, in the kernels' order
        self.dtype = dtype
        self.activations = "int8"
        self.ordered = ordered
        size = k.q_bytes(self.type.number, n, inner, self.group) + 4 * inner * ordered
        size *= math.prod(self.shape[:-2])
        self.data: Array = k.empty((size,), "uint8") if room is None else room.take((size,))

    def place(self, expert: int) -> Place:
        """The memory of one expert's weight: as `room`, another QTensor is made in it."""
        each = self.data.size // self.shape[0]
        return Place(self.data.view((each,), expert * each))

    def matrices(self) -> list[QTensor]:
        """The weights (N, K) of the experts, in this one's memory; itself where it has two axes."""
        if self.ndim == 2:
            return [self]
        made = [QTensor(self.shape[1:], self.type.name, self.group, self.dtype, self.place(e), self.ordered)
                for e in range(self.shape[0])]  # fmt: skip
        for each in made:
            each.activations = self.activations
        return made

    @property
    def ndim(self) -> int:
        """Two, or three for experts."""
        return len(self.shape)

    @classmethod
    def from_float(
        cls, values: Any, type: str = "int4", group: int = 32, dtype: str | None = None, what: str = "weight"
    ) -> QTensor:
        """Round numbers (N, K) or (E, N, K), an array or a tensor, to the nearest codes; scales are searched for.

        Raises NonFiniteError naming `what` for NaN, infinity or numbers beyond the scales, ShapeError, ConfigError.
        """
        numbers = values.numpy() if isinstance(values, (Tensor, Array)) else np.asarray(values)
        if numbers.ndim not in (2, 3):
            raise ShapeError(f"{what}: expected two axes (out, in), or three (experts, out, in), got {numbers.shape}")
        kept = dtype or (values.dtype if isinstance(values, (Tensor, Array)) else "float32")
        if not q_type(type).rounds:
            known = ", ".join(name for name, row in Q_TYPES.items() if row.rounds)
            raise ConfigError(f"{what}: numbers are not rounded to {type}, which is read from files; known: {known}")
        made = cls(numbers.shape, type, group, kept)
        for part, values in zip(made.matrices(), numbers if numbers.ndim == 3 else [numbers], strict=True):
            part.fill(lambda start, stop, values=values: values[start:stop], what)  # type: ignore[misc]
        return made

    @classmethod
    def pack(
        cls,
        type: str,
        codes: npt.NDArray[Any],
        scales: npt.NDArray[Any],
        minimums: npt.NDArray[Any] | None = None,
        zeros: npt.NDArray[Any] | None = None,
        codebook: npt.NDArray[Any] | None = None,
        permutation: npt.NDArray[Any] | None = None,
        *,
        nested: tuple[npt.NDArray[Any], float, npt.NDArray[Any]] | None = None,
        group: int = 32,
        dtype: str = "float32",
        room: Room | None = None,
    ) -> QTensor:
        """Codes and scales of others, kept as they are.

        `codes` (N, K) uint8 below 2^bits, `scales` (N, groups of K) in numbers that the type's scales hold exactly.
        - int8, int4 (float16 scales), int8_bf16, int4_bf16, int8_channel (float32, (N, 1)): scale * (code - 128 or 8).
        - affine8, affine4, affine8_bf16, affine4_bf16 (MLX): scale * code + minimum, either rounded to the scales'
          type; `minimums` (N, groups). q4_1, q5_1 are the same in float32.
        - zero8, zero4, zero8_bf16, zero4_bf16 (AWQ, GPTQ): scale * (code - zero); `zeros` (N, groups) below 2^bits.
        - mxfp4: `scales` uint8, E8M0; codes E2M1.
        - nf4: codebook[code] * scale, float32; `codebook` (16), any values. nf4_double: scales are uint8 into
          `nested`, a table (256), an offset and a float32 scale for each 256 of them, counted row after row:
          table[s] * scale + offset.
        `permutation` (K): place j of the codes is column permutation[j] of the weight (GPTQ's act-order: a stable
        argsort of g_idx); groups are of the codes' order.
        Raises ShapeError, ConfigError, NonFiniteError.
        """
        made = cls(codes.shape, type, group, dtype, room, permutation is not None)
        made.set_tables(codebook, nested)
        if permutation is not None:
            made.set_order(permutation)
        made.put(0, codes, scales, minimums, zeros)
        return made

    @classmethod
    def from_codes(
        cls, codes: npt.NDArray[Any], scales: npt.NDArray[Any], type: str, group: int = 32, dtype: str = "float32"
    ) -> QTensor:
        """pack() for codes with nothing but scales."""
        return cls.pack(type, codes, scales, group=group, dtype=dtype)

    @classmethod
    def from_ggml(
        cls,
        kind: str,
        rows: npt.NDArray[np.uint8] | Callable[[int, int], npt.NDArray[np.uint8]],
        shape: tuple[int, ...],
        dtype: str = "float32",
        room: Room | None = None,
        what: str = "weight",
    ) -> QTensor:
        """A weight out of blocks of GGUF's type `kind` (a key of GGUF_TYPES), kept as they are.

        `rows`: all bytes, or a function of start and stop that gives those of these rows. Raises ConfigError,
        ShapeError, and NonFiniteError naming `what` where a scale is not finite.
        """
        if kind not in GGUF_TYPES:
            raise ConfigError(f"{what}: blocks of {kind!r} are not kept{nearest(kind, GGUF_TYPES)}")
        if len(shape) != 2:
            raise ShapeError(f"{what}: expected two axes, got {tuple(shape)}")
        n, inner = shape
        made = cls((n, inner), GGUF_TYPES[kind], 32, dtype, room)
        if inner % made.group:
            raise ShapeError(f"{what}: rows of {kind} expected a multiple of {made.group} numbers, got {inner}")
        each = inner // made.group * made.type.block
        whole = None if callable(rows) else np.asarray(rows, np.uint8).reshape(-1)
        for start, stop in made.pieces():
            piece = rows(start, stop) if callable(rows) else whole[start * each : stop * each]  # type: ignore[index]
            if piece.size != (stop - start) * each:
                raise ShapeError(
                    f"{what}: {stop - start} rows of {kind} take {(stop - start) * each} bytes, got {piece.size}"
                )
            given = k.from_numpy(np.ascontiguousarray(piece).reshape(-1))
            if not k.q_blocks(given, made.data, *made.sizes, first=start).numpy().all():
                raise NonFiniteError(f"{what}: scales of {kind} in rows {start} to {stop - 1} are not finite")
        return made

    @property
    def ggml_kind(self) -> str | None:
        """GGUF's type whose blocks hold the same numbers: its own, Q4_0 or Q8_0; None where there is none."""
        if self.ndim == 3:
            kinds = {each.ggml_kind for each in self.matrices()}
            return kinds.pop() if len(kinds) == 1 else None
        if self.ordered or self.shape[1] % (self.type.fixed or 32):
            return None
        if self.type.block and self.type.fixed:
            return self.type.name.upper()
        if self.type.name not in ("int4", "int8", "int4_bf16", "int8_bf16") or self.group % 32:
            return None
        halves = self._scale_halves()
        return None if halves is None else "Q4_0" if self.type.bits == 4 else "Q8_0"

    def to_ggml(self) -> npt.NDArray[np.uint8]:
        """Its rows as blocks of `ggml_kind`, which it must have: (N, bytes of a row), of experts (E, N, bytes)."""
        if self.ndim == 3:
            return np.stack([each.to_ggml() for each in self.matrices()])
        kind = self.ggml_kind
        assert kind is not None
        type, (n, inner) = q_type(GGUF_TYPES[kind]), self.shape
        group = type.fixed or 32
        out = k.empty((n, inner // group * type.block), "uint8")
        k.q_unblocks(self._regrouped() if not type.fixed else self.data, out, type.number, n, inner, group)
        return out.numpy()

    def _blocks(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Codes and scales (panels, groups, bytes) of a type that has nothing else."""
        groups = -(-self.shape[1] // self.group)
        blocks = self.data.numpy()[: k.q_bytes(*self.sizes)].reshape(-(-self.shape[0] // k.Q_COLS), groups, -1)
        return blocks[..., : -2 * k.Q_COLS], blocks[..., -2 * k.Q_COLS :]

    def _scale_halves(self) -> npt.NDArray[np.uint8] | None:
        """The bytes of float16 scales; None where they are others that float16 does not hold."""
        scales = np.ascontiguousarray(self._blocks()[1])
        if not self.type.name.endswith("_bf16"):
            return scales
        wide = scales.view(numpy_dtype("bfloat16")).astype(np.float32)
        with np.errstate(over="ignore"):
            halves = wide.astype(np.float16)
        return halves.view(np.uint8) if np.array_equal(halves.astype(np.float32), wide) else None

    def _regrouped(self) -> Array:
        """The data of the same weight with a scale for every 32 numbers: codes lie in the order of K."""
        codes, scales = self._blocks()[0], self._scale_halves()
        assert scales is not None
        times = self.group // 32
        split = codes.reshape(*codes.shape[:2], times, -1)
        again = np.broadcast_to(scales[:, :, None], (*split.shape[:3], scales.shape[-1]))
        made = np.concatenate([split, again], axis=-1).reshape(len(codes), codes.shape[1] * times, -1)
        return k.from_numpy(np.ascontiguousarray(made[:, : self.shape[1] // 32]).reshape(-1))

    def fill(self, rows: Callable[[int, int], npt.NDArray[Any]], what: str = "weight") -> None:
        """Quantize what rows(start, stop) gives, piece by piece."""
        for start, stop in self.pieces():
            values = rows(start, stop)
            if values.dtype not in (np.float32, np.float64, numpy_dtype("bfloat16")):
                values = values.astype(np.float32)
            wide = np.abs(values.astype(np.float32, copy=False)).max(initial=0.0)
            if not wide < (3e38 if self.type.channel else 65504.0 * (self.type.offset - 1)):
                raise NonFiniteError(f"{what}: expected finite numbers that fit {self.type.name}, got {wide}")
            k.quantize(k.from_numpy(np.ascontiguousarray(values)), self.data, *self.sizes, first=start)

    def put(
        self,
        first: int,
        codes: npt.NDArray[Any],
        scales: npt.NDArray[Any],
        minimums: npt.NDArray[Any] | None = None,
        zeros: npt.NDArray[Any] | None = None,
    ) -> None:
        """Codes and scales of rows from `first` on, a multiple of 32, as others made them; see pack()."""
        n, inner = codes.shape
        groups = -(-inner // self.group)
        least = self.type.least
        small = zeros if least == 2 else scales if scales.dtype == np.uint8 else None
        given: dict[str, npt.NDArray[Any] | None] = {"scales": scales}
        if least == 1 or minimums is not None:
            given["minimums"] = minimums
        if least == 2 or zeros is not None:
            given["zeros"] = zeros
        for name, each in given.items():
            if each is None or (name == "minimums" and least != 1) or (name == "zeros" and least != 2):
                raise ConfigError(f"{name}: {self.type.name} {'needs' if each is None else 'has no'} {name}")
            if inner != self.shape[1] or each.shape != (n, groups):
                raise ShapeError(f"{name}: expected ({n}, {groups}) for codes {codes.shape}, got {each.shape}")
        for name, each in (("codes", codes), ("zeros", zeros)):
            if each is not None and each.size and not 0 <= int(each.min()) <= int(each.max()) < 1 << self.type.bits:
                bad = max(int(each.max()), -int(each.min()))
                raise ShapeError(f"{name}: expected numbers below {1 << self.type.bits}, got {bad}")
        bytes_only = self.type.name in ("mxfp4", "nf4_double")
        if bytes_only != (scales.dtype == np.uint8):
            raise ConfigError(
                f"scales: {self.type.name} expected {'uint8' if bytes_only else 'numbers'}, got {scales.dtype}"
            )
        k.q_pack(
            k.from_numpy(np.ascontiguousarray(codes, np.uint8)),
            self.data,
            *self.sizes,
            scales=None if bytes_only else _exact(scales, self.type, "scales"),
            leasts=None if minimums is None else _exact(minimums, self.type, "minimums"),
            bytes=None if small is None else k.from_numpy(np.ascontiguousarray(small, np.uint8)),
            first=first,
        )

    def set_tables(
        self,
        codebook: npt.NDArray[Any] | None,
        nested: tuple[npt.NDArray[Any], float, npt.NDArray[Any]] | None = None,
    ) -> None:
        """What codes of NF4 stand for, and the scales of its scales; see pack(). Nothing for other types."""
        floats = k.q_table_floats(*self.sizes)
        wanted = floats > 0, floats > 16
        for name, has, want in (
            ("codebook", codebook is not None, wanted[0]),
            ("nested", nested is not None, wanted[1]),
        ):
            if has != want:
                raise ConfigError(f"{name}: {self.type.name} {'needs' if want else 'has no'} {name}")
        if codebook is None:
            return
        parts = [np.asarray(codebook, np.float32).reshape(-1)]
        if nested is not None:
            parts += [np.asarray(each, np.float32).reshape(-1) for each in nested]
        sizes = [16, 256, 1, floats - 273][: len(parts)]
        for name, part, size in zip(("codebook", "table", "offset", "nested scales"), parts, sizes, strict=False):
            if part.size != size:
                raise ShapeError(f"{name}: expected {size} numbers, got {part.size}")
            if not np.isfinite(part).all():
                raise NonFiniteError(f"{name}: expected finite numbers, got NaN or infinity")
        end = k.q_bytes(*self.sizes)
        self.data.numpy()[end - 4 * floats : end] = np.concatenate(parts).view(np.uint8)

    def set_order(self, permutation: npt.NDArray[Any]) -> None:
        """The column of the weight at each place of the codes. Raises ShapeError unless it is a permutation of K."""
        inner, order = self.shape[1], np.asarray(permutation)
        if not self.ordered or order.shape != (inner,) or not np.array_equal(np.sort(order), np.arange(inner)):
            raise ShapeError(f"permutation: expected each of 0 to {inner - 1} once, got {order.shape}")
        self.data.numpy()[-4 * inner :] = order.astype(np.int32).view(np.uint8)

    def check(self, what: str = "weight") -> None:
        """Raises FormatError naming `what` where bytes from a file hold an order that is none."""
        for each in self.matrices() if self.ordered else ():
            try:
                each.set_order(each.data.numpy()[-4 * each.shape[1] :].copy().view(np.int32))
            except ShapeError as error:
                raise FormatError(f"{what}: {error}") from None

    def pieces(self) -> list[tuple[int, int]]:
        """Rows of a matrix that are worked on at a time: start and stop."""
        step = max(1, PIECE // self.shape[1] // k.Q_COLS) * k.Q_COLS
        return [(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)]

    def dequantize(self, start: int = 0, stop: int | None = None, dtype: str = "float32") -> npt.NDArray[Any]:
        """The numbers of rows (of experts, where there are three axes) start..stop - 1, or of all."""
        end = self.shape[0] if stop is None else stop
        if self.ndim == 3:
            return np.stack([each.dequantize(dtype=dtype) for each in self.matrices()[start:end]])
        y = k.empty((end - start, self.shape[1]), dtype)
        k.q_dequantize(self.data, y, *self.sizes, first=start)
        return y.numpy()

    def rows(self, ids: Array, dtype: str | None = None) -> Array:
        """Rows at ids (T) int32 as numbers (T, K): what an embedding reads."""
        y = k.empty((*ids.shape, self.shape[1]), dtype or self.dtype)
        k.q_dequantize(self.data, y, *self.sizes, ids=ids)
        return y

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

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

"""Quantized models: which weights become what, rounding them, and how they lie in a folder of our own layout.

config.json of such a folder is family microgpt's with a key "quantized": type, group and shape of each weight by name.
model.safetensors holds their codes and scales as bytes, as the kernels read them (csrc/core/qtensor.h).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..errors import ConfigError, FormatError, NonFiniteError, nearest
from ..filters import Filter, matches
from ..io import ggml, ggml_quantize
from ..io.stored import Stored
from ..nn.linear import GroupedLinear, Linear
from ..nn.module import Module
from ..qtensor import GGUF_TYPES, Q_TYPES, Place, QTensor, q_type
from ..tensors import Room, numpy_dtype
from .decoder import Decoder

Row = tuple[Any, ...]  # type, group, and the shape: (experts,) rows, columns
Rows = Callable[[int, int], npt.NDArray[Any]]  # of a matrix, from the first number to the other
Filters = Mapping[str, str] | Iterable[tuple[Filter, str]]  # what they select -> its type, or float for none
Progress = Callable[[int, int, str], None]  # told matrices done, all, and the name of the next
LAYOUT = 1  # of codes and scales in files
# By name: the type of matrices in layers, and that of embeddings and head. 8 bits there are what Q6_K is to llama.cpp.
SCHEMES = {"int4": ("int4", "int8"), "int8": ("int8", "int8"), "int8_channel": ("int8_channel", "int8")}
SCHEMES |= {"q4_0": SCHEMES["int4"], "q8_0": SCHEMES["int8"]}  # llama.cpp's names of such blocks
ROUTERS = ".router.weight", ".shared_gate.weight"  # stay numbers: small, and what an error there changes is not small
FLOAT = "float"  # what a rule calls a weight that stays numbers
# Types of GGUF's blocks that numbers are rounded to by a search, which every method weights by importance but rtn.
BLOCKS = {name.lower(): name for name in ggml_quantize.ENCODERS if name.lower() in Q_TYPES}
BLOCKS_OF = {name: GGUF_TYPES[kind] for name, kind in BLOCKS.items()}  # the types of ours
KEPT = "keep"  # a file's own blocks where they are among the types


@dataclass(frozen=True)
class Scheme:
    """Types of the matrices in layers and of tables (embeddings, head), and the numbers that share a scale.

    `rules`: pairs of a filter over weights' names and the type of what it selects, float for none; the first that fits.
    """

    layers: str
    tables: str
    group: int = 32
    rules: tuple[tuple[Filter, str], ...] = ()

    def __post_init__(self) -> None:
        for name in (self.layers, self.tables, *(type for _, type in self.rules if type != FLOAT)):
            if not q_type(name).rounds and name not in BLOCKS:
                known = [other for other, row in Q_TYPES.items() if row.rounds]
                raise ConfigError(f"numbers are not rounded to {name}; known: {', '.join((*known, *BLOCKS))}")
            q_type(name).group(256, self.group)

    def of(self, name: str, table: bool) -> str | None:
        """The type of a weight, None where it stays numbers."""
        for where, type in self.rules:
            if matches(where, name):
                return None if type == FLOAT else type
        if name.endswith(ROUTERS):
            return None
        return self.tables if table else self.layers

    def check(self, names: Collection[str]) -> None:
        """Raises ConfigError for a rule that selects none of these weights: it would be a mistake."""
        for where, _ in self.rules:
            if not any(matches(where, name) for name in names):
                raise ConfigError(f"filter {where!r} matches no weight; names look like {', '.join(list(names)[:6])}")

    @classmethod
    def named(cls, name: str, group: int = 32) -> Scheme:
        """int4, int8, int8_channel, q4_0 or q8_0. Raises ConfigError with the nearest."""
        if name not in SCHEMES:
            raise ConfigError(f"quantize: unknown type {name!r}{nearest(name, SCHEMES)}; known: {', '.join(SCHEMES)}")
        return cls(*SCHEMES[name], group)

    @classmethod
    def of_bits(cls, bits: int, group: int = 32, filters: Filters = ()) -> Scheme:
        """4 or 8 bits in layers, and what `filters` say. Raises ConfigError for others."""
        if bits not in (4, 8):
            raise ConfigError(f"bits: expected 4 or 8, got {bits!r}")
        rules = filters.items() if isinstance(filters, Mapping) else filters
        named = tuple((where, _of_llama(type, group)) for where, type in rules)
        return replace(cls.named(f"int{bits}", group), rules=named)


def _of_llama(name: str, group: int) -> str:
    """Our name of the type that GGUF calls so; others stay. Raises ConfigError where the group is not its own."""
    found = GGUF_TYPES.get(name.upper(), name)
    if found != name.lower() and group != 32:
        raise ConfigError(f"{name} has groups of 32, group_size is {group}; {found} takes any")
    return found


@dataclass
class Report:
    """What quantizing did: numbers, bytes and squared error of the weights that were rounded, by name."""

    weights: dict[str, tuple[int, int, float, float]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)  # experts that a calibration text hardly reached, by name
    say: Callable[[int, int], None] | None = None  # told how many weights and matrices are done

    def add(self, name: str, weight: QTensor, error: float, square: float) -> None:
        """A weight whose squares sum up to `square`, and those of what rounding took to `error`."""
        self.weights[name] = weight.size, weight.nbytes, error, square
        self.types[name] = weight.type.name
        if self.say is not None:
            self.say(sum(row[0] for row in self.weights.values()), len(self.weights))

    def measure(self, name: str, weight: QTensor, parts: Sequence[Rows]) -> None:
        """Add a weight that was made of the rows of `parts`: itself, or its experts."""
        error = square = 0.0
        for matrix, rows in zip(weight.matrices(), parts, strict=True):
            for start, stop in matrix.pieces():
                values = rows(start, stop).astype(np.float32)
                square += float(np.vdot(values, values))
                values -= matrix.dequantize(start, stop)
                error += float(np.vdot(values, values))
        self.add(name, weight, error, square)

    @property
    def bits_per_weight(self) -> float:
        """Of the weights that were rounded, scales and filling included."""
        return 8.0 * sum(w[1] for w in self.weights.values()) / max(1, sum(w[0] for w in self.weights.values()))

    @property
    def relative_error(self) -> float:
        """Root of the squared error over that of the squares."""
        return _relative(self.weights.values())

    def to_dict(self) -> dict[str, Any]:
        """Bits a weight and relative error: of all, of each type, and of each matrix by name."""
        kinds: dict[str, list[tuple[int, int, float, float]]] = {}
        for name, row in self.weights.items():
            kinds.setdefault(self.types[name], []).append(row)
        return {
            **_summary(self.weights.values()),
            "types": {kind: {"matrices": len(rows), **_summary(rows)} for kind, rows in kinds.items()},
            "matrices": {
                name: {
                    "type": self.types[name],
                    **_summary([row]),
                    **({"unseen_experts": self.unseen[name]} if name in self.unseen else {}),
                }
                for name, row in self.weights.items()
            },
        }


def _relative(rows: Collection[tuple[int, int, float, float]]) -> float:
    square = sum(row[3] for row in rows)
    return math.sqrt(sum(row[2] for row in rows) / square) if square else 0.0


def _summary(rows: Collection[tuple[int, int, float, float]]) -> dict[str, Any]:
    count = sum(row[0] for row in rows)
    bits = 8.0 * sum(row[1] for row in rows) / max(1, count)
    return {"weights": count, "bits_per_weight": bits, "relative_error": _relative(rows)}


def places(model: Decoder) -> dict[str, tuple[Module, str, bool]]:
    """Weights that may be quantized by name: their module, its attribute, and whether they are tables."""
    found: dict[str, tuple[Module, str, bool]] = {"embed.weight": (model.embed, "weight", True)}
    if model.head is not None:
        found["head"] = model, "head", True
    for name, module in model.named_modules():
        if isinstance(module, (Linear, GroupedLinear)):
            found[f"{name}.weight"] = module, "weight", False
    return found


def weights_of(model: Decoder) -> dict[str, QTensor]:
    """The quantized weights of a model by name."""
    found = {name: getattr(module, attribute) for name, (module, attribute, _) in places(model).items()}
    return {name: weight for name, weight in found.items() if isinstance(weight, QTensor)}


def rounded(
    parts: Sequence[Rows],
    shape: tuple[int, ...],
    type: str,
    group: int,
    dtype: str,
    name: str,
    report: Report | None = None,
    where: str = "",
    room: Room | None = None,
    importance: Sequence[npt.NDArray[Any] | None] | None = None,
) -> QTensor:
    """A weight made of rows(start, stop), piece by piece: `parts` has one such function, or one for each expert where
    the shape has three axes. `importance` of each one's columns is for types of GGUF's blocks.

    Raises NonFiniteError naming it and `where` it is.
    """
    if len(shape) not in (2, 3):
        raise ConfigError(f"{where}{name}: expected two axes, got {shape}")
    made = QTensor(shape, BLOCKS_OF.get(type, type), group, dtype, room=room)
    for e, (matrix, rows) in enumerate(zip(made.matrices(), parts, strict=True)):
        what = f"{where}{name}" + (f" of expert {e}" if len(shape) == 3 else "")
        if type in BLOCKS:
            encoded = _encoded(rows, BLOCKS[type], what, None if importance is None else importance[e])
            QTensor.from_ggml(BLOCKS[type], encoded, matrix.shape, dtype, Place(matrix.data), what)
        else:
            matrix.fill(rows, what)
    if report is not None:
        report.measure(name, made, parts)
    return made


def _encoded(
    rows: Rows, kind: str, what: str, importance: npt.NDArray[Any] | None
) -> Callable[[int, int], npt.NDArray[np.uint8]]:
    def blocks(start: int, stop: int) -> npt.NDArray[np.uint8]:
        try:
            return ggml_quantize.quantize(rows(start, stop), ggml.NAMED[kind], importance)
        except NonFiniteError as error:
            raise NonFiniteError(f"{what}: {error}") from None

    return blocks


def rows_of(values: npt.NDArray[Any]) -> list[Rows]:
    """The rows of a matrix, or of each expert's."""

    def of(each: npt.NDArray[Any]) -> Rows:
        return lambda start, stop: each[start:stop]

    return [of(each) for each in (values if values.ndim == 3 else [values])]


def quantize_decoder(
    model: Decoder, scheme: Scheme, say: Callable[[str], None] | None = None, progress: Progress | None = None
) -> Report:
    """Round a model's matrices in place, each let go before the next one is made; what is rounded already stays."""
    report, room = Report(), Room("uint8")
    found = places(model)
    scheme.check(found)
    for number, (name, (module, attribute, table)) in enumerate(found.items(), 1):
        weight, type = getattr(module, attribute), scheme.of(name, table)
        if isinstance(weight, QTensor) or type is None:
            continue
        if progress is not None:
            progress(number - 1, len(found), name)
        made = rounded(rows_of(weight.numpy()), weight.shape, type, scheme.group, weight.dtype, name, report, "", room)
        setattr(module, attribute, made)
        if say is not None:
            say(f"{number}/{len(found)} {name}: {type}")
    return report


# -- files -------------------------------------------------------------------------------------------------------------
def to_config(model: Decoder) -> dict[str, Any] | None:
    """The key "quantized" of config.json; None where nothing is."""
    found = weights_of(model)
    if not found:
        return None
    weights = {name: [w.type.name, w.group, *w.shape] for name, w in found.items()}
    return {"layout": LAYOUT, "dtype": model.dtype, "weights": weights}


def from_config(values: Any, where: str) -> tuple[str, dict[str, Row]]:
    """The type that the model computes in, and type, group and shape of each weight by name. Raises FormatError."""
    if not isinstance(values, dict) or values.get("layout") != LAYOUT:
        got = values.get("layout") if isinstance(values, dict) else type(values).__name__
        raise FormatError(f"{where}: quantized: expected layout {LAYOUT}, got {got!r}")
    dtype, weights = values.get("dtype"), values.get("weights")
    if dtype not in ("float32", "bfloat16", "float64") or not isinstance(weights, Mapping):
        raise FormatError(f"{where}: quantized: expected a dtype and weights, got {dtype!r}")
    made = {}
    for name, row in weights.items():
        if not (isinstance(row, list) and len(row) in (4, 5) and all(type(size) is int for size in row[1:])):
            raise FormatError(f"{where}: quantized: {name!r} expected [type, group, (experts,) rows, columns]")
        if not all(0 < size < 2**31 for size in row[2:]):
            raise FormatError(f"{where}: quantized: {name!r} of {' x '.join(map(str, row[2:]))}")
        try:
            q_type(row[0]).group(row[-1], row[1])
        except ConfigError as error:
            raise FormatError(f"{where}: quantized: {name!r}: {error}") from None
        made[name] = tuple(row)
    return dtype, made


def restored(row: Row, stored: Stored, dtype: str, what: str, room: Room | None = None) -> QTensor:
    """A weight of a file of our own layout. Raises FormatError where its bytes are not as many as its shape needs."""
    type, group, *shape = row
    size = q_bytes(*row)
    orders = 4 * math.prod(shape[:-2]) * shape[-1]
    ordered = stored.shape == (size + orders,) and not q_type(type).channel  # by a permutation of the columns
    if stored.dtype != "uint8" or not (ordered or stored.shape == (size,)):
        raise FormatError(f"{what}: expected {size} bytes, got {stored.dtype} of shape {stored.shape}")
    made = QTensor(tuple(shape), type, group, dtype, room, ordered)
    data = made.data.numpy()
    if stored.into is None:
        data[...] = stored.array()
    else:
        stored.into(0, data)
    made.check(what)
    return made


def q_bytes(type: str, group: int, *shape: int) -> int:
    """Memory of a quantized weight (N, K) or (E, N, K)."""
    kind = q_type(type)
    n, inner = shape[-2:]
    return math.prod(shape[:-2]) * int(k.q_bytes(kind.number, n, inner, kind.group(inner, group)))


def arrays(model: Decoder) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Bytes of the quantized weights by name, as files hold them."""
    for name, weight in weights_of(model).items():
        yield name, weight.data.numpy()


def bytes_needed(
    shapes: Mapping[str, tuple[int, ...]], dtype: str, scheme: Scheme | None, given: Mapping[str, Row]
) -> int:
    """Memory of weights of `shapes` in a model of `dtype`, rounded by `scheme` or as a file has them."""
    item, total = numpy_dtype(dtype).itemsize, 0
    for name, shape in shapes.items():
        if name in given:
            total += q_bytes(*given[name])
        elif scheme is not None and len(shape) in (2, 3) and name not in ("positions.weight", "token_types.weight"):
            type = scheme.of(name, name in ("embed.weight", "head"))
            kind = None if type is None else BLOCKS_OF.get(type, type)
            total += item * math.prod(shape) if kind is None else q_bytes(kind, scheme.group, *shape)
        else:
            total += item * math.prod(shape)
    return total

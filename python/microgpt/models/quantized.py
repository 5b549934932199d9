"""Quantized models: which weights become what, rounding them, and how they lie in a folder of our own layout.

config.json of such a folder is family microgpt's with a key "quantized": type, group and shape of each weight by name.
model.safetensors holds their codes and scales as bytes, as the kernels read them (csrc/core/qtensor.h).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..errors import ConfigError, FormatError, nearest
from ..io.stored import Stored
from ..nn.linear import Linear
from ..nn.module import Module
from ..qtensor import QTensor, q_type
from ..tensor import Room, numpy_dtype
from .decoder import Decoder

Row = tuple[str, int, int, int]  # type, group, rows, columns
LAYOUT = 1  # of codes and scales in files
# By name: the type of matrices in layers, and that of embeddings and head. 8 bits there are what Q6_K is to llama.cpp.
SCHEMES = {"int4": ("int4", "int8"), "int8": ("int8", "int8"), "int8_channel": ("int8_channel", "int8")}
SCHEMES |= {"q4_0": SCHEMES["int4"], "q8_0": SCHEMES["int8"]}  # llama.cpp's names of such blocks
KEPT = "keep"  # a file's own blocks where they are among the types


@dataclass(frozen=True)
class Scheme:
    """Types of the matrices in layers and of tables (embeddings, head), and the numbers that share a scale."""

    layers: str
    tables: str
    group: int = 32

    def __post_init__(self) -> None:
        for name in (self.layers, self.tables):
            q_type(name).group(256, self.group)

    @classmethod
    def named(cls, name: str, group: int = 32) -> Scheme:
        """int4, int8, int8_channel, q4_0 or q8_0. Raises ConfigError with the nearest."""
        if name not in SCHEMES:
            raise ConfigError(f"quantize: unknown type {name!r}{nearest(name, SCHEMES)}; known: {', '.join(SCHEMES)}")
        return cls(*SCHEMES[name], group)

    @classmethod
    def of_bits(cls, bits: int, group: int = 32, method: str = "rtn") -> Scheme:
        """4 or 8 bits, rounded to nearest. Raises ConfigError for others."""
        if method != "rtn":
            raise ConfigError(f"method: expected rtn (round to nearest), got {method!r}")
        if bits not in (4, 8):
            raise ConfigError(f"bits: expected 4 or 8, got {bits!r}")
        return cls.named(f"int{bits}", group)


@dataclass
class Report:
    """What quantizing did: numbers, bytes and squared error of the weights that were rounded, by name."""

    weights: dict[str, tuple[int, int, float, float]] = field(default_factory=dict)
    say: Callable[[int, int], None] | None = None  # told how many weights and matrices are done

    def add(self, name: str, weight: QTensor, error: float, square: float) -> None:
        """A weight whose squares sum up to `square`, and those of what rounding took to `error`."""
        self.weights[name] = weight.size, weight.nbytes, error, square
        if self.say is not None:
            self.say(sum(row[0] for row in self.weights.values()), len(self.weights))

    @property
    def bits_per_weight(self) -> float:
        """Of the weights that were rounded, scales and filling included."""
        return 8.0 * sum(w[1] for w in self.weights.values()) / max(1, sum(w[0] for w in self.weights.values()))

    @property
    def relative_error(self) -> float:
        """Root of the squared error over that of the squares."""
        square = sum(w[3] for w in self.weights.values())
        return math.sqrt(sum(w[2] for w in self.weights.values()) / square) if square else 0.0


def places(model: Decoder) -> dict[str, tuple[Module, str, bool]]:
    """Weights that may be quantized by name: their module, its attribute, and whether they are tables."""
    found: dict[str, tuple[Module, str, bool]] = {"embed.weight": (model.embed, "weight", True)}
    if model.head is not None:
        found["head"] = model, "head", True
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            found[f"{name}.weight"] = module, "weight", False
    return found


def weights_of(model: Decoder) -> dict[str, QTensor]:
    """The quantized weights of a model by name."""
    found = {name: getattr(module, attribute) for name, (module, attribute, _) in places(model).items()}
    return {name: weight for name, weight in found.items() if isinstance(weight, QTensor)}


def rounded(
    rows: Callable[[int, int], npt.NDArray[Any]],
    shape: tuple[int, ...],
    type: str,
    group: int,
    dtype: str,
    name: str,
    report: Report | None = None,
    where: str = "",
    room: Room | None = None,
) -> QTensor:
    """A weight made of rows(start, stop), piece by piece. Raises NonFiniteError naming it and `where` it is."""
    if len(shape) != 2:
        raise ConfigError(f"{where}{name}: expected two axes, got {shape}")
    made = QTensor((shape[0], shape[1]), type, group, dtype, room=room)
    made.fill(rows, where + name)
    if report is not None:
        error = square = 0.0
        for start, stop in made.pieces():
            values = rows(start, stop).astype(np.float32)
            square += float(np.vdot(values, values))
            values -= made.dequantize(start, stop)
            error += float(np.vdot(values, values))
        report.add(name, made, error, square)
    return made


def _rows_of(values: npt.NDArray[Any]) -> Callable[[int, int], npt.NDArray[Any]]:
    return lambda start, stop: values[start:stop]


def quantize_decoder(model: Decoder, scheme: Scheme, say: Callable[[str], None] | None = None) -> Report:
    """Round a model's matrices in place, each let go before the next one is made; what is rounded already stays."""
    report, room = Report(), Room("uint8")
    found = places(model)
    for number, (name, (module, attribute, table)) in enumerate(found.items(), 1):
        weight = getattr(module, attribute)
        if isinstance(weight, QTensor):
            continue
        type = scheme.tables if table else scheme.layers
        made = rounded(_rows_of(weight.numpy()), weight.shape, type, scheme.group, weight.dtype, name, report, "", room)
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
        if not (isinstance(row, list) and len(row) == 4 and all(type(size) is int for size in row[1:])):
            raise FormatError(f"{where}: quantized: {name!r} expected [type, group, rows, columns]")
        if not (0 < row[2] < 2**31 and 0 < row[3] < 2**31):
            raise FormatError(f"{where}: quantized: {name!r} of {row[2]} x {row[3]}")
        try:
            q_type(row[0]).group(row[3], row[1])
        except ConfigError as error:
            raise FormatError(f"{where}: quantized: {name!r}: {error}") from None
        made[name] = row[0], row[1], row[2], row[3]
    return dtype, made


def restored(row: Row, stored: Stored, dtype: str, what: str, room: Room | None = None) -> QTensor:
    """A weight of a file of our own layout. Raises FormatError where its bytes are not as many as its shape needs."""
    type, group, n, inner = row
    size = q_bytes(type, group, n, inner)
    if stored.dtype != "uint8" or stored.shape != (size,):
        raise FormatError(f"{what}: expected {size} bytes, got {stored.dtype} of shape {stored.shape}")
    made = QTensor((n, inner), type, group, dtype, room=room)
    data = made.data.numpy()
    if stored.into is None:
        data[...] = stored.array()
    else:
        stored.into(0, data)
    return made


def q_bytes(type: str, group: int, n: int, inner: int) -> int:
    """Memory of a quantized weight (n, inner)."""
    kind = q_type(type)
    return int(k.q_bytes(kind.number, n, inner, kind.group(inner, group)))


def arrays(model: Decoder) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Bytes of the quantized weights by name, as files hold them."""
    for name, weight in weights_of(model).items():
        yield name, weight.data.numpy()


# -- blocks of GGUF ----------------------------------------------------------------------------------------------------
BLOCKS = {"Q4_0": "int4", "Q8_0": "int8"}  # the same numbers: code - offset times a float16 scale, in groups of 32


def from_blocks(
    kind: str,
    rows: Callable[[int, int], npt.NDArray[Any]],
    shape: tuple[int, ...],
    dtype: str,
    room: Room | None = None,
) -> QTensor:
    """A weight out of Q4_0 or Q8_0 blocks: rows(start, stop) gives their bytes (rows, bytes). Exact."""
    made = QTensor((shape[0], shape[1]), BLOCKS[kind], 32, dtype, room=room)
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16 if kind == "Q4_0" else 32)])
    for start, stop in made.pieces():
        blocks = np.ascontiguousarray(rows(start, stop)).view(layout)  # (rows, groups)
        quants = blocks["qs"]
        codes = np.concatenate([quants & 15, quants >> 4], axis=-1) if kind == "Q4_0" else quants ^ np.uint8(128)
        made.put(start, codes.reshape(stop - start, -1), blocks["d"].astype(np.float32))
    return made


def bytes_needed(
    shapes: Mapping[str, tuple[int, ...]], dtype: str, scheme: Scheme | None, given: Mapping[str, Row]
) -> int:
    """Memory of weights of `shapes` in a model of `dtype`, rounded by `scheme` or as a file has them."""
    item, total = numpy_dtype(dtype).itemsize, 0
    for name, shape in shapes.items():
        if name in given:
            total += q_bytes(*given[name])
        elif scheme is not None and len(shape) == 2 and name not in ("positions.weight", "token_types.weight"):
            table = name in ("embed.weight", "head")
            total += q_bytes(scheme.tables if table else scheme.layers, scheme.group, *shape)
        else:
            total += item * math.prod(shape)
    return total

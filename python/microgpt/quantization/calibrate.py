"""A text run through a model in float, block by block, to see what each linear layer is given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..autograd import no_grad
from ..errors import DataError, NonFiniteError
from ..models.decoder import Decoder
from ..nn.context import Ctx, Layout
from ..nn.linear import Adapter, GroupedLinear, Linear
from ..nn.module import Module
from ..tensors import Tensor, wide, zeros

LEAST = 512  # tokens of a calibration: fewer say little about thousands of columns
LENGTH = 512  # tokens of a piece, where the model's context is as long
SAMPLED = 512  # inputs of a layer kept as they are


class Tokenizer(Protocol):
    """What turns the text into ids."""

    adds_bos: bool

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Ids of a text."""


def read_calibration(source: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    """The text of a UTF-8 file, or texts as they are. Raises DataError."""
    if not isinstance(source, (str, os.PathLike)):
        return list(source)
    path = Path(source)
    try:
        return [path.read_text(encoding="utf-8").removeprefix("\ufeff")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8: {error.reason} at byte offset {error.start}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from error


def pieces_of(texts: Sequence[str], tokenizer: Tokenizer, context: int, tokens: int) -> list[npt.NDArray[np.int32]]:
    """Pieces of ids of up to 512 tokens, `tokens` in all, spread evenly over the texts.

    Raises DataError where there are fewer than 512 tokens.
    """
    found: list[npt.NDArray[np.int32]] = []
    for text in texts:
        ids = np.asarray(tokenizer.encode(text, add_bos=tokenizer.adds_bos), np.int32)
        found += [ids[start : start + LENGTH] for start in range(0, len(ids), min(LENGTH, context))]
    found = [piece[: min(LENGTH, context)] for piece in found if len(piece)]
    count = sum(map(len, found))
    if count < LEAST:
        raise DataError(f"calibration text too short: expected at least {LEAST} tokens, got {count}")
    wanted = max(1, round(len(found) * tokens / count))
    if wanted < len(found):
        found = [found[i * len(found) // wanted] for i in range(wanted)]
    return found


class Observer(Adapter):
    """Sums up what a linear layer is given: squares of each column, and where asked all products of two columns."""

    def __init__(self, width: int, products: bool) -> None:
        self.rows = 0
        self.squares = np.zeros(width)
        self._wanted = products
        self._products: Any = None
        self.sample: list[npt.NDArray[np.float32]] = []
        self.seen: Any = None  # the last array that was given

    def output(self, x: Tensor, weight: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        """y as it is; x is noted."""
        self.seen = x.data
        self.add(x)
        return y

    def add(self, x: Tensor) -> None:
        """Note inputs (..., K)."""
        width = len(self.squares)
        values = x.numpy().astype(np.float32, copy=False).reshape(-1, width)
        self.rows += len(values)
        self.squares += np.einsum("ij,ij->j", values, values)
        if self._wanted:
            if self._products is None:
                self._products = zeros((width, width), wide(x.dtype)).data
            k.gemm(x.data, x.data, self._products, width, width, len(values), trans_a=True, accumulate=True)
        self.sample.append(values[:: max(1, len(values) // 64)].copy())

    @property
    def products(self) -> npt.NDArray[Any] | None:
        """(K, K): the sum of x x^T, where asked."""
        return None if self._products is None else self._products.numpy()

    def inputs(self) -> npt.NDArray[np.float32]:
        """Up to 512 of the inputs (rows, K), evenly spread."""
        rows = np.concatenate(self.sample)
        return rows[:: -(-len(rows) // SAMPLED)]

    def check(self, name: str) -> None:
        """Raises NonFiniteError naming the layer for inputs that are not finite."""
        if not np.isfinite(self.squares).all():
            raise NonFiniteError(f"calibration: the inputs of {name} are not finite")


class ExpertsObserver(Adapter):
    """An Observer for each expert of a layer: of the rows that reach it."""

    def __init__(self, experts: int, width: int, products: bool) -> None:
        self.experts = [Observer(width, products) for _ in range(experts)]

    def output(self, x: Tensor, weight: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        """y as it is; x (R, K) is noted."""
        starts = self.offsets.numpy()
        for observer, start, stop in zip(self.experts, starts[:-1], starts[1:], strict=True):
            if stop > start:
                observer.add(x[int(start) : int(stop)])
        return y

    @property
    def rows(self) -> int:
        """Of all experts."""
        return sum(each.rows for each in self.experts)

    def check(self, name: str) -> None:
        """As Observer.check()."""
        for each in self.experts:
            each.check(name)


@dataclass
class Streams:
    """Pieces of text on their way through a model: the stream of each, and its context."""

    pieces: list[npt.NDArray[np.int32]]
    x: list[Tensor]
    contexts: list[Ctx]

    @classmethod
    def of(cls, model: Decoder, pieces: list[npt.NDArray[np.int32]]) -> Streams:
        """At the first block."""
        contexts = [Ctx(Layout.packed([len(piece)])) for piece in pieces]
        with no_grad():
            x = [model.enter(k.from_numpy(piece), ctx) for piece, ctx in zip(pieces, contexts, strict=True)]
        return cls(pieces, x, contexts)

    def through(self, block: Module) -> Iterator[Tensor]:
        """What a block makes of each piece."""
        for x, ctx in zip(self.x, self.contexts, strict=True):
            with no_grad():
                y: Tensor = block(x, ctx)  # type: ignore[operator]
            ctx.aux.clear()  # losses of training
            yield y

    def observe(
        self, block: Module, linears: dict[str, Linear | GroupedLinear], products: bool
    ) -> dict[str, Observer | ExpertsObserver]:
        """What the linear layers of a block are given, by name; those that were given nothing are left out."""
        observers: dict[str, Observer | ExpertsObserver] = {}
        for name, linear in linears.items():
            shape = linear.weight.shape
            width = shape[-1]
            observers[name] = (
                ExpertsObserver(shape[0], width, products) if len(shape) == 3 else Observer(width, products)
            )
        for name, observer in observers.items():
            linears[name].adapters.append(observer)
        try:
            for _ in self.through(block):
                pass
        finally:
            for name, observer in observers.items():
                linears[name].adapters.remove(observer)
        for name, observer in observers.items():
            observer.check(name)
        return {name: observer for name, observer in observers.items() if observer.rows}

    def advance(self, block: Module) -> None:
        """Go on behind a block."""
        self.x = list(self.through(block))

"""Quantize a model with what a calibration text shows: block by block, each given what the rounded ones before make."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..autograd import no_grad
from ..errors import ConfigError, NonFiniteError, nearest
from ..models.decoder import Decoder
from ..models.quantized import BLOCKS, Progress, Report, Scheme, places, quantize_decoder, rounded, rows_of
from ..qtensor import QTensor
from ..tensors import Room
from .awq import fold_block
from .calibrate import LEAST, ExpertsObserver, Observer, Streams, Tokenizer, pieces_of, read_calibration
from .gptq import gptq
from .rounding import damped, weighted_round

METHODS = ("rtn", "imatrix", "gptq", "awq")
TOKENS = 32768  # of a calibration
LEAST_ROWS = 64  # that an expert must see: a mean square of so many is known to about a fifth


def check_method(method: str) -> str:
    """One of METHODS. Raises ConfigError naming the nearest."""
    if method not in METHODS:
        raise ConfigError(f"method: unknown {method!r}{nearest(method, METHODS)}; known: {', '.join(METHODS)}")
    return method


def quantize_model(
    model: Decoder,
    tokenizer: Tokenizer,
    scheme: Scheme,
    method: str = "rtn",
    calibration: str | os.PathLike[str] | Sequence[str] | None = None,
    tokens: int = TOKENS,
    act_order: bool = True,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Round a model's matrices in place, by any of METHODS.

    All but rtn look at what the model does with `calibration`, a text file or a list of texts, of which they take
    `tokens`, spread evenly. `act_order`: gptq takes the columns with the largest inputs first. `say` is told what is
    done, `progress` matrices done, all, and the name of the next.
    Raises ConfigError, DataError for a calibration text that is too short, NonFiniteError naming the weight.
    """
    if check_method(method) == "rtn":
        return quantize_decoder(model, scheme, say, progress)
    if calibration is None:
        raise ConfigError(f"method {method}: expected a calibration text, got none")
    if type(tokens) is not int or tokens < LEAST:
        raise ConfigError(f"tokens: expected at least {LEAST}, got {tokens!r}")
    pieces = pieces_of(read_calibration(calibration), tokenizer, model.config.max_positions, tokens)
    if say is not None:
        say(f"calibration: {sum(map(len, pieces)):,} tokens in {len(pieces)} pieces")
    return quantize_calibrated(model, scheme, method, pieces, act_order, progress)


def quantize_calibrated(
    model: Decoder,
    scheme: Scheme,
    method: str,
    pieces: list[npt.NDArray[np.int32]],
    act_order: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Round a model's matrices in place; what is rounded already stays, and so does what `scheme` leaves as it is.

    `method` imatrix, gptq or awq; `pieces` of ids, see calibrate.pieces_of(). `progress` is told matrices done, all,
    and the name of the next. Matrices that the text never reaches, and experts that fewer than LEAST_ROWS of its tokens
    go to, are rounded to nearest.
    Raises NonFiniteError naming the weight or the layer.
    """
    work = Work(model, scheme, check_method(method), act_order, progress)
    streams = Streams.of(model, pieces)
    for i, block in enumerate(model.blocks):
        names = [name for name in work.places if name.startswith(f"blocks.{i}.")]
        linears: dict[str, Any] = {name: work.places[name][0] for name in names}
        floats = {n: linear for n, linear in linears.items() if not isinstance(linear.weight, QTensor)}
        for name, linear in floats.items():
            check_finite(name, linear.weight.numpy())
        observers = streams.observe(block, floats, method == "gptq")
        if method == "awq":
            types = {n: t for n, t in work.types.items() if isinstance(observers.get(n), Observer)}

            def run(block: Any = block) -> npt.NDArray[Any]:
                with no_grad():
                    y = block(streams.x[0], streams.contexts[0]).numpy().copy()
                streams.contexts[0].aux.clear()
                return y

            fold_block(block, observers, run, types)
        for name in floats:
            work.round(name, observers.get(name))
        streams.advance(block)
    head = "embed.weight" if model.head is None else "head"
    if head in work.types:
        observer = Observer(model.config.width, method == "gptq")
        for x in streams.x:
            with no_grad():
                observer.add(x if model.norm is None else model.norm(x))
        observer.check(head)
        work.round(head, observer)
    for name in list(work.types):  # tables, and what stands beside the blocks
        work.round(name, None)
    return work.report


class Work:
    """What is left to be rounded, and how."""

    def __init__(self, model: Decoder, scheme: Scheme, method: str, act_order: bool, progress: Progress | None) -> None:
        self.places = places(model)
        scheme.check(self.places)
        self.types: dict[str, tuple[str, int]] = {}  # of what is not rounded yet
        for name, (module, attribute, table) in self.places.items():
            type = scheme.of(name, table)
            if type is not None and not isinstance(getattr(module, attribute), QTensor):
                self.types[name] = type, scheme.group
        self.method, self.act_order, self.progress = method, act_order, progress
        self.all = len(self.types)
        self.report, self.room = Report(), Room("uint8")

    def round(self, name: str, observer: Observer | ExpertsObserver | None) -> None:
        """Round one matrix, where it is among those to be rounded and has not been yet."""
        if name not in self.types:
            return
        type, size = self.types.pop(name)
        if self.progress is not None:
            self.progress(self.all - len(self.types) - 1, self.all, name)
        module, attribute, _ = self.places[name]
        weight = getattr(module, attribute)
        values = weight.numpy()
        check_finite(name, values)
        experts = observer.experts if isinstance(observer, ExpertsObserver) else [] if observer is None else [observer]
        few = [isinstance(observer, ExpertsObserver) and each.rows < LEAST_ROWS for each in experts]
        if any(few):
            self.report.unseen[name] = sum(few)
        if observer is None or type in BLOCKS:
            importance = [None if less else damped(each.squares) for each, less in zip(experts, few, strict=True)]
            made = rounded(
                rows_of(values),
                values.shape,
                type,
                size,
                weight.dtype,
                name,
                room=self.room,
                importance=importance or None,
            )
        else:
            made = QTensor(values.shape, type, size, weight.dtype, room=self.room)
            each_values = values if made.ndim == 3 else [values]
            for matrix, part, each, less in zip(made.matrices(), each_values, experts, few, strict=True):
                self._fill(name, matrix, part, None if less else each)
        setattr(module, attribute, made)
        self.report.measure(name, made, rows_of(values))
        if self.progress is not None and not self.types:
            self.progress(self.all, self.all, "")

    def _fill(self, name: str, made: QTensor, values: npt.NDArray[Any], observer: Observer | None) -> None:
        """The codes of one matrix; without an observer, of an expert that saw too little, the nearest."""
        kind, group = made.type, made.group
        if observer is None:
            made.fill(lambda start, stop: values[start:stop], name)
            return
        if self.method == "gptq":
            assert observer.products is not None
            made.put(0, *finite(name, *gptq(values, observer.products, kind, group, self.act_order)))
            return
        for start, stop in made.pieces():
            piece = values[start:stop].astype(np.float32)
            made.put(start, *finite(name, *weighted_round(piece, observer.squares, kind, group)))


def check_finite(name: str, values: npt.NDArray[Any]) -> None:
    """Raises NonFiniteError naming a weight with NaN or infinity."""
    if not np.isfinite(values.astype(np.float32, copy=False)).all():
        raise NonFiniteError(f"{name}: expected finite numbers, got NaN or infinity")


def finite(name: str, codes: npt.NDArray[np.uint8], scales: npt.NDArray[Any]) -> tuple[Any, Any]:
    """Codes and scales. Raises NonFiniteError where a scale is beyond float16."""
    if not np.isfinite(scales).all():
        raise NonFiniteError(f"{name}: numbers too large: their scale is beyond float16")
    return codes, scales

"""Scales of groups of numbers whose rounding leaves the least squared error: the search behind every quantizer here."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from microgpt import _kernels as k

Floats: TypeAlias = npt.NDArray[np.float32]
# How far beyond the range of the integers the largest number may fall, in steps; from sweeps (docs/log.md).
STEPS = np.arange(-1.5, 2.01, 0.25)
FINE_STEPS = np.arange(-4.0, 1.01, 0.5)  # of 8 bits
IQ4 = 1  # the entries of GGUF's IQ4 types in place of whole numbers


def _given(values: npt.NDArray[Any]) -> k.Array:
    return k.from_numpy(np.ascontiguousarray(values, np.float32))


def best_scales(
    x: npt.NDArray[Any],
    low: int,
    high: int,
    steps: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
    sides: int = 2,
    rounds: int = 1,
    book: int = 0,
) -> Floats:
    """Scales (n) of groups x (n, m), finite: sum w (x - scale q)^2 is small, q the nearest of low..high.

    `weights` (m), or (rows, m): group g takes row g % rows; none below zero. `steps`: how far beyond `high` the largest
    may fall, each tried with either sign where `sides` is 2 and fitted `rounds` times to the integers it rounds to.
    With `book` IQ4, q are its entries and `high` is 127.
    """
    scale = k.empty((len(x),), "float32")
    given = None if weights is None else _given(weights)
    k.q_fit(_given(x), scale, _given(steps), x.shape[1], low, high, sides, rounds, weights=given, book=book)
    return scale.numpy()


def best_lines(
    x: npt.NDArray[Any],
    high: int,
    steps: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
    rounds: int = 1,
    bounded: bool = False,
) -> tuple[Floats, Floats]:
    """The same for x ~ scale q - minimum with q in 0..high: scales and minima (n), the latter not below zero where
    `bounded`."""
    scale, least = k.empty((len(x),), "float32"), k.empty((len(x),), "float32")
    given = None if weights is None else _given(weights)
    k.q_fit(
        _given(x), scale, _given(steps), x.shape[1], 0, high, 1, rounds, weights=given, least=least, bounded=bounded
    )
    return scale.numpy(), least.numpy()

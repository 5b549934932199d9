"""Ctx: what a forward pass knows besides its input: how tokens are packed, the states, dropout, adapters."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..errors import ShapeError
from ..tensors import Tensor
from .spec import Mask

Array = k.Array


class Layout:
    """Packed tokens: sequence s owns rows q_start[s]..q_start[s+1]-1 and keys k_start[s]..k_start[s]+k_len[s]-1.

    Fields are int32 arrays of fixed size, so that a recorded program can be fed other sequences of the same total.
    Positions are below `reach` (None: `tokens`), whatever is fed: tables of positions are made so long.
    """

    def __init__(self, tokens: int, sequences: int, reach: int | None = None) -> None:
        self.tokens = tokens
        self.sequences = sequences
        self.reach = max(1, tokens if reach is None else reach)
        self.q_start = k.empty((sequences + 1,), "int32")
        self.k_start = k.empty((sequences,), "int32")
        self.k_len = k.empty((sequences,), "int32")
        self.positions = k.empty((tokens,), "int32")

    @classmethod
    def packed(cls, lengths: Sequence[int]) -> Layout:
        """Whole sequences one after another: queries and keys are the same rows."""
        layout = cls(sum(lengths), len(lengths))
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        positions = np.concatenate([np.arange(n, dtype=np.int32) for n in (*lengths, 0)])
        layout.feed(starts, positions)
        return layout

    def feed(self, cu_seqlens: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]) -> None:
        """Other whole sequences with the same number of tokens; trailing sequences may be empty.

        Raises ShapeError for positions that tables were not made for.
        """
        if positions.size and not 0 <= positions.min() <= positions.max() < self.reach:
            raise ShapeError(f"positions: expected 0 to {self.reach - 1}, got {positions.min()} to {positions.max()}")
        self.q_start.copy_from(cu_seqlens)
        self.k_start.copy_from(cu_seqlens[:-1])
        self.k_len.copy_from(cu_seqlens[1:] - cu_seqlens[:-1])
        self.positions.copy_from(positions)

    @classmethod
    def cached(cls, new: Sequence[int], past: Sequence[int], rows: Sequence[int]) -> Layout:
        """`new[s]` tokens of sequence s after `past[s]` that are cached from row rows[s] on."""
        layout = cls(sum(new), len(new), max(p + n for p, n in zip(past, new, strict=True)))
        counts, before = np.asarray(new, np.int32), np.asarray(past, np.int32)
        layout.q_start.copy_from(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        layout.k_start.copy_from(np.asarray(rows, np.int32))
        layout.k_len.copy_from(before + counts)
        positions = [np.arange(p, p + n) for n, p in zip(new, past, strict=True)]
        layout.positions.copy_from(np.concatenate(positions).astype(np.int32))
        return layout


class States(Protocol):
    """What sequences remember between calls, as the mixers see it."""

    def update(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Any, Any]:
        """Remember new keys and values of a layer; returns all of them, in the rows that the layout names: tensors, or
        what attention reads in their place (KVRows)."""

    def recurrent(self, slot: int) -> dict[str, Array]:
        """Arrays (sequences, ...) of a layer: taken up and changed in place."""


@dataclass
class Dropout:
    """Where dropout masks come from: the seed, and the buffer that counts steps."""

    seed: int
    step: Array  # int64, one number


class Aux(Protocol):
    """What a layer adds to the loss of training. Terms of one key, from several layers, make one number."""

    @property
    def key(self) -> Hashable:
        """Which terms belong together."""

    @staticmethod
    def total(terms: Sequence[Any]) -> Tensor:
        """The number to add, of all terms with one key."""


@dataclass
class Ctx:
    """Passed to every layer. `states` is None in training, `dropout` None outside it.

    `mask` replaces the layers' own masks for this call (bidirectional scoring, shifted windows).
    """

    layout: Layout
    states: States | None = None
    dropout: Dropout | None = None
    mask: Mask | None = None
    aux: list[Aux] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def aux_loss(self) -> Tensor | None:
        """The sum of what layers add to the loss, None where they add nothing."""
        groups: dict[Hashable, list[Aux]] = {}
        for term in self.aux:
            groups.setdefault(term.key, []).append(term)
        total: Tensor | None = None
        for terms in groups.values():
            part = terms[0].total(terms)
            total = part if total is None else total + part
        return total

    def check_tokens(self, tokens: int) -> None:
        """Raises ShapeError unless the layout describes this many tokens."""
        if self.layout.tokens != tokens:
            raise ShapeError(f"the layout describes {self.layout.tokens} tokens, the input has {tokens}")

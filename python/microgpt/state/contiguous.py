"""Contiguous states: of each layer, every sequence owns `capacity` rows of keys and values, or one row of each array.

Recurrent arrays know only the present. Going back needs a copy of it: keep() makes one, rollback() finds it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from .. import _kernels as k
from ..errors import ShapeError
from ..kvrows import KVRows
from ..tensors import Room, Tensor
from .spec import KVSpec, StateSpec

Array = k.Array
Snapshot = list[Array]  # one for each recurrent array, in order


class ContiguousStates:
    """States of `sequences` sequences of up to `capacity` tokens, for layers that declare `specs`.

    A call processes new[s] tokens of sequence s: begin(new), then the layers update() in it, then commit().
    """

    def __init__(self, specs: Sequence[StateSpec], sequences: int, capacity: int) -> None:
        rows = sequences * capacity
        self.capacity = capacity
        self.lengths = [0] * sequences
        self._new = [0] * sequences
        self._places: Array | None = None
        self._fresh: Array | None = None  # rows of the announced tokens, once they are asked for
        self._pairs: dict[int, tuple[Array, Array]] = {}
        self._typed: dict[int, tuple[KVRows, KVRows]] = {}
        self._recurrent: dict[int, dict[str, Array]] = {}
        self._kept: list[dict[int, Snapshot]] = [{} for _ in range(sequences)]  # by length
        rooms: dict[str, Room] = {}
        for slot, spec in enumerate(specs):
            if isinstance(spec, KVSpec):
                sizes = (spec.k_dim, spec.v_dim)
                if spec.stored is not None and spec.kv_heads:
                    first, second = (KVRows((rows, spec.kv_heads, size), spec.stored) for size in sizes)
                    self._typed[slot] = first, second
                    continue
                room = rooms.setdefault(spec.dtype, Room(spec.dtype))
                keys, values = (room.take((rows, spec.kv_heads, size)) for size in sizes)
                self._pairs[slot] = keys, values
            else:
                arrays = {name: k.empty((sequences, *shape), dtype) for name, shape, dtype in spec.arrays}
                for array in arrays.values():
                    k.fill(array, 0.0)
                self._recurrent[slot] = arrays

    @property
    def rows(self) -> list[int]:
        """First row of each sequence's keys and values."""
        return [s * self.capacity for s in range(len(self.lengths))]

    @property
    def bytes(self) -> int:
        """Memory held, copies for going back included."""
        kept = [array for each in self._kept for snapshot in each.values() for array in snapshot]
        pairs = [array for pair in self._pairs.values() for array in pair]
        typed = sum(rows.nbytes for pair in self._typed.values() for rows in pair)
        return typed + sum(array.nbytes for array in [*pairs, *self._arrays(), *kept])

    def begin(self, new: Sequence[int]) -> None:
        """Announce new tokens of each sequence. Raises ShapeError when one would outgrow the capacity."""
        for s, (length, count) in enumerate(zip(self.lengths, new, strict=True)):
            if length + count > self.capacity:
                raise ShapeError(f"sequence {s} would have {length + count} tokens, the cache holds {self.capacity}")
        self._new = list(new)
        self._fresh = None

    def update(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor | KVRows, Tensor | KVRows]:
        """Store the packed new rows of a layer behind each sequence's past; returns the whole arrays."""
        places = self._fresh_places() if self._places is None else self._places
        if slot in self._typed:
            for rows, fresh in zip(self._typed[slot], (keys.data, values.data), strict=True):
                rows.put(fresh, places)
            return self._typed[slot]
        pair = self._pairs[slot]
        for store, fresh in zip(pair, (keys.data, values.data), strict=True):
            k.put_rows(fresh, places, store)
        return Tensor(pair[0]), Tensor(pair[1])

    def _fresh_places(self) -> Array:
        """Rows of the announced tokens, in their order."""
        if self._fresh is None:
            firsts = [s * self.capacity + length for s, length in enumerate(self.lengths)]
            places = [np.arange(at, at + count, dtype=np.int32) for at, count in zip(firsts, self._new, strict=True)]
            self._fresh = k.from_numpy(np.concatenate(places))
        return self._fresh

    @contextlib.contextmanager
    def placed(self, places: Array) -> Iterator[None]:
        """Inside, new token i is stored in row places[i] (int32), a buffer that a replayed step is fed with."""
        self._places = places
        try:
            yield
        finally:
            self._places = None

    @property
    def recurrent_layers(self) -> bool:
        """Whether some layers keep arrays of a fixed size."""
        return bool(self._recurrent)

    def recurrent(self, slot: int) -> dict[str, Array]:
        """Arrays (sequences, ...) of a layer by name. Row s belongs to sequence s; the layer's kernels take it up and
        leave it as it is after the sequence's new tokens."""
        return self._recurrent[slot]

    def commit(self) -> None:
        """The announced tokens are now past."""
        self.lengths = [a + b for a, b in zip(self.lengths, self._new, strict=True)]
        self._new = [0] * len(self.lengths)

    def keep(self, sequence: int) -> None:
        """Make it possible to come back to the present of a sequence; costs memory only where layers are recurrent."""
        if self._recurrent:
            self._kept[sequence][self.lengths[sequence]] = [_copy(row) for row in self._row(sequence)]

    def drop(self, sequence: int) -> None:
        """Forget what was kept of a sequence."""
        self._kept[sequence] = {}

    def rollback(self, sequence: int, length: int) -> None:
        """Forget what came after the first `length` tokens of a sequence.

        Raises ShapeError for a length beyond its own, or one that recurrent layers have not kept.
        """
        now, kept = self.lengths[sequence], self._kept[sequence]
        if not 0 <= length <= now:
            raise ShapeError(f"rollback: expected 0..{now} tokens, got {length}")
        if self._recurrent and length not in (0, now):
            if length not in kept:
                lengths = ", ".join(map(str, sorted({0, now, *kept})))
                raise ShapeError(f"rollback: this model is recurrent and kept its state at {lengths} tokens, not at "
                                 f"{length}: call keep() there")  # fmt: skip
            for row, copy in zip(self._row(sequence), kept[length], strict=True):
                k.axpy(copy, row)
        elif length == 0:
            for row in self._row(sequence):
                k.fill(row, 0.0)
        self._kept[sequence] = {at: snapshot for at, snapshot in kept.items() if at <= length}
        self.lengths[sequence] = length

    def fork(self, source: int, target: int) -> None:
        """Make `target` remember what `source` does, whatever it remembered."""
        length = self.lengths[source]
        if source == target:
            return
        for array in (array for pair in self._pairs.values() for array in pair):
            width = array.shape[1] * array.shape[2]
            if length * width:
                from_, to = (array.view((length * width,), s * self.capacity * width) for s in (source, target))
                k.axpy(from_, to)
        for rows in (rows for pair in self._typed.values() for rows in pair):
            rows.copy_rows(source * self.capacity, target * self.capacity, length)
        for row, into in zip(self._row(source), self._row(target), strict=True):
            k.axpy(row, into)
        self._kept[target] = dict(self._kept[source])
        self.lengths[target] = length

    def _arrays(self) -> Iterator[Array]:
        return (array for arrays in self._recurrent.values() for array in arrays.values())

    def _row(self, sequence: int) -> Iterator[Array]:
        """A sequence's part of each recurrent array, flat."""
        for array in self._arrays():
            size = array.size // len(self.lengths)
            yield array.view((size,), sequence * size)


def _copy(array: Array) -> Array:
    made = k.empty(array.shape, array.dtype)
    k.axpy(array, made)
    return made

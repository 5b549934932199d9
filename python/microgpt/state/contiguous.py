"""Contiguous key/value cache: each sequence owns `capacity` rows of one array per layer."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _kernels as k
from ..errors import ShapeError
from ..tensor import Tensor
from .spec import KVSpec


class ContiguousStates:
    """States of `sequences` sequences of up to `capacity` tokens, for layers that declare `specs`.

    A call processes new[s] tokens of sequence s: begin(new), then the layers update() in it, then commit().
    """

    def __init__(self, specs: Sequence[KVSpec], sequences: int, capacity: int) -> None:
        rows = sequences * capacity
        self.capacity = capacity
        self.lengths = [0] * sequences
        self._new = [0] * sequences
        self._keys = [k.empty((rows, s.kv_heads, s.k_dim), s.dtype) for s in specs]
        self._values = [k.empty((rows, s.kv_heads, s.v_dim), s.dtype) for s in specs]

    @property
    def rows(self) -> list[int]:
        """First row of each sequence."""
        return [s * self.capacity for s in range(len(self.lengths))]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(each.nbytes for each in self._keys + self._values)

    def begin(self, new: Sequence[int]) -> None:
        """Announce new tokens of each sequence. Raises ShapeError when one would outgrow the capacity."""
        for s, (length, count) in enumerate(zip(self.lengths, new, strict=True)):
            if length + count > self.capacity:
                raise ShapeError(f"sequence {s} would have {length + count} tokens, the cache holds {self.capacity}")
        self._new = list(new)

    def update(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the packed new rows of layer `index` behind each sequence's past; returns the whole arrays."""
        for store, fresh in ((self._keys[index], keys.data), (self._values[index], values.data)):
            width = fresh.shape[1] * fresh.shape[2]
            source = 0
            for s, count in enumerate(self._new):
                if count:
                    place = store.view((count * width,), (s * self.capacity + self.lengths[s]) * width)
                    k.axpy(fresh.view((count * width,), source * width), place)
                source += count
        return Tensor(self._keys[index]), Tensor(self._values[index])

    def commit(self) -> None:
        """The announced tokens are now past."""
        self.lengths = [a + b for a, b in zip(self.lengths, self._new, strict=True)]
        self._new = [0] * len(self.lengths)

    def rollback(self, sequence: int, length: int) -> None:
        """Forget what came after the first `length` tokens of a sequence."""
        if not 0 <= length <= self.lengths[sequence]:
            raise ShapeError(f"rollback: expected 0..{self.lengths[sequence]} tokens, got {length}")
        self.lengths[sequence] = length

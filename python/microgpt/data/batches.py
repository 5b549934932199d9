"""Batches of packed windows: fixed-size arrays that a recorded training step reads, any number at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from microgpt.data.split import permutation
from microgpt.errors import ConfigError, DataError

Ints = np.ndarray[Any, np.dtype[np.int32]]
Longs = np.ndarray[Any, np.dtype[np.int64]]


class BatchBlock(NamedTuple):
    """`n` consecutive batches; T = batch_size * block_size. All int32.

    A batch's windows lie one after another from position 0; what is left is padding (token 0, target -1),
    which the boundaries describe as one more sequence.
    """

    tokens: Ints  # (n, T)
    targets: Ints  # (n, T), -1 on the padding
    positions: Ints  # (n, T), inside the window, below block_size
    cu_seqlens: Ints  # (n, batch_size + 2), from 0 to T
    n_targets: Ints  # (n,)


class Batches:
    """An endless, resumable stream of batches over documents of token ids.

    A document of n ids has n-1 targets; it is cut into windows of `block_size` targets (the last may be
    shorter), so that one epoch predicts every target exactly once. Each epoch has its own order, fixed by
    `seed` and its number. Ids must be int32, at least 0 and below `vocab_size` where that is given.
    Raises DataError for unusable documents or when no document has two ids, ConfigError for impossible sizes.
    """

    def __init__(
        self,
        token_docs: Sequence[Ints],
        block_size: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        *,
        vocab_size: int | None = None,
    ) -> None:
        for name, value in (("block_size", block_size), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        if batch_size * block_size >= 2**31:
            raise ConfigError(f"batch_size * block_size: expected below 2**31, got {batch_size * block_size}")
        self.block_size, self.batch_size, self.seed, self.shuffle = block_size, batch_size, seed, shuffle
        tokens, self._offsets = _flatten(token_docs, vocab_size)
        self._starts, self._lengths = _windows(self._offsets, block_size)
        if not len(self._starts):
            raise DataError(f"nothing to predict: none of the {len(token_docs)} documents has two tokens")
        self._consumed = 0  # windows handed out since the beginning
        self._epoch = -1
        self._order = np.empty(0, np.int64)
        self._fingerprint = _fingerprint(tokens, self._offsets)
        # A window is read at full length before it is cut, so the last one needs something behind it.
        self._tokens = np.concatenate([tokens, np.zeros(block_size + 1, np.int32)])

    @property
    def epoch(self) -> float:
        """Passes over the data so far, with the fraction of the current one."""
        return self._consumed / len(self._starts)

    @property
    def windows(self) -> int:
        """Windows in one pass over the data."""
        return len(self._starts)

    @property
    def steps_per_epoch(self) -> int:
        """Batches needed to see every window once, rounded up."""
        return -(-len(self._starts) // self.batch_size)

    @property
    def targets_per_epoch(self) -> int:
        """Targets in one pass over the data."""
        return int(self._lengths.sum())

    def next_many(self, n: int) -> BatchBlock:
        """The next `n` batches; every array is new and C-contiguous."""
        if n < 1:
            raise ConfigError(f"next_many: expected n >= 1, got {n}")
        block, batch = self.block_size, self.batch_size
        size = block * batch  # T
        picked = self._take(n * batch)
        lengths = self._lengths[picked]
        bounds = np.zeros((n, batch + 2), np.int32)
        np.cumsum(lengths.reshape(n, batch), axis=1, out=bounds[:, 1:-1])
        bounds[:, -1] = size
        filled = bounds[:, -2].copy()

        # Every window is read as if it were full; `real` tells its own positions from what lies behind it.
        inside = np.arange(block, dtype=np.int32)
        real = inside < lengths[:, None]  # (n * batch, block)
        source = self._starts[picked][:, None] + inside
        inputs, outputs = self._tokens[source], self._tokens[1:][source]
        if batch == 1:
            tokens = np.where(real, inputs, 0)
            targets = np.where(real, outputs, -1)
            # The padding's positions count from 0 too; those before it are cut short by `real`.
            positions = np.where(real, inside, inside - lengths[:, None])
        else:
            behind = np.arange(size, dtype=np.int32) - filled[:, None]  # (n, T), negative on the windows
            room = behind < 0
            tokens, targets = np.zeros((n, size), np.int32), np.full((n, size), -1, np.int32)
            positions = behind % block
            tokens[room] = inputs[real]
            targets[room] = outputs[real]
            positions[room] = np.broadcast_to(inside, real.shape)[real]
        return BatchBlock(tokens, targets, positions, bounds, filled)

    def state(self) -> dict[str, Any]:
        """Where the stream is and what it runs over; JSON-able, for :meth:`restore`."""
        return {
            "consumed": self._consumed,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "block_size": self.block_size,
            "batch_size": self.batch_size,
            "documents": len(self._offsets) - 1,
            "tokens": int(self._offsets[-1]),
            "fingerprint": self._fingerprint,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken; raises DataError naming what differs from then."""
        now = self.state()
        if missing := sorted(now.keys() - state.keys()):
            raise DataError(f"data state: missing {', '.join(missing)}")
        del now["consumed"]
        changed = [f"{k} was {state[k]!r}, is {now[k]!r}" for k in now if state[k] != now[k]]
        if changed:
            raise DataError(f"the data differ from those of the checkpoint: {'; '.join(changed)}")
        consumed = state["consumed"]
        if type(consumed) is not int or not 0 <= consumed < 2**63:
            raise DataError(f"data state: consumed: expected an int from 0 to 2**63, got {consumed!r}")
        self._consumed = consumed

    def _turn_to(self, epoch: int) -> None:
        if epoch != self._epoch:
            count = len(self._starts)
            self._order = permutation(count, self.seed, epoch) if self.shuffle else np.arange(count)
            self._epoch = epoch

    def _take(self, count: int) -> Longs:
        """The next `count` window numbers, across as many epochs as that takes."""
        parts = []
        while count:
            self._turn_to(self._consumed // len(self._starts))
            at = self._consumed % len(self._starts)
            part = self._order[at : at + count]
            parts.append(part)
            self._consumed += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _flatten(docs: Sequence[Ints], vocab_size: int | None) -> tuple[Ints, Longs]:
    for i, doc in enumerate(docs):
        if not isinstance(doc, np.ndarray) or doc.ndim != 1 or doc.dtype != np.int32:
            found = f"{doc.dtype} {doc.shape}" if isinstance(doc, np.ndarray) else type(doc).__name__
            raise DataError(f"document {i}: expected a one-dimensional int32 array, got {found}")
    offsets = np.zeros(len(docs) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, docs), np.int64, len(docs)), out=offsets[1:])
    tokens = np.concatenate(docs) if docs else np.empty(0, np.int32)
    limit = 2**31 if vocab_size is None else vocab_size
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= limit):
        at = int(np.flatnonzero((tokens < 0) | (tokens >= limit))[0])
        doc_number = int(np.searchsorted(offsets, at, side="right")) - 1
        place = f"document {doc_number}, position {at - offsets[doc_number]}"
        raise DataError(f"{place}: expected a token id from 0 to {limit - 1}, got {tokens[at]}")
    return tokens, offsets


def _windows(offsets: Longs, block: int) -> tuple[Longs, Ints]:
    """Start in the flat tokens and number of targets of every window, document by document."""
    targets = np.maximum(np.diff(offsets) - 1, 0)
    counts = -(-targets // block)
    document = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its document
    lengths = np.minimum(targets[document] - number * block, block).astype(np.int32)
    return offsets[document] + number * block, lengths


def _fingerprint(tokens: Ints, offsets: Longs) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(offsets, "<i8").data)
    digest.update(np.ascontiguousarray(tokens, "<i4").data)
    return digest.hexdigest()

"""Windows: documents cut into stretches that fit a sequence, found by number and visited in a seeded order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from microgpt.data.split import SORTED, permutation, scattered
from microgpt.errors import ConfigError, DataError, nearest

Ints = np.ndarray[Any, np.dtype[np.int32]]
Longs = np.ndarray[Any, np.dtype[np.int64]]
Curriculum = str | Callable[[Ints], float] | np.ndarray[Any, Any]

CURRICULA = ("none", "length")
_CHUNK = 1 << 17  # documents looked at together
_GROUP = 64  # documents between two entries of the sparse index
_LOOKUP = 4096  # windows looked up together in the sparse index: 64 numbers each
_DIRECT = 1 << 21  # windows whose places are kept in memory (12 bytes each)


class TokenSource(Protocol):
    """Documents of token ids, one after another, in memory or on disk."""

    documents: int
    tokens: int
    fingerprint: str

    def offsets(self, first: int, last: int) -> Longs:
        """Where documents first…last-1 begin, and the end of the last; int64 (last - first + 1,)."""

    def read(self, starts: Longs, lengths: Longs) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The ids from each start on, and those one further, joined; two integer arrays (sum of lengths,)."""


class MemoryTokens:
    """Documents held in memory; raises DataError for arrays that are not int32 vectors of ids in the vocabulary."""

    def __init__(self, docs: Sequence[Ints], vocab_size: int | None = None) -> None:
        tokens, self._offsets = _flatten(docs, vocab_size)
        self.documents, self.tokens = len(docs), len(tokens)
        digest = hashlib.sha256(np.ascontiguousarray(self._offsets, "<i8").data)
        digest.update(np.ascontiguousarray(tokens, "<i4").data)
        self.fingerprint = digest.hexdigest()
        self._flat, self._behind = tokens, tokens[1:]

    def offsets(self, first: int, last: int) -> Longs:
        """See TokenSource."""
        return self._offsets[first : last + 1]

    def read(self, starts: Longs, lengths: Longs) -> tuple[Ints, Ints]:
        """See TokenSource."""
        at = spread(starts, lengths)
        return self._flat[at], self._behind[at]


def spread(starts: Longs, lengths: Longs) -> Longs:
    """starts[0], starts[0]+1, … (lengths[0] of them), starts[1], …; int64 (sum of lengths,)."""
    before = np.cumsum(lengths)
    total = int(before[-1]) if len(before) else 0
    before -= lengths
    return np.arange(total) + np.repeat(starts - before, lengths)


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


class Windows:
    """The windows of at most `block` targets that the documents of `source` are cut into, numbered in order.

    A document of n ids has n-1 targets; only its last window may be short. Documents whose bit is set in
    `left_out` (packed bits) have none. Up to 2**21 windows their places are kept (12 bytes each); beyond,
    an index of one number for 64 documents is, and places are computed when asked for.
    """

    def __init__(self, source: TokenSource, block: int, left_out: np.ndarray[Any, Any] | None = None) -> None:
        self._source, self._block, self._left_out = source, block, left_out
        starts: list[Longs] | None = []
        lengths: list[Ints] = []
        sparse = [np.zeros(1, np.int64)]
        self.count = self.targets = 0
        self.shortest = block
        for first in range(0, source.documents, _CHUNK):
            last = min(first + _CHUNK, source.documents)
            offsets = source.offsets(first, last)
            targets, counts = self._cut(offsets[None], np.array([first]))
            targets, counts = targets[0], counts[0]
            groups = np.add.reduceat(counts, np.arange(0, len(counts), _GROUP))
            sparse.append(self.count + np.cumsum(groups))
            self.count += int(counts.sum())
            self.targets += int(targets.sum())
            rest = targets % block
            self.shortest = min(self.shortest, int(rest.min(where=rest > 0, initial=block)))
            if self.count > _DIRECT:
                starts = None
            if starts is not None:
                document = np.repeat(np.arange(len(counts)), counts)
                number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
                starts.append(offsets[document] + number * block)
                lengths.append(np.minimum(targets[document] - number * block, block).astype(np.int32))
        self._direct = None
        if starts is not None:
            self._direct = (
                np.concatenate([np.empty(0, np.int64), *starts]),
                np.concatenate([np.empty(0, np.int32), *lengths]),
            )
        self._sparse = np.concatenate(sparse)

    def _cut(self, offsets: Longs, first: Longs) -> tuple[Longs, Longs]:
        """Targets and windows of documents first[r], first[r]+1, … whose offsets are row r."""
        targets = np.maximum(np.diff(offsets, axis=1) - 1, 0)
        if self._left_out is not None:
            document = first[:, None] + np.arange(targets.shape[1])
            byte = self._left_out[np.minimum(document >> 3, len(self._left_out) - 1)]
            targets[(byte >> (7 - (document & 7))) & 1 == 1] = 0
        return targets, -(-targets // self._block)

    def find(self, numbers: Longs) -> tuple[Longs, Longs]:
        """Start among the tokens and number of targets of windows by number; both int64."""
        if self._direct is not None:
            return self._direct[0][numbers], self._direct[1][numbers].astype(np.int64)
        if len(numbers) > _LOOKUP:
            parts = [self.find(numbers[i : i + _LOOKUP]) for i in range(0, len(numbers), _LOOKUP)]
            return np.concatenate([start for start, _ in parts]), np.concatenate([length for _, length in parts])
        groups, row = np.unique(np.searchsorted(self._sparse, numbers, "right") - 1, return_inverse=True)
        offsets = np.empty((len(groups), _GROUP + 1), np.int64)
        for i, group in enumerate(groups.tolist()):
            found = self._source.offsets(group * _GROUP, min((group + 1) * _GROUP, self._source.documents))
            offsets[i, : len(found)], offsets[i, len(found) :] = found, found[-1]
        targets, counts = self._cut(offsets, groups * _GROUP)
        ends = np.cumsum(counts, axis=1)
        rest = numbers - self._sparse[groups[row]]
        document = (ends[row] <= rest[:, None]).sum(axis=1)
        number = rest - (ends - counts)[row, document]
        start = offsets[row, document] + number * self._block
        return start, np.minimum(targets[row, document] - number * self._block, self._block)

    def by_score(self, scores: np.ndarray[Any, Any], seed: int) -> Longs:
        """All window numbers, documents of low score first, equal ones in random order."""
        counts = np.empty(self._source.documents, np.int64)
        for first in range(0, len(counts), _CHUNK):
            last = min(first + _CHUNK, len(counts))
            counts[first:last] = self._cut(self._source.offsets(first, last)[None], np.array([first]))[1][0]
        shuffled = permutation(self.count, seed, 0)
        return shuffled[np.argsort(np.repeat(scores, counts)[shuffled], kind="stable")]


class Order:
    """An endless order of `count` windows: each epoch a shuffle of its own, fixed by `seed` and its number.

    `first` replaces the order of the first epoch. Beyond 2**20 windows the shuffle is :func:`scattered`.
    """

    def __init__(self, count: int, seed: int, shuffle: bool, first: Longs | None = None) -> None:
        self._count, self._seed, self._shuffle, self._first = count, seed, shuffle, first
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def take(self, position: int, count: int) -> Longs:
        """The `count` window numbers that come after `position` of them, across as many epochs as that takes."""
        parts = []
        while count:
            epoch, at = divmod(position, self._count)
            part = self._part(epoch, at, min(count, self._count - at))
            parts.append(part)
            position += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])

    def _part(self, epoch: int, at: int, count: int) -> Longs:
        if epoch == 0 and self._first is not None:
            return self._first[at : at + count]
        if not self._shuffle:
            return np.arange(at, at + count)
        if self._count > SORTED:
            return scattered(np.arange(at, at + count), self._count, self._seed, epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self._count, self._seed, epoch)
        return self._order[at : at + count]


def scores_of(source: TokenSource, curriculum: Curriculum) -> tuple[str, np.ndarray[Any, Any] | None]:
    """A name for the state, and a score for each document (None without a curriculum).

    "length" scores a document by its tokens; a callable is given each document's ids; an array is taken as
    it is. Raises ConfigError for another name, DataError for scores that do not fit or are not finite.
    """
    if isinstance(curriculum, str):
        if curriculum not in CURRICULA:
            known = ", ".join(CURRICULA)
            raise ConfigError(
                f"curriculum: expected one of {known}, got {curriculum!r}{nearest(curriculum, CURRICULA)}"
            )
        if curriculum == "none":
            return "none", None
        chunks = range(0, source.documents, _CHUNK)
        lengths = [np.diff(source.offsets(a, min(a + _CHUNK, source.documents))) for a in chunks]
        return "length", np.concatenate([np.empty(0, np.int64), *lengths])
    if callable(curriculum):
        found = []
        for i in range(source.documents):
            start, end = source.offsets(i, i + 1).tolist()
            if end - start < 2:  # nothing to predict, so it never comes up
                found.append(0.0)
                continue
            ids, behind = source.read(np.array([start]), np.array([end - start - 1]))
            found.append(float(curriculum(np.append(ids, behind[-1:]).astype(np.int32))))
        scores = np.array(found)
    else:
        scores = np.asarray(curriculum, np.float64)
    if scores.shape != (source.documents,) or not np.isfinite(scores).all():
        what = f"shape {scores.shape}" if scores.shape != (source.documents,) else "a score that is not finite"
        raise DataError(f"curriculum: expected {source.documents} finite scores, one for each document, got {what}")
    return "scores " + hashlib.sha256(np.ascontiguousarray(scores, "<f8").data).hexdigest()[:16], scores

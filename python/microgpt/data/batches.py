"""Batches of packed windows: fixed-size arrays that a recorded training step reads, any number at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from microgpt.data.windows import Curriculum, Ints, Longs, MemoryTokens, Order, TokenSource, Windows, scores_of
from microgpt.errors import ConfigError, DataError

_MEASURED = 1 << 16  # windows from which packing is measured
_AT_ONCE = 1 << 20  # tokens of a block in a pass over the data


class BatchBlock(NamedTuple):
    """`n` consecutive batches; T = batch_size * block_size, S = `sequences`. All int32 but `consumed`.

    A batch's windows lie one after another from position 0; what is left is padding (token 0, target -1),
    which the boundaries describe as the last sequence. Sequences that a batch does not need are empty.
    """

    tokens: Ints  # (n, T)
    targets: Ints  # (n, T), -1 on the padding
    positions: Ints  # (n, T), inside the window, below block_size
    cu_seqlens: Ints  # (n, S + 1), from 0 to T
    n_targets: Ints  # (n,)
    consumed: Longs  # (n,) int64: windows handed out since the beginning, after each batch


class Picked(NamedTuple):
    """Windows on their way into batches: where they start, their targets, and which source holds them."""

    starts: Longs
    lengths: Longs
    part: Longs | None  # None where there is only one source


class Stream(ABC):
    """What :class:`Batches` and :class:`Mixture` share: cutting an endless order of windows into batches."""

    block_size: int
    batch_size: int
    packing: bool
    windows: int  # in one pass over the data
    targets_per_epoch: int
    _most: int  # windows in a batch
    _width: int  # sequences described beside the padding, at least _most
    _mean: float  # targets of a window
    _consumed: int  # windows handed out since the beginning

    @abstractmethod
    def _peek(self, after: int, count: int, fresh: bool = False) -> Picked:
        """`count` windows, `after` windows from the present position (from the beginning if `fresh`)."""

    @abstractmethod
    def _read(self, picked: Picked) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]: ...

    @abstractmethod
    def _advance(self, picked: Picked) -> None: ...

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Where the stream is and what it runs over; JSON-able, for :meth:`restore`."""

    @abstractmethod
    def _seek(self, state: dict[str, Any]) -> None: ...

    def _size(self, sizes: Sequence[tuple[str, int]]) -> None:
        for name, value in sizes:
            if value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        if self.batch_size * self.block_size >= 2**31:
            raise ConfigError(f"batch_size * block_size: expected below 2**31, got {self.batch_size * self.block_size}")

    def _limit(self, shortest: int) -> int:
        """Windows that a batch may hold: half more than on average, so that the limit is rarely what ends a batch."""
        if not self.packing:
            return self.batch_size
        total = self.batch_size * self.block_size
        return min(total // shortest, 4 + int(1.5 * total / self._mean))

    @property
    def sequences(self) -> int:
        """S: sequences that `cu_seqlens` describes, that of the padding included; the same for every batch."""
        return self._width + 1

    def widen(self, sequences: int) -> None:
        """Describe that many sequences, the further ones empty, so that one program takes several streams."""
        self._width = max(self._width, sequences - 1)

    @property
    def epoch(self) -> float:
        """Passes over the data so far, with the fraction of the current one."""
        return self._consumed / self.windows

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches that cover one pass, rounded up; estimated from its first 2**16 windows where there are more."""
        if not self.packing:
            return -(-self.windows // self.batch_size)
        measured = min(self.windows, max(_MEASURED, 16 * self._most))  # whole batches among them
        ends = self._ends(self._peek(0, measured, fresh=True).lengths)
        if measured == self.windows:
            return len(ends) + (ends[-1:] != [measured])
        return -(-self.windows * len(ends) // ends[-1])

    @property
    def efficiency(self) -> float:
        """The part of the positions of a pass's batches that holds a target, at most 1."""
        return self.targets_per_epoch / (self.steps_per_epoch * self.batch_size * self.block_size)

    def _ends(self, lengths: Longs) -> list[int]:
        """Where batches end among windows of these lengths; the last one only if no further window could join."""
        most, count, size = self._most, len(lengths), self.batch_size * self.block_size
        if most * self.block_size <= size:
            return list(range(most, count + 1, most))
        before = np.zeros(count + 1, np.int64)
        np.cumsum(lengths, out=before[1:])
        # The end of a batch that would begin at each window; then one step a batch from end to end.
        ends = np.minimum(np.searchsorted(before, before[:-1] + size, "right") - 1, np.arange(most, count + most))
        follow, found, at = ends.tolist(), [], 0
        while at < count:
            end = follow[at]
            if end == count and end - at < most and before[end] - before[at] < size:
                break
            found.append(end)
            at = end
        return found

    def _gather(self, n: int) -> tuple[Picked, list[int]]:
        """The windows of the next `n` batches, and where each batch ends among them."""
        found: list[Picked] = []
        ends: list[int] = []
        per_batch = min(self._most, self.batch_size * self.block_size / self._mean)
        while len(ends) < n:
            after = ends[-1] if ends else 0
            picked = self._peek(after, int((n - len(ends)) * per_batch) + self._most + 1)
            new = self._ends(picked.lengths)[: n - len(ends)]
            ends += [after + end for end in new]
            found.append(_first(picked, new[-1]))
        if len(found) == 1:
            return found[0], ends
        starts, lengths, part = zip(*found, strict=True)
        return Picked(np.concatenate(starts), np.concatenate(lengths),
                      None if part[0] is None else np.concatenate(part)), ends  # fmt: skip

    def next_many(self, n: int) -> BatchBlock:
        """The next `n` batches; every array is new and C-contiguous."""
        if n < 1:
            raise ConfigError(f"next_many: expected n >= 1, got {n}")
        picked, ends = self._gather(n)
        block = self._assemble(picked, ends, self._consumed)
        self._advance(picked)
        return block

    def once(self, batches: int = 0) -> Iterator[BatchBlock]:
        """Blocks of one pass from the beginning, at most `batches` batches (0 for all); the position stays.

        The last batch ends with the pass, so that every target comes exactly once.
        """
        size = self.batch_size * self.block_size
        at, made, rows = 0, 0, max(1, _AT_ONCE // size)
        while at < self.windows and (not batches or made < batches):
            picked = self._peek(at, min(self.windows - at, rows * self._most), fresh=True)
            ends = self._ends(picked.lengths)[: min(rows, batches - made) if batches else rows]
            if (not ends or ends[-1] < len(picked.lengths)) and at + len(picked.lengths) == self.windows:
                left = batches - made - len(ends) if batches else 1
                if left > 0 and len(ends) < rows:
                    ends.append(len(picked.lengths))
            yield self._assemble(_first(picked, ends[-1]), ends, at)
            at += ends[-1]
            made += len(ends)

    def _assemble(self, picked: Picked, ends: list[int], consumed: int) -> BatchBlock:
        n, block, size = len(ends), self.block_size, self.batch_size * self.block_size  # size = T
        lengths, stops = picked.lengths, np.array(ends)
        counts = np.diff(stops, prepend=0)
        before = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=before[1:])
        filled = np.diff(before[stops], prepend=0)

        bounds = np.empty((n, self._width + 2), np.int32)
        if self._width * n == len(lengths):
            bounds[:, 1:-1] = (before[1:] - np.repeat(before[stops] - filled, counts)).reshape(n, -1)
        else:
            bounds[:, 1:-1] = filled[:, None]
            inside = np.arange(self._width) < counts[:, None]
            bounds[:, 1:-1][inside] = before[1:] - np.repeat(before[stops] - filled, counts)
        bounds[:, 0], bounds[:, -1] = 0, size

        inputs, outputs = self._read(picked)
        places = np.arange(len(inputs), dtype=np.int32) - np.repeat(before[:-1].astype(np.int32), lengths)
        if len(inputs) == n * size:
            tokens, targets = (each.astype(np.int32).reshape(n, size) for each in (inputs, outputs))
            positions = places.reshape(n, size)
        else:
            behind = np.arange(size, dtype=np.int32) - filled.astype(np.int32)[:, None]  # negative on the windows
            room = behind < 0
            tokens, targets = np.zeros((n, size), np.int32), np.full((n, size), -1, np.int32)
            # The padding's positions count from 0 too, and stay below block_size.
            positions = behind if size - filled.min() <= block else behind % block
            tokens[room], targets[room], positions[room] = inputs, outputs, places
        return BatchBlock(tokens, targets, positions, bounds, filled.astype(np.int32), consumed + stops)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, and `state["skip"]` batches later if it has that key.

        Raises DataError naming what differs from then.
        """
        now = self.state()
        if missing := sorted(now.keys() - state.keys()):
            raise DataError(f"data state: missing {', '.join(missing)}")
        changed = [f"{k} was {state[k]!r}, is {v!r}" for k, v in now.items() if k not in _POSITION and state[k] != v]
        if changed:
            raise DataError(f"the data differ from those of the checkpoint: {'; '.join(changed)}")
        skip = _whole("skip", state.get("skip", 0))
        _whole("consumed", state["consumed"])
        self._seek(state)
        while skip:
            step = min(skip, 4096)
            self._advance(self._gather(step)[0])
            skip -= step


_POSITION = ("consumed", "taken")


class Batches(Stream):
    """An endless, resumable stream of batches over documents of token ids: int32 arrays, or a token store.

    A document of n ids has n-1 targets; it is cut into windows of `block_size` targets (the last may be
    shorter), so that one epoch predicts every target exactly once. Each epoch has its own order, fixed by
    `seed` and its number. With `packing` a batch takes windows whole until the next one no longer fits into
    T = batch_size * block_size tokens (or there are half more than on average); without, it takes `batch_size`.
    `curriculum` orders the first epoch: "length" takes short documents first, a callable gives a difficulty
    for a document's ids (an array: one number a document), low first; this keeps 8 bytes a window.
    `left_out` marks documents that are not used (packed bits). Raises DataError for unusable documents or
    when no document has two ids, ConfigError for impossible sizes.
    """

    def __init__(
        self,
        source: Sequence[Ints] | TokenSource,
        block_size: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        *,
        vocab_size: int | None = None,
        packing: bool = True,
        curriculum: Curriculum = "none",
        left_out: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self.block_size, self.batch_size, self.seed, self.shuffle = block_size, batch_size, seed, shuffle
        self.packing = packing
        self._size((("block_size", block_size), ("batch_size", batch_size)))
        self._source = MemoryTokens(source, vocab_size) if isinstance(source, Sequence) else source
        ids = getattr(self._source, "vocab_size", 0)
        if vocab_size is not None and ids > vocab_size:
            raise DataError(f"{source}: has {ids} ids, the model's vocabulary {vocab_size}")
        self._windows = Windows(self._source, block_size, left_out)
        self.windows, self.targets_per_epoch = self._windows.count, self._windows.targets
        if not self.windows:
            raise DataError(f"nothing to predict: none of the {self._source.documents} documents has two tokens")
        self._curriculum, scores = scores_of(self._source, curriculum)
        first = None if scores is None else self._windows.by_score(scores, seed)
        self._order = Order(self.windows, seed, shuffle, first)
        self._mean = self.targets_per_epoch / self.windows
        self._most = self._width = self._limit(self._windows.shortest)
        self._consumed = 0

    def _peek(self, after: int, count: int, fresh: bool = False) -> Picked:
        return self.at((0 if fresh else self._consumed) + after, count)

    def at(self, position: int, count: int) -> Picked:
        """The `count` windows that come after the first `position` ones of the endless order."""
        return Picked(*self._windows.find(self._order.take(position, count)), None)

    def _read(self, picked: Picked) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return self._source.read(picked.starts, picked.lengths)

    def _advance(self, picked: Picked) -> None:
        self._consumed += len(picked.starts)

    @property
    def shortest(self) -> int:
        """Targets of the shortest window."""
        return self._windows.shortest

    @property
    def source(self) -> TokenSource:
        """The documents."""
        return self._source

    def state(self) -> dict[str, Any]:
        """See Stream."""
        return {
            "consumed": self._consumed,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "block_size": self.block_size,
            "batch_size": self.batch_size,
            "packing": self.packing,
            "max_windows": self._most,
            "curriculum": self._curriculum,
            "documents": self._source.documents,
            "tokens": self._source.tokens,
            "targets": self.targets_per_epoch,
            "fingerprint": self._source.fingerprint,
        }

    def _seek(self, state: dict[str, Any]) -> None:
        self._consumed = state["consumed"]


class Mixture(Stream):
    """Several :class:`Batches` as one stream in which each has its share of the targets, window by window.

    `weights` are positive and scaled to sum 1. Window j of a part comes at time (j + 1/2) / rate, where rate
    is its weight over its mean window, and windows follow in order of time: no random choice, and after any
    number of windows a part is at most about one window from its share. Parts are visited in their own order and
    repeat at their own pace; an epoch is as many targets as all parts hold. Raises ConfigError when weights
    and parts do not match, or sizes differ.
    """

    def __init__(self, parts: Sequence[Batches], weights: Sequence[float] | None = None) -> None:
        if not parts:
            raise ConfigError("a mixture needs at least one part, got none")
        self.weights = check_weights(weights, len(parts))
        self._parts = list(parts)
        first = parts[0]
        for name in ("block_size", "batch_size", "packing"):
            if len({getattr(part, name) for part in parts}) > 1:
                raise ConfigError(f"a mixture's parts need the same {name}")
        self.block_size, self.batch_size, self.packing = first.block_size, first.batch_size, first.packing
        self._rates = np.array([w / part._mean for w, part in zip(self.weights, parts, strict=True)])
        self._rates /= self._rates.sum()
        self._mean = float(sum(rate * part._mean for rate, part in zip(self._rates.tolist(), parts, strict=True)))
        self.targets_per_epoch = sum(part.targets_per_epoch for part in parts)
        self.windows = max(1, round(self.targets_per_epoch / self._mean))
        self._most = self._width = self._limit(min(part.shortest for part in parts))
        self._consumed = 0
        self._taken = np.zeros(len(parts), np.int64)  # windows of each part

    def _peek(self, after: int, count: int, fresh: bool = False) -> Picked:
        taken = np.zeros_like(self._taken) if fresh else self._taken
        wanted = after + count
        numbers = [
            t + np.arange(int((wanted + len(taken)) * rate) + 2)
            for t, rate in zip(taken.tolist(), self._rates, strict=True)
        ]
        times = [(each + 0.5) / rate for each, rate in zip(numbers, self._rates, strict=True)]
        part = np.repeat(np.arange(len(numbers)), [len(each) for each in numbers])
        chosen = part[np.argsort(np.concatenate(times), kind="stable")[:wanted]]
        starts, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
        skipped = np.bincount(chosen[:after], minlength=len(numbers))
        chosen = chosen[after:]
        for i, batches in enumerate(self._parts):
            mine = np.flatnonzero(chosen == i)
            if len(mine):
                starts[mine], lengths[mine], _ = batches.at(int(taken[i] + skipped[i]), len(mine))
        return Picked(starts, lengths, chosen)

    def _read(self, picked: Picked) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        assert picked.part is not None
        inputs = np.empty(int(picked.lengths.sum()), np.int32)
        outputs = np.empty_like(inputs)
        owner = np.repeat(picked.part, picked.lengths)
        for i, batches in enumerate(self._parts):
            mine = picked.part == i
            where = owner == i
            inputs[where], outputs[where] = batches.source.read(picked.starts[mine], picked.lengths[mine])
        return inputs, outputs

    def _advance(self, picked: Picked) -> None:
        assert picked.part is not None
        self._consumed += len(picked.starts)
        self._taken += np.bincount(picked.part, minlength=len(self._parts))

    def state(self) -> dict[str, Any]:
        """See Stream."""
        parts = [{k: v for k, v in part.state().items() if k not in _POSITION} for part in self._parts]
        return {
            "consumed": self._consumed,
            "taken": self._taken.tolist(),
            "weights": list(self.weights),
            "max_windows": self._most,
            "parts": parts,
        }

    def _seek(self, state: dict[str, Any]) -> None:
        taken = state["taken"]
        if not isinstance(taken, list) or len(taken) != len(self._parts):
            raise DataError(f"data state: taken: expected {len(self._parts)} numbers, got {taken!r}")
        taken = [_whole("taken", each) for each in taken]
        if sum(taken) != state["consumed"]:
            raise DataError(f"data state: taken adds up to {sum(taken)}, but consumed is {state['consumed']}")
        self._consumed, self._taken = state["consumed"], np.array(taken, np.int64)


def check_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights of `count` sources, scaled to sum 1 (equal ones for None); ConfigError when they do not fit."""
    if weights is None:
        return (1.0 / count,) * count
    if len(weights) != count:
        raise ConfigError(f"weights: expected {count}, one for each source, got {len(weights)}")
    if not all(0 < w < float("inf") for w in weights):
        raise ConfigError(f"weights: expected positive numbers, got {', '.join(map(str, weights))}")
    return tuple(w / sum(weights) for w in weights)


def _first(picked: Picked, count: int) -> Picked:
    starts, lengths, part = picked
    return Picked(starts[:count], lengths[:count], None if part is None else part[:count])


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise DataError(f"data state: {name}: expected an int from 0 to 2**63, got {value!r}")
    return value

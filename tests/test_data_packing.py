"""Packing, orders, curricula and mixtures: every target once, restart anywhere, shares as asked."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt.data import split as split_module
from microgpt.data import windows as windows_module
from microgpt.data.batches import BatchBlock, Batches, Mixture, Stream, check_weights
from microgpt.data.split import held_out, scattered, split
from microgpt.errors import ConfigError, DataError

LENGTHS = st.lists(st.integers(0, 23), min_size=1, max_size=12).filter(lambda lengths: max(lengths) > 1)


def docs_of(lengths: list[int], first: int = 0) -> list[np.ndarray]:
    """Documents whose ids are all different, so that a target tells where it came from."""
    ends = np.cumsum([first, *lengths])
    return [np.arange(a, b, dtype=np.int32) for a, b in pairwise(ends)]


def pairs_of(docs: list[np.ndarray]) -> list[tuple[int, int]]:
    return sorted((a, b) for doc in docs for a, b in pairwise(doc.tolist()))


def check(block: BatchBlock, stream: Stream) -> list[list[tuple[int, int]]]:
    """The contract of every batch; returns the (token, target) pairs of each."""
    size = stream.batch_size * stream.block_size
    found = []
    assert block.consumed.dtype == np.int64 and block.cu_seqlens.shape[1] == stream.sequences + 1
    for tokens, targets, positions, cu, n_targets in zip(*block[:5], strict=True):
        assert tokens.shape == targets.shape == positions.shape == (size,)
        assert cu[0] == 0 and cu[-1] == size and (np.diff(cu) >= 0).all() and n_targets == cu[-2]
        assert (np.diff(cu[:-1]) <= stream.block_size).all()
        assert (targets[n_targets:] == -1).all() and (tokens[n_targets:] == 0).all()
        assert positions.min() >= 0 and positions.max() < stream.block_size
        for a, b in pairwise(cu[:-1].tolist()):
            assert positions[a:b].tolist() == list(range(b - a))
            assert tokens[a + 1 : b].tolist() == targets[a : max(a, b - 1)].tolist()  # consecutive text
        found.append(list(zip(tokens[:n_targets].tolist(), targets[:n_targets].tolist(), strict=True)))
    return found


def test_packing_by_hand() -> None:
    docs = [np.array(d, np.int32) for d in ([9, 1, 2, 3, 4, 5, 9], [9, 6, 9], [9, 7, 8, 9])]
    stream = Batches(docs, block_size=4, batch_size=2, seed=0, shuffle=False)
    # Windows of 4, 2, 2 and 3 targets: the first three fill a batch of 8, then 3 + 4 leave one place.
    block = stream.next_many(2)
    assert block.tokens.tolist() == [[9, 1, 2, 3, 4, 5, 9, 6], [9, 7, 8, 9, 1, 2, 3, 0]]
    assert block.targets.tolist() == [[1, 2, 3, 4, 5, 9, 6, 9], [7, 8, 9, 1, 2, 3, 4, -1]]
    assert block.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2, 3, 0]]
    assert stream.sequences == 5  # at most 8 // 2 windows, and the padding
    assert block.cu_seqlens.tolist() == [[0, 4, 6, 8, 8, 8], [0, 3, 7, 7, 7, 8]]
    assert block.n_targets.tolist() == [8, 7] and block.consumed.tolist() == [3, 5]
    assert (stream.windows, stream.steps_per_epoch, stream.epoch) == (4, 2, 1.25)
    assert stream.efficiency == 11 / 16
    once = list(stream.once())
    assert [b.n_targets.tolist() for b in once] == [[8, 3]] and once[0].consumed.tolist() == [3, 4]
    assert stream.epoch == 1.25
    stream.widen(9)
    assert stream.next_many(1).cu_seqlens.shape == (1, 10)


@settings(deadline=None, max_examples=150)
@given(LENGTHS, st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**64 - 1), st.booleans(), st.booleans())
def test_every_target_once_an_epoch(
    lengths: list[int], block: int, batch: int, seed: int, shuffle: bool, packing: bool
) -> None:
    docs = docs_of(lengths)
    stream = Batches(docs, block, batch, seed, shuffle, packing=packing)
    pairs = pairs_of(docs)
    assert stream.targets_per_epoch == len(pairs)
    out = stream.next_many(3 * stream.windows)  # a batch holds at least one
    seen = [pair for row in check(out, stream) for pair in row]
    assert stream.epoch >= 3 and len(seen) >= 3 * len(pairs)
    for epoch in range(3):
        assert sorted(seen[epoch * len(pairs) : (epoch + 1) * len(pairs)]) == pairs
    counts = (np.diff(out.cu_seqlens[:, :-1], axis=1) > 0).sum(axis=1)
    assert np.array_equal(np.cumsum(counts), out.consumed)
    # Next-fit: a batch ends because the next window does not fit, or because it may hold no more.
    size = block * batch
    for i, (filled, count) in enumerate(zip(out.n_targets[:-1], counts, strict=False)):
        following = out.cu_seqlens[i + 1, 1]
        limit = stream.sequences - 1
        assert count == limit or (packing and filled + following > size)
    for limit in (0, 2):
        passed = [pair for part in stream.once(limit) for row in check(part, stream) for pair in row]
        assert sorted(passed) == pairs or (limit and len(passed) < len(pairs))
    assert 0 < stream.efficiency <= 1


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(2, 15), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 40), st.integers(0, 30),
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from(["plain", "shuffled", "length", "mixture"]),
)  # fmt: skip
def test_restore_with_skip_continues_identically(
    lengths: list[int], batch: int, before: int, skip: int, cuts: list[int], kind: str
) -> None:
    def make() -> Stream:
        def part(seed: int) -> Batches:
            curriculum = "length" if kind == "length" else "none"
            return Batches(docs_of(lengths, seed), 4, batch, seed, kind != "plain", curriculum=curriculum)

        return Mixture([part(7), part(1000), part(5000)], [1, 5, 2.5]) if kind == "mixture" else part(7)

    whole, first, resumed = make(), make(), make()
    if before:
        first.next_many(before)
    state = json.loads(json.dumps(first.state()))
    resumed.restore({**state, "skip": skip})
    expected = whole.next_many(before + skip + sum(cuts))
    at = before + skip
    assert at == 0 or resumed.state()["consumed"] == expected.consumed[at - 1]
    for n in cuts:  # blocks of any size cut the same stream
        for got, want in zip(resumed.next_many(n), expected, strict=True):
            assert got.dtype == want.dtype and got.flags.c_contiguous
            np.testing.assert_array_equal(got, want[at : at + n])
        at += n


def test_packing_fills_batches_of_short_documents() -> None:
    docs = docs_of(np.random.default_rng(0).integers(5, 11, 3000).tolist())
    packed, plain = Batches(docs, 16, 8, 0), Batches(docs, 16, 8, 0, packing=False)
    # Windows of 4 to 9 targets: next-fit leaves less than one window, 4.5 of 128 on average.
    assert packed.efficiency > 0.95 and plain.efficiency < 0.45
    assert packed.steps_per_epoch == len(packed.next_many(packed.steps_per_epoch).tokens)
    assert packed.epoch >= 1


# --- large orders -----------------------------------------------------------------------------------------------------
@given(st.integers(1, 400), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_scattered_is_a_permutation(n: int, seed: int, stream: int) -> None:
    found = scattered(np.arange(n), n, seed, stream)
    assert sorted(found.tolist()) == list(range(n))
    assert scattered(np.arange(n)[n // 2 :], n, seed, stream).tolist() == found[n // 2 :].tolist()


def test_scattered_is_frozen_and_spreads() -> None:
    # Recorded values: an old checkpoint must find the same order in every later version.
    assert scattered(np.arange(10), 10, 1, 0).tolist() == [4, 0, 3, 2, 5, 1, 7, 6, 9, 8]
    n = 3_000_000
    found = scattered(np.arange(200_000), n, 5, 0)
    assert len(np.unique(found)) == 200_000
    # Counts in 100 equal bins are binomial, mean 2,000 and deviation 44.5: five of them hold with odds of 1e-4.
    counts = np.bincount(found * 100 // n, minlength=100)
    assert np.abs(counts - 2000).max() < 5 * 44.5
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / np.sqrt(200_000)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=300).filter(lambda x: max(x) > 1), st.integers(1, 9), st.data()
)
def test_the_sparse_index_finds_the_same_windows(lengths: list[int], block: int, data: st.DataObject) -> None:
    source = windows_module.MemoryTokens(docs_of(lengths))
    out = np.packbits(np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))))
    left_out = data.draw(st.sampled_from([None, out]))
    direct = windows_module.Windows(source, block, left_out)
    before, windows_module._DIRECT = windows_module._DIRECT, -1
    try:
        sparse = windows_module.Windows(source, block, left_out)
    finally:
        windows_module._DIRECT = before
    assert sparse._direct is None and (sparse.count, sparse.targets) == (direct.count, direct.targets)
    assert sparse.shortest == direct.shortest
    numbers = np.random.default_rng(0).permutation(direct.count)
    for a, b in zip(direct.find(numbers), sparse.find(numbers), strict=True):
        np.testing.assert_array_equal(a, b)


def test_large_orders_cover_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "SORTED", 10)
    monkeypatch.setattr(split_module, "SORTED", 10)
    docs = docs_of([9] * 30)
    stream = Batches(docs, 4, 1, 3, packing=False)
    seen = [pair for row in check(stream.next_many(120), stream) for pair in row]
    assert sorted(seen[: len(seen) // 2]) == sorted(seen[len(seen) // 2 :]) == pairs_of(docs)
    assert seen[: len(seen) // 2] != seen[len(seen) // 2 :]
    assert len(set(held_out(30, 0.3, 1).tolist())) == 9


def test_held_out_is_what_split_chooses() -> None:
    documents = [str(i) for i in range(50)]
    assert split(documents, 0.1, 3)[1] == [str(i) for i in sorted(held_out(50, 0.1, 3).tolist())]
    assert len(held_out(1, 0.5, 0)) == len(held_out(9, 0.0, 0)) == 0


# --- curricula --------------------------------------------------------------------------------------------------------
def first_ids(stream: Stream, n: int) -> list[int]:
    return stream.next_many(n).tokens[:, 0].tolist()


def test_short_documents_come_first_in_the_first_epoch() -> None:
    docs = docs_of([9, 3, 7, 5, 3, 8])
    stream = Batches(docs, 16, 1, 0, packing=False, curriculum="length")
    lengths = stream.next_many(6).n_targets.tolist()
    assert lengths == [2, 2, 4, 6, 7, 8]
    assert sorted(stream.next_many(6).n_targets.tolist()) == lengths
    assert Batches(docs, 16, 1, 1, curriculum="length").state()["curriculum"] == "length"


def test_a_difficulty_of_ones_own() -> None:
    docs = docs_of([4, 4, 1, 4])
    hardest_first = Batches(docs, 4, 1, 0, packing=False, curriculum=lambda ids: -float(ids[-1]))
    assert first_ids(hardest_first, 3) == [9, 4, 0]
    same = Batches(docs, 4, 1, 0, packing=False, curriculum=np.array([-3.0, -7.0, 0.0, -12.0]))
    assert same.state()["curriculum"] == hardest_first.state()["curriculum"]
    other = Batches(docs, 4, 1, 0, packing=False, curriculum=[1.0, 2.0, 3.0, 4.0])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"curriculum was 'scores .*', is 'scores "):
        other.restore(same.state())
    with pytest.raises(DataError, match=r"expected 4 finite scores, one for each document, got shape \(3,\)"):
        Batches(docs, 4, 1, 0, curriculum=np.zeros(3))
    with pytest.raises(DataError, match="a score that is not finite"):
        Batches(docs, 4, 1, 0, curriculum=lambda ids: float("nan"))
    with pytest.raises(ConfigError, match=r"curriculum: .* got 'lenght' \(did you mean 'length'\?\)"):
        Batches(docs, 4, 1, 0, curriculum="lenght")


# --- mixtures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("packing", [False, True])
def test_a_mixture_keeps_its_shares_of_targets(packing: bool) -> None:
    rng = np.random.default_rng(1)
    parts = [
        Batches(docs_of(rng.integers(low, high, 200).tolist(), first), 16, 4, 3, packing=packing)
        for low, high, first in ((3, 6, 0), (10, 40, 100_000), (17, 18, 200_000))
    ]
    mixture = Mixture(parts, [2, 1, 1])
    block = mixture.next_many(2000)
    targets = block.targets[block.targets >= 0]
    shares = np.bincount(targets // 100_000, minlength=3) / len(targets)
    # Shares of windows are exact to one window; the mean of the 600 or more windows of a part, about 13 targets with
    # a deviation below 5, varies by 5 / sqrt(600) = 0.2 targets, 1.6 %. Three of that.
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], rtol=0.05)
    check(block, mixture)
    early = block.targets[:20]
    assert set((early[early >= 0] // 100_000).tolist()) == {0, 1, 2}
    assert mixture.targets_per_epoch == sum(part.targets_per_epoch for part in parts)
    assert sum(mixture.state()["taken"]) == mixture.state()["consumed"]


def test_mixtures_that_cannot_be() -> None:
    part = Batches(docs_of([9]), 4, 1, 0)
    for weights, message in (
        ([1.0], "weights: expected 2, one for each source, got 1"),
        ([1.0, 0.0], r"weights: expected positive numbers, got 1\.0, 0\.0"),
        ([1.0, float("nan")], "expected positive"),
        ([1.0, float("inf")], "expected positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            Mixture([part, part], weights)
    with pytest.raises(ConfigError, match="same block_size"):
        Mixture([part, Batches(docs_of([9]), 5, 1, 0)])
    with pytest.raises(ConfigError, match="at least one part"):
        Mixture([])
    assert check_weights(None, 4) == (0.25,) * 4 and check_weights([1, 3], 2) == (0.25, 0.75)
    mixture = Mixture([part, Batches(docs_of([5]), 4, 1, 0)])
    state = mixture.state()
    for change, message in (
        ({"taken": [1]}, "taken: expected 2 numbers"),
        ({"taken": [1, 2]}, "adds up to 3, but consumed is 0"),
        ({"weights": [0.1, 0.9]}, "weights was"),
        ({"parts": []}, "parts was"),
        ({"skip": -1}, "skip: expected an int"),
    ):
        with pytest.raises(DataError, match=message):
            mixture.restore({**state, **change})

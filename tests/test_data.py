"""Corpora, the validation split, and batches: values, errors, determinism."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt.data import corpus
from microgpt.data.batches import Batches
from microgpt.data.corpus import read_documents
from microgpt.data.split import permutation, split
from microgpt.errors import ConfigError, DataError

# --- corpora ------------------------------------------------------------------------------------------------


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_bundled_names() -> None:
    found = read_documents("names")
    assert found.kind == "line" and found.source == "names"
    assert len(found.documents) > 1000
    assert all(name and name == name.strip() for name in found.documents)


def test_lines_are_found_in_a_list(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "\ufeffemma\r\n\n  olivia \nava\u2028x")
    found = read_documents(path)
    assert (found.kind, found.documents) == ("line", ["emma", "olivia", "ava\u2028x"])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("one\ntwo\n", "line"),
        ("only one\n", "file"),
        ("x" * 64 + "\na\nb\n", "line"),
        ("x" * 65 + "\na\nb\n", "file"),
        ("a line of prose, 25 chars\n" * 9, "file"),
    ],
)
def test_auto_tells_lists_from_prose(tmp_path: Path, text: str, kind: str) -> None:
    assert read_documents(write(tmp_path / "t.txt", text)).kind == kind


def test_the_choice_can_be_made_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "a\r\nb\r\n")
    assert read_documents(path, documents="file").documents == ["a\r\nb\r\n"]
    assert read_documents(path, documents="line").documents == ["a", "b"]


def test_folder_is_read_recursively_in_sorted_order(tmp_path: Path) -> None:
    prose = "A sentence that is rather long for an entry of a list, number "
    for name in ("b/2.md", "a.txt", "b/10.py", ".git/x.txt", "b/.hidden.txt", "picture.png"):
        write(tmp_path / name, prose + name)
    write(tmp_path / "c.txt", b"\0binary")
    write(tmp_path / "d.txt", " \n")
    found = read_documents(tmp_path)
    assert found.documents == [prose + "a.txt", prose + "b/10.py", prose + "b/2.md"]
    assert (found.kind, found.skipped) == ("file", 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"bad\.txt: empty"),
        (b" \n\t\r\n", r"bad\.txt: nothing but white space"),
        (b"abc\0def", r"bad\.txt: expected text, found a binary file \(NUL at byte 3\)"),
        ("caf\u00e9 caf".encode() + b"\xe9!", r"bad\.txt: not UTF-8: byte 0xe9 at byte offset 9"),
    ],
)
def test_unusable_files(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_documents(write(tmp_path / "bad.txt", data))


def test_missing_source_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data 'nmaes'.*one of: names, stdlib \(did you mean 'names'\?\)"):
        read_documents("nmaes")
    with pytest.raises(DataError, match=r"no data .*none\.txt'"):
        read_documents(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot read"):
        read_documents("a\0b")
    with pytest.raises(ConfigError, match=r"documents: .* got 'lines' \(did you mean 'line'\?\)"):
        read_documents("names", documents="lines")


def test_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected text files .* found none"):
        read_documents(tmp_path)
    write(tmp_path / "x.txt", b"\0")
    with pytest.raises(DataError, match=r"expected text files .* found 1 binary"):
        read_documents(tmp_path)


def test_vanished_and_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.txt", "text")

    def gone(*args: object) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    def denied(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpus.os, "open", gone)
    with pytest.raises(DataError, match=r"x\.txt: vanished"):
        read_documents(path)
    monkeypatch.setattr(corpus.os, "open", denied)
    with pytest.raises(DataError, match=r"x\.txt: cannot read: Permission denied"):
        read_documents(path)


@pytest.mark.timeout(10)
def test_fifo_and_device_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(DataError, match="not a regular file"):
            read_documents(path)


# --- the split ----------------------------------------------------------------------------------------------


def test_permutation_is_frozen() -> None:
    # Recorded values: an old checkpoint must find the same order in every later version.
    assert permutation(10, seed=1, stream=0).tolist() == [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]
    assert permutation(10, seed=1, stream=1).tolist() == [0, 6, 5, 3, 4, 9, 7, 8, 2, 1]
    with pytest.raises(ConfigError, match=r"seed: .* got -1"):
        permutation(3, seed=-1, stream=0)


@given(st.integers(0, 40), st.floats(0, 0.99), st.integers(0, 2**64 - 1))
def test_split_keeps_every_document_once(count: int, fraction: float, seed: int) -> None:
    documents = [f"document {i}" for i in range(count)]
    train, held = split(documents, fraction, seed)
    if count == 1:
        assert "".join(train + held) == documents[0] and train[0]
        return
    assert sorted(train + held) == sorted(documents)
    assert [train, held] == [sorted(part, key=documents.index) for part in (train, held)]
    if count > 1:
        assert train and bool(held) == (fraction > 0)
        assert len(held) == (0 if fraction == 0 else min(count - 1, max(1, round(count * fraction))))
    assert split(documents, fraction, seed) == (train, held)


def test_split_depends_on_the_seed_and_cuts_one_document() -> None:
    documents = [str(i) for i in range(100)]
    assert split(documents, seed=0)[1] != split(documents, seed=1)[1]
    assert split(["0123456789"], 0.2) == (["01234567"], ["89"])
    assert split(["x"], 0.5) == (["x"], [])
    assert split([], 0.5) == ([], [])
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="validation fraction"):
            split(documents, bad)


# --- batches ------------------------------------------------------------------------------------------------


def docs_of(lengths: list[int]) -> list[np.ndarray]:
    """Documents whose ids are all different, so that a target tells where it came from."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(a, b, dtype=np.int32) for a, b in pairwise(ends)]


def test_one_batch_by_hand() -> None:
    docs = [np.array(d, np.int32) for d in ([9, 1, 2, 3, 4, 5, 9], [9, 6, 9])]
    block = Batches(docs, block_size=4, batch_size=3, seed=0, shuffle=False, packing=False).next_many(1)
    assert block.tokens.tolist() == [[9, 1, 2, 3, 4, 5, 9, 6, 0, 0, 0, 0]]
    assert block.targets.tolist() == [[1, 2, 3, 4, 5, 9, 6, 9, -1, -1, -1, -1]]
    assert block.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 0, 1, 2, 3]]
    assert block.cu_seqlens.tolist() == [[0, 4, 6, 8, 12]]
    assert block.n_targets.tolist() == [8]


def test_batch_of_one_by_hand_across_an_epoch() -> None:
    docs = [np.array(d, np.int32) for d in ([9, 1, 9], [9, 1, 2, 3, 9])]
    stream = Batches(docs, block_size=4, batch_size=1, seed=0, shuffle=False, packing=False)
    block = stream.next_many(3)
    assert block.tokens.tolist() == [[9, 1, 0, 0], [9, 1, 2, 3], [9, 1, 0, 0]]
    assert block.targets.tolist() == [[1, 9, -1, -1], [1, 2, 3, 9], [1, 9, -1, -1]]
    assert block.positions.tolist() == [[0, 1, 0, 1], [0, 1, 2, 3], [0, 1, 0, 1]]
    assert block.cu_seqlens.tolist() == [[0, 2, 4], [0, 4, 4], [0, 2, 4]]
    assert (stream.epoch, stream.steps_per_epoch, stream.targets_per_epoch) == (1.5, 2, 6)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 23), min_size=1, max_size=12).filter(lambda lengths: max(lengths) > 1),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 2**64 - 1),
    st.booleans(),
)
def test_every_target_once_an_epoch(lengths: list[int], block: int, batch: int, seed: int, shuffle: bool) -> None:
    docs = docs_of(lengths)
    stream = Batches(docs, block, batch, seed, shuffle, packing=False)
    pairs = sorted((a, b) for doc in docs for a, b in pairwise(doc.tolist()))
    windows = sum(-(-(n - 1) // block) for n in lengths if n > 1)
    assert stream.steps_per_epoch == -(-windows // batch)
    assert stream.targets_per_epoch == len(pairs)
    # `batch` epochs are a whole number of batches.
    out = stream.next_many(windows)
    assert stream.epoch == batch
    size = block * batch
    seen = []
    for i in range(windows):
        tokens, targets, positions, cu = (part[i] for part in out[:4])
        assert cu[0] == 0 and cu[-1] == size and (np.diff(cu[:-1]) >= 1).all() and (np.diff(cu) >= 0).all()
        assert (np.diff(cu[:-1]) <= block).all()
        assert out.n_targets[i] == cu[-2]
        assert (targets[cu[-2] :] == -1).all() and (tokens[cu[-2] :] == 0).all()
        assert positions.min() >= 0 and positions.max() < block
        for a, b in pairwise(cu.tolist()):
            assert positions[a:b].tolist() == [k % block for k in range(b - a)]
        for a, b in pairwise(cu[:-1].tolist()):
            assert tokens[a + 1 : b].tolist() == targets[a : b - 1].tolist()  # one window is consecutive text
        seen += zip(tokens[: cu[-2]].tolist(), targets[: cu[-2]].tolist(), strict=True)
    assert sorted(seen) == sorted(pairs * batch)
    for epoch in range(batch):  # and each epoch by itself has all of them
        part = seen[epoch * len(pairs) : (epoch + 1) * len(pairs)]
        assert sorted(part) == pairs


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(2, 15), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(0, 30),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.booleans(),
)
def test_restore_continues_identically(
    lengths: list[int], batch: int, before: int, cuts: list[int], shuffle: bool
) -> None:
    docs = docs_of(lengths)
    whole = Batches(docs, 4, batch, 7, shuffle)
    first = Batches(docs, 4, batch, 7, shuffle)
    for _ in range(before):
        first.next_many(1)
    resumed = Batches([doc.copy() for doc in docs], 4, batch, 7, shuffle)
    resumed.restore(json.loads(json.dumps(first.state())))
    assert resumed.epoch == first.epoch
    expected = whole.next_many(before + sum(cuts))
    start = before
    for n in cuts:  # blocks of any size cut the same stream
        for got, want in zip(resumed.next_many(n), expected, strict=True):
            assert got.dtype == want.dtype and got.flags.c_contiguous
            np.testing.assert_array_equal(got, want[start : start + n])
        start += n


def test_epochs_differ_and_follow_the_seed() -> None:
    docs = docs_of([5] * 50)
    one, two = Batches(docs, 4, 1, 3), Batches(docs, 4, 1, 4)
    a, b, c = one.next_many(50).tokens, one.next_many(50).tokens, two.next_many(50).tokens
    assert not np.array_equal(a, b) and not np.array_equal(a, c)


def test_restore_names_what_changed() -> None:
    docs = docs_of([5, 6])
    state = Batches(docs, 4, 2, 0).state()
    other = [docs[0], docs[1] + np.int32(1)]
    with pytest.raises(DataError, match=r"fingerprint was '[0-9a-f]{64}', is '"):
        Batches(other, 4, 2, 0).restore(state)
    with pytest.raises(DataError, match=r"documents was 2, is 1; tokens was 11, is 5; targets was 9, is 4"):
        Batches(docs[:1], 4, 2, 0).restore(state)
    # Same tokens, cut elsewhere.
    with pytest.raises(DataError, match="fingerprint was"):
        Batches(docs_of([6, 5]), 4, 2, 0).restore(state)
    with pytest.raises(DataError, match=r"block_size was 4, is 8; batch_size was 2, is 1; max_windows was 8, is 2$"):
        Batches(docs, 8, 1, 0).restore(state)
    with pytest.raises(DataError, match=r"seed was 0, is 1"):
        Batches(docs, 4, 2, 1).restore(state)
    with pytest.raises(DataError, match="missing consumed, seed"):
        Batches(docs, 4, 2, 0).restore({k: v for k, v in state.items() if k not in ("consumed", "seed")})
    for bad in (-1, "3", 1.0, True, 2**63):
        with pytest.raises(DataError, match="consumed: expected an int"):
            Batches(docs, 4, 2, 0).restore(state | {"consumed": bad})


def test_unusable_documents() -> None:
    for docs in ([], [np.zeros(1, np.int32)], [np.zeros(0, np.int32)]):
        with pytest.raises(DataError, match=f"none of the {len(docs)} documents has two tokens"):
            Batches(docs, 4, 1, 0)
    good = np.zeros(4, np.int32)
    with pytest.raises(DataError, match=r"document 1: expected .* int32 array, got int64 \(3,\)"):
        Batches([good, np.zeros(3, np.int64)], 4, 1, 0)
    with pytest.raises(DataError, match=r"document 0: .* got list"):
        Batches([[1, 2]], 4, 1, 0)  # type: ignore[list-item]
    bad = np.array([0, 5, -2], np.int32)
    with pytest.raises(DataError, match=r"document 1, position 2: expected a token id .* got -2"):
        Batches([good, bad], 4, 1, 0)
    with pytest.raises(DataError, match=r"document 1, position 1: expected a token id from 0 to 4, got 5"):
        Batches([good, np.array([0, 5], np.int32)], 4, 1, 0, vocab_size=5)
    with pytest.raises(ConfigError, match="block_size: expected at least 1, got 0"):
        Batches([good], 0, 1, 0)
    with pytest.raises(ConfigError, match=r"below 2\*\*31"):
        Batches([good], 2**16, 2**15, 0)
    with pytest.raises(ConfigError, match="next_many: expected n >= 1"):
        Batches([good], 4, 1, 0).next_many(0)


DETERMINISM = """
import hashlib, sys
from microgpt.data.batches import Batches
from microgpt.data.corpus import read_documents
from microgpt.data.split import split
from microgpt.tokenizers.char import CharTokenizer
corpus = read_documents(sys.argv[1])
train, held = split(corpus.documents, 0.1, 5)
tokenizer = CharTokenizer.train(corpus.documents)
tokenizer.save(sys.argv[2])
stream = Batches(tokenizer.encode_many(train, True, True), 16, 3, 5)
digest = hashlib.sha256(repr(held).encode())
for part in stream.next_many(50):
    digest.update(part.tobytes())
print(digest.hexdigest(), stream.state())
"""


def test_two_processes_agree(tmp_path: Path) -> None:
    source = tmp_path / "words.txt"
    source.write_text("\n".join(f"w{i * i % 997:x}q\u00e9{i}" for i in range(400)), encoding="utf-8")
    answers = []
    for seed in ("1", "2"):
        target = tmp_path / seed
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        run = subprocess.run(
            [sys.executable, "-c", DETERMINISM, str(source), str(target)],
            env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        answers.append((run.stdout, *[(target / n).read_bytes() for n in sorted(os.listdir(target))]))
    assert answers[0] == answers[1] and len(answers[0][0]) > 64

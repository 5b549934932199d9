"""Token stores, prepare() and `microgpt tokenize`: round trips, every kind of damage, determinism, bounded memory."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from microgpt.cli import cli
from microgpt.data import prepare as prepare_module
from microgpt.data import shards
from microgpt.data.batches import Batches, Mixture
from microgpt.data.corpus import open_source
from microgpt.data.prepare import DataSettings, prepare, tokenize
from microgpt.data.shards import StoreWriter, TokenStore
from microgpt.errors import ConfigError, DataError, MicrogptError, StorageError, TokenizerError
from microgpt.io.sealed import seal
from microgpt.tokenizers.char import CharTokenizer

LETTERS = CharTokenizer(list("abcdefghij"))


def random_docs(count: int, seed: int = 0, longest: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 11, n).astype(np.int32) for n in rng.integers(0, longest, count)]


def write(folder: Path, docs: list[np.ndarray], shard_bytes: int = 64) -> TokenStore:
    with StoreWriter(folder, LETTERS, shard_bytes) as writer:
        for doc in docs:
            writer.add(doc[: len(doc) // 2], False, 0)
            writer.add(doc[len(doc) // 2 :], True, 3 * len(doc))
        return writer.finish({"source": "test", "kind": "line"})


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small stores are held in memory; both ways must read the same."""
    if request.param == "disk":
        monkeypatch.setattr(shards, "_IN_MEMORY", -1)
    return request.param


# --- stores -----------------------------------------------------------------------------------------------------------
def test_a_store_gives_the_batches_of_its_documents(tmp_path: Path, place: str) -> None:
    docs = random_docs(200)
    store = write(tmp_path / "s", docs)
    assert (store.documents, store.tokens, store.vocab_size) == (200, sum(map(len, docs)), 11)
    assert store.bytes == 3 * store.tokens and store.text_bytes(7) == 3 * len(docs[7])
    assert len(store._names) == -(-store.tokens // 32) > 10  # windows and documents lie across shards
    assert store.offsets(3, 9).tolist() == np.cumsum([0, *map(len, docs)])[3:10].tolist()
    for packing in (False, True):
        ours = Batches(store, 8, 3, 5, packing=packing).next_many(60)
        theirs = Batches(docs, 8, 3, 5, packing=packing).next_many(60)
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b)
    assert store.tokenizer().fingerprint == LETTERS.fingerprint
    store.verify()
    left_out = np.packbits(np.arange(200) % 3 == 0)
    kept = [doc for i, doc in enumerate(docs) if i % 3]
    some = Batches(store, 8, 3, 0, shuffle=False, left_out=left_out)
    rest = Batches(kept, 8, 3, 0, shuffle=False)
    assert np.array_equal(some.next_many(30).tokens, rest.next_many(30).tokens)


def test_element_type_follows_the_vocabulary(tmp_path: Path) -> None:
    large = CharTokenizer([chr(0x10000 + i) for i in range(70_000)])
    for name, tokenizer, kind in (("a", LETTERS, "uint16"), ("b", large, "int32")):
        with StoreWriter(tmp_path / name, tokenizer) as writer:
            writer.add(np.array([1, tokenizer.vocab_size - 1], np.int32), True, 5)
            store = writer.finish({})
        assert store.manifest["dtype"] == kind
        assert Batches(store, 1, 1, 0).next_many(1).targets.tolist() == [[tokenizer.vocab_size - 1]]


def test_a_writer_that_gives_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "s", LETTERS, 4) as writer:
        writer.add(np.arange(9, dtype=np.int32), False, 0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.tmp.4194304.0123456789ab").mkdir()  # of a writer that was killed (no process has that number)
    (tmp_path / f"s.tmp.{os.getppid()}.0123456789ab").mkdir()  # of one that is alive
    write(tmp_path / "s", random_docs(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", f"s.tmp.{os.getppid()}.0123456789ab"]
    with pytest.raises(ConfigError, match=r"s: exists already"):
        StoreWriter(tmp_path / "s", LETTERS)
    (tmp_path / "f").touch()
    with pytest.raises(StorageError, match="writing tokens failed"):
        StoreWriter(tmp_path / "f" / "s", LETTERS)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"writing tokens failed .*No space left on device \(ENOSPC\); \d+ bytes free"
    ):
        write(tmp_path / "t", random_docs(3))
    assert not (tmp_path / "t").exists() and not list(tmp_path.glob(f"t.tmp.{os.getpid()}.*"))


def resealed(folder: Path, **changes: Any) -> None:
    """Change the manifest and give it a fitting checksum, as a careless or hostile writer would."""
    content = json.loads((folder / "manifest.json").read_text()) | changes
    del content["sha256"]
    (folder / "manifest.json").write_bytes(seal(content))


def test_damage_is_named(tmp_path: Path, place: str) -> None:
    docs = random_docs(50)

    def fresh(name: str) -> Path:
        write(tmp_path / name, docs)
        return tmp_path / name

    folder = fresh("a")
    (folder / "tokens-00001.bin").unlink()
    with pytest.raises(DataError, match=r"tokens-00001\.bin: missing \(its manifest lists 64 bytes\)"):
        TokenStore(folder)
    folder = fresh("b")
    os.truncate(folder / "tokens-00002.bin", 63)
    with pytest.raises(DataError, match=r"tokens-00002\.bin: truncated: expected 64 bytes, found 63"):
        TokenStore(folder)
    folder = fresh("c")
    data = bytearray((folder / "tokens-00002.bin").read_bytes())
    data[10] ^= 1
    (folder / "tokens-00002.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"tokens-00002\.bin: altered: expected sha256 "):
        TokenStore(folder).verify()
    (folder / "tokens-00002.bin").write_bytes(b"\xff" * 64)
    with pytest.raises(DataError, match="altered: expected ids from 0 to 10, found 65535"):
        Batches(TokenStore(folder), 8, 3, 0).next_many(200)
    folder = fresh("d")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"documents": 50', '"documents": 49'))
    with pytest.raises(DataError, match="its content does not match its own sha256"):
        TokenStore(folder)
    for bad, message in (
        ("{", "not JSON"),
        ("[]", "expected an object, got list"),
        ("{}", "manifest of a token store"),
        ("", "not JSON"),
    ):
        (folder / "manifest.json").write_text(bad)
        with pytest.raises(DataError, match=message):
            TokenStore(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: missing; .* not a complete token store"):
        TokenStore(folder)
    folder = fresh("e")
    resealed(folder, format_version=2)
    with pytest.raises(DataError, match=r"expected format_version 1, got 2; tokenize the text again"):
        TokenStore(folder)
    files = json.loads((fresh("f") / "manifest.json").read_text())["files"]
    for changes in (
        {"documents": 49}, {"tokens": 5}, {"tokens": 10**15}, {"vocab_size": 10**6}, {"tokens_per_shard": 0},
        {"files": {"../x": files["documents.bin"]}}, {"files": {}}, {"dtype": "int64"}, {"tokens": -1},
        {"documents": None},
    ):  # fmt: skip
        folder = fresh(f"g{len(list(tmp_path.iterdir()))}")
        resealed(folder, **changes)
        with pytest.raises(DataError, match=r"altered|expected the counts"):
            TokenStore(folder)
    folder = fresh("h")
    ends = np.fromfile(folder / "documents.bin", "<i8")
    ends[20] = 10**12
    ends.tofile(folder / "documents.bin")
    with pytest.raises(DataError, match=r"documents\.bin: altered: documents end out of order"):
        Batches(TokenStore(folder), 8, 3, 0)


def test_a_shard_that_is_cut_while_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a mapping would end the process with SIGBUS."""
    monkeypatch.setattr(shards, "_IN_MEMORY", -1)
    store = write(tmp_path / "s", random_docs(50))
    stream = Batches(store, 8, 3, 0)
    stream.next_many(1)
    os.truncate(tmp_path / "s" / "tokens-00000.bin", 8)
    with pytest.raises(DataError, match=r"tokens-00000\.bin: truncated while in use"):
        stream.next_many(200)
    store = write(tmp_path / "t", random_docs(500))
    stream = Batches(store, 8, 3, 0)
    os.truncate(tmp_path / "t" / "documents.bin", 16)
    with pytest.raises(DataError, match=r"documents\.bin: truncated while it was in use"):
        store.offsets(3, 9)


def test_a_restart_names_other_tokens(tmp_path: Path) -> None:
    state = Batches(write(tmp_path / "a", random_docs(50)), 8, 3, 0).state()
    Batches(TokenStore(tmp_path / "a"), 8, 3, 0).restore(json.loads(json.dumps(state)))
    with pytest.raises(DataError, match="fingerprint was"):
        Batches(write(tmp_path / "b", random_docs(50, seed=1)), 8, 3, 0).restore(state)


# --- prepare ----------------------------------------------------------------------------------------------------------
def lines_file(path: Path, count: int = 300) -> Path:
    path.write_text("\n".join(f"w{i * i % 997:x}q\u00e9{i}" for i in range(count)), "utf-8")
    return path


@pytest.fixture
def on_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "MEMORY_BYTES", 500)


def targets_of(stream: Any) -> list[int]:
    return sorted(t for block in stream.once() for t in block.targets.ravel().tolist() if t >= 0)


def test_shards_hold_what_memory_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = DataSettings(data=str(lines_file(tmp_path / "t.txt")), val_fraction=0.2, seed=3)
    held = prepare(wanted)
    monkeypatch.setattr(prepare_module, "MEMORY_BYTES", 500)
    stored = prepare(wanted, folder=tmp_path)
    assert isinstance(stored.train, Batches) and isinstance(stored.train.source, TokenStore)
    assert held.tokenizer.fingerprint == stored.tokenizer.fingerprint
    assert held.summary == stored.summary and held.val_bytes_per_token == stored.val_bytes_per_token
    assert targets_of(held.train) == targets_of(stored.train)
    assert held.validation is not None and stored.validation is not None
    a, b = (next(each.validation.once()) for each in (held, stored))  # type: ignore[union-attr]
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    for x, y in zip(held.train.next_many(50), stored.train.next_many(50), strict=True):
        np.testing.assert_array_equal(x, y)  # the same order, too: it follows from the numbers of windows
    assert "300 documents from" in held.summary[0] and "(one per line)" in held.summary[0]
    assert held.summary[-1].startswith("packing fills ")
    # Bytes of text for a target: every document has one target more than characters.
    texts = Path(wanted.sources[0]).read_text("utf-8").split("\n")
    size = held.val_bytes_per_token * held.validation.targets_per_epoch  # type: ignore[operator]
    assert abs(size - 0.2 * sum(len(text.encode()) for text in texts)) < 0.05 * size


@pytest.mark.usefixtures("on_shards")
def test_a_run_that_goes_on_reads_its_shards(tmp_path: Path) -> None:
    source = lines_file(tmp_path / "t.txt")
    wanted = DataSettings(data=str(source))
    said: list[str] = []
    first = prepare(wanted, folder=tmp_path, say=said.append)
    first.train.next_many(7)
    assert said == [f"{first.train.state()['tokens']:,} tokens of {source} written to {tmp_path / 'tokens'}"]
    source.unlink()  # no longer needed
    unsaved = prepare(wanted, folder=tmp_path)  # a run that was stopped before its first checkpoint
    assert unsaved.tokenizer.fingerprint == first.tokenizer.fingerprint
    again = prepare(wanted, first.tokenizer, tmp_path)
    again.train.restore(first.train.state())
    assert np.array_equal(again.train.next_many(3).tokens, first.train.next_many(3).tokens)
    with pytest.raises(DataError, match=r"tokens holds tokens of other settings: documents was 'auto', is 'line'"):
        prepare(dataclasses.replace(wanted, documents="line"), first.tokenizer, tmp_path)
    with pytest.raises(DataError, match=r"written by another tokenizer \(\d+ ids\) than the one in use \(11 ids\)"):
        prepare(wanted, LETTERS, tmp_path)
    shard = tmp_path / "tokens" / "tokens-00000.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:-2] + b"\1\0")
    with pytest.raises(DataError, match=r"tokens-00000\.bin: altered"):
        prepare(wanted, first.tokenizer, tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"tokens-00000\.bin: missing"):
        prepare(wanted, first.tokenizer, tmp_path)


@pytest.mark.usefixtures("on_shards")
def test_a_single_document_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.txt"
    path.write_text("abcdefghij" * 100)
    data = prepare(DataSettings(data=str(path), val_fraction=0.25, block_size=8), folder=tmp_path)
    assert data.validation is not None
    # 1,002 ids with the control tokens; 250 of them (and the last target) validate.
    assert (data.train.targets_per_epoch, data.validation.targets_per_epoch) == (751, 249)
    assert data.val_bytes_per_token == pytest.approx(1, rel=0.01)
    monkeypatch.setattr(prepare_module, "VALIDATION_TOKENS", 100)
    again = prepare(DataSettings(data=str(path), val_fraction=0.25, block_size=8), folder=tmp_path)
    assert again.validation is not None and again.validation.targets_per_epoch == 99
    assert again.train.targets_per_epoch == 751
    whole = prepare(DataSettings(data=str(path), val_fraction=0, block_size=8), folder=tmp_path)
    assert whole.validation is None and whole.train.targets_per_epoch == 1001 and whole.val_bytes_per_token is None


@pytest.mark.usefixtures("on_shards")
def test_validation_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "VALIDATION_TOKENS", 100)
    data = prepare(DataSettings(data=str(lines_file(tmp_path / "t.txt")), val_fraction=0.5), folder=tmp_path)
    assert data.validation is not None and 50 < data.validation.targets_per_epoch <= 100
    assert any("of 150 validation documents are used" in line for line in data.summary)


def test_temporary_shards_go_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_shards: None) -> None:
    monkeypatch.setattr(prepare_module.tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    wanted = DataSettings(data=str(lines_file(tmp_path / "t.txt")))
    data = prepare(wanted)
    assert len(list((tmp_path / "temp").iterdir())) == 1
    del data
    assert list((tmp_path / "temp").iterdir()) == []
    with pytest.raises(TokenizerError, match=r"t\.txt: after 0 documents: text 0: characters outside"):
        prepare(wanted, LETTERS)
    assert list((tmp_path / "temp").iterdir()) == []


@pytest.mark.usefixtures("on_shards")
def test_a_mixture_of_kinds(tmp_path: Path) -> None:
    lines_file(tmp_path / "t.txt")
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps({"text": f"record {i} {i}"}) for i in range(20)))
    wanted = DataSettings(data=(str(tmp_path / "t.txt"), str(tmp_path / "r.jsonl")), weights=(3, 1), dedup=True)
    data = prepare(wanted, folder=tmp_path)
    assert isinstance(data.train, Mixture) and data.train.weights == (0.75, 0.25)
    assert [len(list((tmp_path / "tokens").iterdir())), data.documents] == [1, 320]  # the records fit into memory
    assert data.validation is not None
    data.train.next_many(9)
    again = prepare(wanted, data.tokenizer, tmp_path)
    again.train.restore(json.loads(json.dumps(data.train.state())))
    assert np.array_equal(again.train.next_many(3).tokens, data.train.next_many(3).tokens)
    with pytest.raises(ConfigError, match="weights: expected 2, one for each source, got 1"):
        prepare(dataclasses.replace(wanted, weights=(1,)))
    with pytest.raises(ConfigError, match="at least one source"):
        prepare(DataSettings(data=()))


def test_corpora_that_are_too_small(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("ab\ncd")
    with pytest.raises(DataError, match=r"t\.txt: 3 training tokens are fewer than one sequence \(block_size 4\)"):
        prepare(DataSettings(data=str(tmp_path / "t.txt"), block_size=4))
    assert prepare(DataSettings(data=str(tmp_path / "t.txt"), block_size=3)).train.windows == 1
    (tmp_path / "t.txt").write_text("")
    with pytest.raises(DataError, match="empty"):
        prepare(DataSettings(data=str(tmp_path / "t.txt")))


def test_a_tokenizer_beyond_the_model_s_vocabulary(tmp_path: Path) -> None:
    docs = [np.array([1, 5, 10], np.int32)]
    with pytest.raises(DataError, match=r"expected a token id from 0 to 9, got 10"):
        Batches(docs, 4, 1, 0, vocab_size=10)
    with pytest.raises(DataError, match=r"s: has 11 ids, the model's vocabulary 10"):
        Batches(write(tmp_path / "s", docs), 4, 1, 0, vocab_size=10)


# --- the verb ---------------------------------------------------------------------------------------------------------
def run(*args: str) -> tuple[int, str, str]:
    with warnings.catch_warnings():
        result = CliRunner().invoke(cli, [*args])
    return result.exit_code, result.stdout, result.stderr


def test_tokenize_then_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prose = "It was the best of times, it was the worst of times, it was the age of wisdom.\n"
    for i in range(30):
        (tmp_path / f"{i}.md").write_text(prose * (1 + i % 7))
    code, out, err = run("tokenize", "--train", "--data", ".", "--vocab-size", "300", "--dedup", "--out", "tok/a")
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert lines[0].startswith("tokenizer of ") and lines[-2:] == [
        "saved in tok/a",
        "next: microgpt train --data tok/a",
    ]
    assert lines[-3].startswith("7 documents, ") and lines[-3].endswith(", 23 duplicates removed")
    assert " bytes/token, " in lines[-3] and " MB/s" in lines[-3]
    code, out, err = run(
        "tokenize", "--data", "0.md", "--data", "1.md", "--tokenizer", "tok/a", "--out", "tok/b", "--quiet"
    )
    assert (code, out, err) == (0, "", "")
    a, b = TokenStore("tok/a"), TokenStore("tok/b")
    assert a.manifest["tokenizer"] == b.manifest["tokenizer"] and b.documents == 2 and b.bytes == 3 * len(prose)
    a.verify()
    assert a.tokenizer().decode(a._flat.tolist()[1:-1]).startswith(prose)  # type: ignore[union-attr]
    code, out, err = run("train", "--data", "tok/a", "--layers", "1", "--width", "8", "--heads", "1", "--steps", "3",
                         "--num-samples", "0", "--out", "run")  # fmt: skip
    assert code == 0, err
    assert "7 documents from tok/a (one per file)" in err and not (tmp_path / "run" / "tokens").exists()
    assert (tmp_path / "run" / "step-3" / "tokenizer.json").read_bytes() == Path("tok/a/tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ("--data t.txt --out o", 2, "give --train"),
        ("--train --tokenizer x --data t.txt --out o", 2, "give --train"),
        ("--tokenizer char --vocab-size 300 --data t.txt --out o", 2, "--vocab-size: only for --train"),
        ("--train --vocab-size 9 --data t.txt --out o", 2, "expected at least 257 for bpe, got 9"),
        ("--train --data t.txt --out taken", 2, "taken: exists already"),
        ("--train --data none.txt --out o", 1, "no data 'none.txt'"),
        ("--train --data empty.txt --out o", 1, "empty.txt: empty"),
        ("--tokenizer nowhere --data t.txt --out o", 2, "expected auto, char, bpe, or a path, got 'nowhere'"),
        ("--tokenizer taken --data t.txt --out o", 1, "tokenizer.json: no such file"),
        ("--train --out o", 2, "--data"),
    ],
)
def test_bad_use_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: str, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines_file(tmp_path / "t.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "taken").mkdir()
    found, out, err = run("tokenize", *args.split())
    assert (found, out) == (code, "") and message in err and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "t.txt", "taken"]


def test_a_store_brings_its_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "s", random_docs(50))
    source = str(tmp_path / "s")
    assert prepare(DataSettings(data=source)).tokenizer.fingerprint == LETTERS.fingerprint
    for wrong in ({"tokenizer": "char"}, {"vocab_size": 300}):
        with pytest.raises(ConfigError, match=r"tokenizer: .*s brings its own"):
            prepare(DataSettings(data=source, **wrong))  # type: ignore[arg-type]
    CharTokenizer(["z"]).save(tmp_path / "z")
    with pytest.raises(DataError, match="written by another tokenizer"):
        prepare(DataSettings(data=source, tokenizer=str(tmp_path / "z")))


def test_tokenize_refuses_before_it_reads(tmp_path: Path) -> None:
    reader = open_source(lines_file(tmp_path / "t.txt"))
    store, duplicates = tokenize([reader], tmp_path / "o", "char")
    assert (store.documents, duplicates) == (300, 0)
    with pytest.raises(MicrogptError, match="exists already"):
        tokenize([reader], tmp_path / "o", "char")


# --- determinism, memory ----------------------------------------------------------------------------------------------
CHILD = """
import hashlib, json, sys
from pathlib import Path
from microgpt.data import prepare as module
module.MEMORY_BYTES = 1000
settings = module.DataSettings(data=(sys.argv[1], "names"), weights=(2, 1), tokenizer="bpe", vocab_size=400, seed=5)
data = module.prepare(settings, folder=Path(sys.argv[2]))
digest = hashlib.sha256()
for part in data.train.next_many(50):
    digest.update(part.tobytes())
for path in sorted(Path(sys.argv[2]).rglob("*")):
    if path.is_file():
        digest.update(path.read_bytes())
print(digest.hexdigest(), json.dumps(data.train.state()), data.summary, data.val_bytes_per_token)
"""


def child(code: str, *args: str, **env: str) -> str:
    full = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | env
    done = subprocess.run([sys.executable, "-c", code, *args], env=full, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shards_and_order_are_the_same_in_every_process(tmp_path: Path) -> None:
    source = str(lines_file(tmp_path / "t.txt", 2000))
    answers = {
        child(CHILD, source, str(tmp_path / seed), PYTHONHASHSEED=seed, RAYON_NUM_THREADS=threads)
        for seed, threads in (("1", "1"), ("2", "2"))
    }  # fmt: skip
    assert len(answers) == 1


def test_pairs_follow_in_a_store_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse index of windows over document ends that stay on disk."""
    monkeypatch.setattr(shards, "_IN_MEMORY", -1)
    monkeypatch.setattr("microgpt.data.windows._DIRECT", -1)
    docs = random_docs(300, seed=4)
    stream = Batches(write(tmp_path / "s", docs), 8, 2, 1)
    both = [(block.tokens.ravel().tolist(), block.targets.ravel().tolist()) for block in stream.once()]
    found = sorted((a, b) for pair in both for a, b in zip(*pair, strict=True) if b >= 0)
    assert found == sorted((a, b) for doc in docs for a, b in pairwise(doc.tolist()))

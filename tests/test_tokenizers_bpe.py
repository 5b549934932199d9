"""Byte-level BPE trained here: vocabulary, determinism, streaming, pathological text, and the choice of a tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt.data import files
from microgpt.data.files import Piece
from microgpt.data.prepare import encoded
from microgpt.errors import ConfigError, MissingExtraError, TokenizerError
from microgpt.tokenizers import bpe as bpe_module
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.bpe import Sample, make_tokenizer, train_bpe
from microgpt.tokenizers.char import END_OF_TEXT, CharTokenizer
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.stream import StreamDecoder

any_text = st.text(st.characters(exclude_categories=["Cs"]))
TEXT = [
    Path(json.__file__).read_text("utf-8"),
    "d\u00e9j\u00e0 vu \U0001f600\U0001f600 \u65e5\u672c\u8a9e don't we'll",
] * 2


@pytest.fixture(scope="module")
def bpe() -> HubTokenizer:
    return train_bpe(TEXT, 400)


def test_vocabulary(bpe: HubTokenizer) -> None:
    assert (bpe.vocab_size, bpe.bos_id, bpe.eos_id, bpe.special_ids) == (400, 0, 0, {0})
    alphabet = [bpe.decode([i]) for i in range(1, 257)]
    assert len({text for text in alphabet if len(text) == 1 and text != "\ufffd"}) == 128  # ASCII; the rest are parts
    assert any(bpe.decode([i]) == " the" for i in range(257, 400))
    assert train_bpe(["ab"], 300).vocab_size == 257  # no pair occurs twice


def test_merges_are_those_of_the_definition() -> None:
    """The textbook example: pairs by count, words never crossed, ties by the smaller ids."""
    made = train_bpe([" low" * 5 + " lower" * 2 + " newest" * 6 + " widest" * 3], 261)
    merges = json.loads(made._files()["tokenizer.json"])["model"]["merges"]
    # "es" and then "est" occur 9 times; (l, o), (o, w), (\u0120, l) 7 times, then (lo, w) and (\u0120, lo).
    assert [tuple(pair) for pair in merges] == [("e", "s"), ("es", "t"), ("l", "o"), ("\u0120", "lo")]


@settings(deadline=None, max_examples=200)
@given(text=any_text)
def test_round_trip_and_stream(bpe: HubTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text and not bpe.special_ids & set(ids)
    stream = StreamDecoder(bpe)
    pieces = [stream.push(token) for token in ids]
    assert "".join([*pieces, stream.finish()]) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)  # never half a character


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=40))
def test_stream_of_raw_bytes(bpe: HubTokenizer, data: bytes) -> None:
    """Ids of single bytes in any order: the stream is the decoded whole, which is Python's own reading of them."""
    ids = [single_bytes(bpe)[value] for value in data]
    assert bpe.decode(ids) == data.decode("utf-8", "replace")
    stream = StreamDecoder(bpe)
    assert "".join([*map(stream.push, ids), stream.finish()]) == bpe.decode(ids)


@cache
def single_bytes(tokenizer: HubTokenizer) -> dict[int, int]:
    """The id of each byte, by GPT-2's table of printable stand-ins."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}
    return {table[tokenizer._library.id_to_token(token)]: token for token in range(1, 257)}


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(any_text | st.sampled_from([END_OF_TEXT, f"a{END_OF_TEXT}b"]), max_size=6), edges=st.booleans())
def test_encode_many_is_encode(bpe: HubTokenizer, texts: list[str], edges: bool) -> None:
    rows = bpe.encode_many(texts, edges, edges)
    assert [row.tolist() for row in rows] == [bpe.encode(text, edges, edges) for text in texts]
    assert all(row.dtype == np.int32 for row in rows)
    for row in rows:
        assert 0 not in row[1:-1] if edges else 0 not in row


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from("ab'st \n\t\r\u2003\u00e99.\u65e5"), max_size=400), size=st.integers(1, 40))
def test_a_document_in_pieces_has_the_same_ids(
    tmp_path_factory: pytest.TempPathFactory, bpe: HubTokenizer, text: str, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(text.encode())
    before = files.PIECE, files._HEAD, files._LONGEST
    files.PIECE, files._HEAD, files._LONGEST = size, 2 * size, 10**9  # cut only where it is exact
    try:
        pieces = list(files.whole_file(path, {}))
    finally:
        files.PIECE, files._HEAD, files._LONGEST = before
    ids = [row for row, _, _ in encoded(pieces, bpe, "x")]
    if text:
        assert np.concatenate(ids).tolist() == bpe.encode(text, True, True)
        assert sum(size for _, _, size in encoded(pieces, bpe, "x")) == len(text.encode())
    chars = CharTokenizer(sorted(set(text) or {"a"}))
    assert np.concatenate([[0], *[r for r, _, _ in encoded(pieces, chars, "x")]]).tolist()[1:] == (
        chars.encode(text, True, True) if text else []
    )


def test_a_text_that_fails_is_named(bpe: HubTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"text 1: character ., U\+D800, is half"):
        bpe.encode_many(["a", "\ud800", "b"])
    chars = CharTokenizer(["a"])
    with pytest.raises(TokenizerError, match=r"^src: after 0 documents: text 1: .*'b' at position 0"):
        list(encoded([Piece("a"), Piece("b")], chars, "src"))


@pytest.mark.parametrize("unit", ["a", "^", "_", " ", "7", "\U0001f600", "\n", "ab"])
def test_pathological_text_takes_linear_time(bpe: HubTokenizer, unit: str) -> None:
    """A quadratic algorithm would take hours for a megabyte of one character; the bound is loose on purpose."""
    text = unit * (300_000 // len(unit.encode()))
    started = time.perf_counter()
    assert bpe.decode(bpe.encode(text)) == text
    assert time.perf_counter() - started < 30


def test_saved_and_loaded(bpe: HubTokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == bpe.fingerprint == Tokenizer.load(tmp_path / "tokenizer.json").fingerprint
    assert again.encode("the cat's", True) == bpe.encode("the cat's", True)
    assert CharTokenizer(["a"]).fingerprint != CharTokenizer(["b"]).fingerprint
    again.max_length = 77
    again.save(tmp_path)
    assert Tokenizer.load(tmp_path).max_length == 77


def test_transformers_loads_it(bpe: HubTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    bpe.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat don't", " d\u00e9j\u00e0\n\n vu \U0001f600 ", "a , b . c 's"):
        assert theirs(text)["input_ids"] == bpe.encode(text)
        assert theirs.decode(bpe.encode(text)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (0, 0, 400)


TRAIN = """
import sys
from microgpt.tokenizers.bpe import train_bpe
made = train_bpe([open(name, encoding="utf-8").read() for name in sys.argv[1:]], 1500)
print(made.fingerprint, made.vocab_size)
"""


def test_the_same_vocabulary_in_every_process() -> None:
    names = [str(path) for path in sorted(Path(json.__file__).parents[1].glob("a*.py"))][:6]
    answers = set()
    for seed, threads in (("1", "1"), ("2", "2"), ("3", "3")):
        env = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        run = subprocess.run([sys.executable, "-c", TRAIN, *names], env=env, capture_output=True, text=True, check=True)
        answers.add(run.stdout)
    assert len(answers) == 1 and answers.pop().split()[1] == "1500"


# --- the choice -------------------------------------------------------------------------------------------------------
def test_a_sample_is_even_and_bounded() -> None:
    sample = Sample((f"{i:04d}" for i in range(1000)), limit=400)
    numbers = [int(text) for text in sample.texts]
    assert sample.bytes == 4000 and sample.characters == list("0123456789")
    assert 50 <= len(numbers) <= 100 and numbers[0] == 0 and len(set(np.diff(numbers).tolist())) == 1
    assert Sample(["x" * 50], limit=9).texts == ["x" * 50]
    assert Sample(["\u00e9", "a"]).bytes == 3


def test_auto_follows_kind_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_module, "CHAR_BYTES", 1000)
    monkeypatch.setattr(bpe_module, "SMALL_VOCAB", 300)
    small, large = ["some text "] * 50, ["some more text "] * 100
    assert isinstance(make_tokenizer("auto", None, small), CharTokenizer)
    assert isinstance(make_tokenizer("auto", None, large, lines=True), CharTokenizer)
    found = make_tokenizer("auto", None, large)
    assert isinstance(found, HubTokenizer) and found.vocab_size <= 300
    assert isinstance(make_tokenizer("auto", 260, small), HubTokenizer)  # who names a size means BPE
    assert isinstance(make_tokenizer("char", None, large), CharTokenizer)
    monkeypatch.setattr(bpe_module, "LARGE_BYTES", 1400)
    monkeypatch.setattr(bpe_module, "LARGE_VOCAB", 258)
    assert make_tokenizer("bpe", None, large).vocab_size == 258


def test_a_path_is_loaded_and_no_text_is_read(tmp_path: Path) -> None:
    CharTokenizer(["x"]).save(tmp_path)

    def never() -> object:
        raise AssertionError("read")
        yield ""

    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert make_tokenizer(str(path), None, never()).decode([1]) == "x"  # type: ignore[arg-type]
    for kind, size, message in (
        (str(tmp_path), 300, "vocab_size: tokenizer .* has its own"),
        ("char", 300, "vocab_size: characters have as many ids"),
        ("bpe", 256, "vocab_size: expected at least 257 for bpe, got 256"),
        ("bbe", None, "tokenizer: expected auto, char, bpe, or a path, got 'bbe'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_tokenizer(kind, size, never())  # type: ignore[arg-type]


def test_training_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (0, 256, 2**21, 300.0):
        with pytest.raises(ConfigError, match="vocab_size: expected 257 to"):
            train_bpe(["a"], size)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="needs text"):
        train_bpe(["", ""], 300)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match="pip install tokenizers"):
        train_bpe(["a"], 300)

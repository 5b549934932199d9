"""Tokenizers: round trips, role integrity, files, streaming, and every way text or a file can be wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt.errors import MicrogptError, MissingExtraError, StorageError, TokenizerError
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.char import END_OF_TEXT, CharTokenizer
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.ids import IdsTokenizer
from microgpt.tokenizers.stream import StreamDecoder
from tests.tokenizer_tools import FOLDER

library = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")

any_text = st.text(st.characters(exclude_categories=["Cs"]))  # every plane, controls and NUL included
TRICKY = (
    "\ufeffé e\u0301 👨\u200d👩\u200d👧 \u202eabc\u202c \0\x1b\r\n\t\u2028 \U0010ffff\ud7ff\ue000ﷺ" + "\u0301" * 1000
)


# --- characters ---------------------------------------------------------------------------------------------


def test_vocabulary_is_sorted_code_points_after_one_control_token() -> None:
    tokenizer = CharTokenizer.train(["cab", "b\n", "\U0001f600é"])
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (7, 0, 0)
    assert tokenizer.encode("\nabcé\U0001f600") == [1, 2, 3, 4, 5, 6]
    assert tokenizer.encode("ab", add_bos=True) == [0, 2, 3]
    assert tokenizer.encode("ab", add_bos=True, add_eos=True) == [0, 2, 3, 0]
    assert tokenizer.encode("") == []
    assert tokenizer.decode([0, 2, 3, 0]) == "ab"
    assert tokenizer.decode([0, 2, 0], skip_special_tokens=False) == END_OF_TEXT + "a" + END_OF_TEXT
    assert tokenizer.decode(np.array([2, 3], np.int32)) == "ab"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("char")


@settings(deadline=None, max_examples=150)
@given(st.lists(any_text, min_size=1, max_size=5).filter(any), st.booleans(), st.booleans())
def test_round_trip_on_all_planes(folder: Path, texts: list[str], bos: bool, eos: bool) -> None:
    tokenizer = CharTokenizer.train(texts)
    tokenizer.save(folder)
    again = Tokenizer.load(folder)
    assert isinstance(again, CharTokenizer)
    reference = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    many = tokenizer.encode_many(texts, bos, eos)
    for text, row in zip(texts, many, strict=True):
        ids = tokenizer.encode(text, bos, eos)
        assert row.dtype == np.int32 and row.tolist() == ids == again.encode(text, bos, eos)
        assert tokenizer.decode(ids) == again.decode(ids) == text
        bare = tokenizer.encode(text)
        if END_OF_TEXT not in text:  # which the library reads as the control token
            assert reference.encode(text).ids == bare
        assert reference.decode(ids) == text
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, ids), stream.finish()]) == text


def test_hard_characters_round_trip() -> None:
    tokenizer = CharTokenizer.train([TRICKY])
    assert tokenizer.decode(tokenizer.encode(TRICKY)) == TRICKY
    assert tokenizer.encode_many([TRICKY])[0].tolist() == tokenizer.encode(TRICKY)


def test_user_text_never_becomes_the_control_token() -> None:
    tokenizer = CharTokenizer.train([END_OF_TEXT])
    for text in (END_OF_TEXT, f"{END_OF_TEXT}{END_OF_TEXT}", "<|endof" + END_OF_TEXT + "text|>"):
        ids = tokenizer.encode(text)
        assert 0 not in ids and len(ids) == len(text) and tokenizer.decode(ids) == text
        assert 0 not in tokenizer.encode_many([text])[0]
    with pytest.raises(TokenizerError, match="outside the vocabulary: '<' at position 1"):
        CharTokenizer.train(["abendoftext"]).encode("a" + END_OF_TEXT)


def test_uncovered_characters_are_named_with_their_positions() -> None:
    tokenizer = CharTokenizer.train(["abc"])
    with pytest.raises(TokenizerError, match=r"the vocabulary: 'é' at position 2, '\\n' at position 4$"):
        tokenizer.encode("abéc\né")
    with pytest.raises(TokenizerError, match=r"'5' at position 4 and 3 more$"):
        tokenizer.encode("12345678")
    with pytest.raises(TokenizerError, match=r"^text 2: characters .* vocabulary: 'z' at position 1$"):
        tokenizer.encode_many(["ab", "", "az", "z"])
    with pytest.raises(TokenizerError, match=r"'\\ud800' at position 1"):
        tokenizer.encode_many(["a\ud800"])
    with pytest.raises(TokenizerError, match=r"'\\U0010ffff' at position 0"):
        tokenizer.encode_many(["\U0010ffff"])


@pytest.mark.parametrize("name", ["char", "bpe.model", "unigram.model", "cl100k_base.tiktoken", "bpe", "ids"])
def test_half_a_surrogate_pair_is_told(name: str, bpe: Tokenizer) -> None:
    if "." in name:
        made = Tokenizer.load(FOLDER / name)
    else:
        made = {"char": CharTokenizer("ab"), "bpe": bpe, "ids": IdsTokenizer(9)}[name]
    for text, place in (("a\ud800b", "character 1, U+D800"), ("\udfff", "character 0, U+DFFF")):
        message = re.escape(f"{place}, is half of a surrogate pair, which is no text: read the input as UTF-8")
        with pytest.raises(TokenizerError, match="^" + message):
            made.encode(text)
        if name != "char":
            with pytest.raises(TokenizerError, match=f"text 1: {message}"):
                made.encode_many(["", text])
    with pytest.raises(TokenizerError, match="expected a text, got bytes"):
        made.encode(b"a")  # type: ignore[arg-type]


def test_vocabulary_that_cannot_be() -> None:
    with pytest.raises(TokenizerError, match="at least one character"):
        CharTokenizer.train([""])
    with pytest.raises(TokenizerError, match=r"UTF-8 can write, got '\\udc00'"):
        CharTokenizer.train(["a\udc00"])
    with pytest.raises(TokenizerError, match="name a character twice"):
        CharTokenizer(["a", "a"])
    with pytest.raises(TokenizerError, match=r"single characters .* got 'ab'"):
        CharTokenizer(["ab"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 4], "id 4 at position 1: expected 0 to 3"),
        ([-1], "id -1 at position 0: expected 0 to 3"),
        ([2**70], "at position 0: expected 0 to 3"),
        ([1.0], r"id at position 0: expected an int, got 1\.0"),
        (["a"], "id at position 0: expected an int, got 'a'"),
    ],
)
def test_ids_outside_the_vocabulary(ids: list[int], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        CharTokenizer.train(["abc"]).decode(ids)


def test_encode_many_of_nothing() -> None:
    tokenizer = CharTokenizer.train(["a"])
    assert tokenizer.encode_many([]) == []
    assert [row.tolist() for row in tokenizer.encode_many(["", ""], True, True)] == [[0, 0], [0, 0]]


# --- files --------------------------------------------------------------------------------------------------


def test_saved_files_are_the_same_each_time(tmp_path: Path) -> None:
    for name, texts in (("a", ["hello", "world"]), ("b", ["world", "hello"])):
        tokenizer = CharTokenizer.train(texts)
        tokenizer.max_length = 16
        tokenizer.save(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    again = Tokenizer.load(tmp_path / "a")
    assert again.max_length == 16
    again.save(tmp_path / "c")
    assert (tmp_path / "c/tokenizer.json").read_bytes() == (tmp_path / "a/tokenizer.json").read_bytes()


def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    text = "ab c\n. 'd <é😀"
    ours = CharTokenizer.train([text])
    ours.max_length = 32
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(text)["input_ids"]
    assert ids == ours.encode(text)
    assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (0, 0, 32)
    assert len(theirs) == ours.vocab_size
    assert theirs.decode([0, *ids, 0], skip_special_tokens=True) == text


def broken(change: object) -> str:
    """A saved character tokenizer.json after `change(content)`."""
    content = json.loads(CharTokenizer.train(["ab"])._files()["tokenizer.json"])
    change(content)  # type: ignore[operator]
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"tokenizer\.json: broken or truncated: not JSON"),
        ("[1]", r"tokenizer\.json: expected a JSON object, got list"),
        ("[" * 100_000, r"broken or truncated"),
        ("{}", r"tokenizer\.json: broken"),
        (broken(lambda c: c["model"]["vocab"].update(a=2)), "each id below 3 exactly once"),
        (broken(lambda c: c["model"]["vocab"].update(a=-1)), "each id below 3 exactly once"),
        (broken(lambda c: c["model"]["vocab"].update(c=9)), "each id below 4 exactly once"),
        (broken(lambda c: c["model"]["vocab"].update(c="x")), "object of token to id"),
        (broken(lambda c: c["model"]["vocab"].update(c=True)), "object of token to id"),
        (broken(lambda c: c["model"].update(vocab=[])), "object of token to id"),
        (broken(lambda c: c["model"]["vocab"].update(cd=3)), "single characters .* got 'cd'"),
        (broken(lambda c: c["model"]["vocab"].update({"\ud800": 3})), "single characters"),
        (broken(lambda c: c.update(added_tokens=[])), "only added token"),
        (broken(lambda c: c["model"].update(vocab={"a": 0})), "as id 0"),
        (broken(lambda c: c["model"].update(type="Nope")), "broken"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


def test_truncation_anywhere_is_a_typed_error(tmp_path: Path) -> None:
    data = CharTokenizer.train(["abé"])._files()["tokenizer.json"].rstrip().encode()
    for length in range(len(data)):
        (tmp_path / "tokenizer.json").write_bytes(data[:length])
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path)


def test_flipped_bytes_load_or_raise_a_typed_error(tmp_path: Path) -> None:
    data = CharTokenizer.train(["abé"])._files()["tokenizer.json"].encode()
    random = np.random.default_rng(0)
    loaded = 0
    for _ in range(400):
        changed = bytearray(data)
        changed[random.integers(len(data))] ^= 1 << random.integers(8)
        (tmp_path / "tokenizer.json").write_bytes(changed)
        try:
            tokenizer = Tokenizer.load(tmp_path)
        except MicrogptError:
            continue
        loaded += 1
        assert tokenizer.decode(range(tokenizer.vocab_size), skip_special_tokens=False)
    assert loaded < 200


def test_missing_files_and_config(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such file; expected a model folder"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").rmdir()
    CharTokenizer.train(["ab"]).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "a"}')
    with pytest.raises(TokenizerError, match=r"bos_token: expected <\|endoftext\|>, got 'a'"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_')
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: broken or truncated"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path).eos_id == 0
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match="cannot read"):
        Tokenizer.load(tmp_path)


def test_save_does_not_follow_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tokenizer.json").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match=r"writing .*tokenizer\.json failed"):
        CharTokenizer.train(["a"]).save(tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "kept"


# --- other vocabularies -------------------------------------------------------------------------------------

CORPUS = ["the cat sat on the mat, the dog did not", "déjà vu 😀😀 日本語 the the"]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE as GPT-2's, trained on two lines."""
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=[END_OF_TEXT, "<|user|>"],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    folder = tmp_path_factory.mktemp("bpe")
    made.enable_truncation(3)  # which must not cut a user's text
    made.save(str(folder / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": {"content": END_OF_TEXT}, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


@settings(deadline=None, max_examples=150)
@given(text=any_text)
def test_bpe_round_trip_and_stream(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text, add_eos=True)
    assert bpe.decode(ids) == text
    assert bpe.encode_many([text], add_eos=True)[0].tolist() == ids
    stream = StreamDecoder(bpe)
    pieces = [stream.push(token) for token in ids]
    assert "".join([*pieces, stream.finish()]) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_bpe_is_the_library_s(bpe: Tokenizer) -> None:
    assert isinstance(bpe, HubTokenizer)
    assert (bpe.vocab_size, bpe.bos_id, bpe.eos_id, bpe.max_length) == (290, None, 0, 64)
    assert bpe.special_ids == {0, 1}
    with pytest.raises(TokenizerError, match="add_bos: this tokenizer has no bos token"):
        bpe.encode("a", add_bos=True)
    with pytest.raises(TokenizerError, match="id 290 at position 0: expected 0 to 289"):
        bpe.decode([290])
    with pytest.raises(TokenizerError, match="half of a surrogate pair"):
        bpe.encode("a\ud800")
    with pytest.raises(TokenizerError, match=r"text 1: character ., U\+D800, is half"):
        bpe.encode_many(["a", "\ud800"])


@pytest.mark.parametrize("text", [END_OF_TEXT, "a<|user|>b", "<|user|><|endoftext|>", " <|user|>\n"])
def test_bpe_keeps_control_tokens_out_of_text(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert not bpe.special_ids & set(ids)
    assert bpe.decode(ids) == text


def test_stream_holds_back_until_a_character_is_whole(bpe: Tokenizer) -> None:
    ids = bpe.encode("\u03bb\U0001f34e")  # not in the training text: an id for each byte, or two
    stream = StreamDecoder(bpe)
    pieces = [stream.push(token) for token in ids]
    assert len(ids) > 3 and [piece for piece in pieces if piece] == ["\u03bb", "\U0001f34e"]
    assert pieces[0] == pieces[-2] == ""
    cut = bpe.encode("a\u65e6")[:-1]
    assert "".join(map(stream.push, cut)) == "a"
    assert stream.finish() == "\ufffd" and stream.finish() == ""


def test_stream_of_bytes_that_are_no_text_is_bounded(bpe: Tokenizer) -> None:
    lone = bpe.encode("\u65e6")[-1]  # a continuation byte
    stream = StreamDecoder(bpe)
    out = "".join(stream.push(lone) for _ in range(1000)) + stream.finish()
    assert out == "\ufffd" * 1000 == bpe.decode([lone] * 1000)
    assert len(stream._ids) < 200


def test_stream_with_control_tokens(bpe: Tokenizer) -> None:
    ids = [0, *bpe.encode("the cat"), 1, *bpe.encode(" sat"), 0]
    for skip in (True, False):
        stream = StreamDecoder(bpe, skip_special_tokens=skip)
        assert "".join([*map(stream.push, ids), stream.finish()]) == bpe.decode(ids, skip_special_tokens=skip)
    with pytest.raises(TokenizerError, match="id 999 at position"):
        stream.push(999)


def test_hub_files_that_do_not_fit_together(bpe: Tokenizer) -> None:
    text = bpe._files()["tokenizer.json"]
    with pytest.raises(TokenizerError, match="eos_token '</s>' is not in the vocabulary"):
        HubTokenizer(text, {"eos_token": "</s>"})
    content = json.loads(text)
    content["model"]["vocab"]["t"] = 2**24
    with pytest.raises(TokenizerError, match=r"expected 1 to 16777216 ids|broken"):
        HubTokenizer(json.dumps(content), {})
    content = json.loads(text)
    content["model"]["merges"].append(["no", "such"])
    with pytest.raises(TokenizerError, match="broken"):
        HubTokenizer(json.dumps(content), {})


def test_a_hole_in_the_vocabulary_is_outside_it() -> None:
    made = library.Tokenizer(library.models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    tokenizer = HubTokenizer(made.to_str(), {})
    assert tokenizer.vocab_size == 6 and tokenizer.decode([5]) == "b"
    with pytest.raises(TokenizerError, match="id 3 at position 0"):
        tokenizer.decode([3])


def test_without_the_library(bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bpe.save(tmp_path / "bpe")
    CharTokenizer.train(["ab"]).save(tmp_path / "char")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert Tokenizer.load(tmp_path / "char").encode("ab") == [1, 2]
    with pytest.raises(MissingExtraError, match=r"pip install tokenizers"):
        Tokenizer.load(tmp_path / "bpe")


def test_packages_import_nothing_heavy() -> None:
    code = (
        "import sys, microgpt.data, microgpt.tokenizers, microgpt.io\n"
        "print(sorted({'numpy', 'tokenizers', 'safetensors', 'ml_dtypes'} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

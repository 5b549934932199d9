"""Vocabularies from other files: the ids of the libraries that own the forms (golden), and every way to be broken."""

from __future__ import annotations

import base64
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt.errors import MicrogptError, TokenizerError
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.bytebpe import CHARACTERS, from_merges, from_ranks, written
from microgpt.tokenizers.charsmap import CharsMap
from microgpt.tokenizers.files import from_llama2c
from microgpt.tokenizers.gguf import from_metadata
from microgpt.tokenizers.merges import merges_of
from microgpt.tokenizers.sentencepiece import from_bytes, read_pieces
from microgpt.tokenizers.stream import StreamDecoder
from tests.tokenizer_fuzz import make, sums
from tests.tokenizer_tools import FOLDER, damaged, gguf_llama, llama2c, survives

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
TEXTS = make(1, 2000)
GOLDEN = dict(np.load(FOLDER / "sums.npz"))
FEW = ["", "Hello  wörld\n", "<user> a<b>b </s>", "日本語 \U0001f600 ﬁ①", "a" * 100]
MUTANTS = 2000


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.load(FOLDER / "bpe.model")


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return Tokenizer.load(FOLDER / "unigram.model")


@pytest.fixture(scope="module")
def ranks() -> Tokenizer:
    return Tokenizer.load(FOLDER / "cl100k_base.tiktoken")


# --- ids ----------------------------------------------------------------------------------------------------


def test_sentencepiece_bpe_ids(bpe: Tokenizer) -> None:
    ids = bpe.encode_many(TEXTS)
    assert np.array_equal(sums(ids), GOLDEN["bpe"])
    for text, row in zip(TEXTS[:300], ids, strict=False):
        assert bpe.encode(text) == row.tolist()
        # A piece may spell what is text: SentencePiece itself reads "<user>" back as that.
        assert bpe.decode(row) == text.replace("\u2581", " ")


def test_sentencepiece_unigram_ids(unigram: Tokenizer) -> None:
    ids = unigram.encode_many(TEXTS)
    assert np.array_equal(sums(map(sorted, ids)), GOLDEN["unigram_sorted"])
    same = int((sums(ids) == GOLDEN["unigram"]).sum())
    assert same == 1959  # the others are cut into the same pieces in another order, at the same score


def test_tiktoken_ids(ranks: Tokenizer) -> None:
    ids = ranks.encode_many(TEXTS)
    assert np.array_equal(sums(ids), GOLDEN["tiktoken"])
    assert all(ranks.decode(row) == text for text, row in zip(TEXTS, ids, strict=True))
    assert ranks.special_ids == {100257, 100258, 100259, 100260, 100276}
    assert (ranks.bos_id, ranks.eos_id, ranks.adds_bos) == (100257, 100257, False)


@pytest.mark.parametrize("name", ["bpe.model", "unigram.model"])
def test_gguf_vocabulary_is_the_same_tokenizer(name: str) -> None:
    theirs, ours = Tokenizer.load(FOLDER / name), from_metadata(gguf_llama(name))
    for a, b in zip(theirs.encode_many(TEXTS), ours.encode_many(TEXTS), strict=True):
        assert a.tolist() == b.tolist()
    assert (ours.bos_id, ours.eos_id, ours.stop_ids) == (1, 2, {2})


def test_llama2c_vocabulary(bpe: Tokenizer) -> None:
    # Without the user-defined and control pieces, whose ids (3 to 5) the others move up into.
    made = from_llama2c(llama2c(), {})
    plain = [text for text in TEXTS if not any(each in text for each in ("<user>", "a<b>b"))]
    assert len(plain) > 1500
    for text in plain:
        assert [n + 3 if n > 2 else n for n in made.encode(text)] == bpe.encode(text)
    assert made.encode("a", add_bos=True)[0] == 1 and made.adds_bos


def test_gpt2_files_and_gguf_gpt2(ranks: Tokenizer, tmp_path: Path) -> None:
    model = json.loads(ranks._files()["tokenizer.json"])["model"]
    vocab = {token: n for token, n in model["vocab"].items() if n < 600}
    merges = "#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in model["merges"]) + "\n"
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(merges)
    made = Tokenizer.load(tmp_path)
    tokens = sorted(vocab, key=vocab.__getitem__)
    gguf = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 600, "tokenizer.ggml.merges": merges.splitlines()[1:],
    }  # fmt: skip
    other = from_metadata(gguf)
    for text in TEXTS[:500]:
        assert made.encode(text) == other.encode(text) and made.decode(made.encode(text)) == text
    # The pattern cuts words: llama-bpe keeps three digits together, gpt-2 any number of them.
    assert made.encode("'S") == other.encode("'S") != []
    with pytest.raises(TokenizerError, match=r"no tokenizer\.ggml\.pre 'qwem2' \(did you mean 'qwen2'\?\); known: "):
        from_metadata({**gguf, "tokenizer.ggml.pre": "qwem2"})


def test_gguf_word_piece() -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581un", "aff", "able", "\u2581!", "\u2581the"]
    made = from_metadata(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * 4 + [1] * 5,
            "tokenizer.ggml.cls_token_id": 2,
            "tokenizer.ggml.seperator_token_id": 3,
            "tokenizer.ggml.unknown_token_id": 1,
        }
    )
    assert made.encode("The unaffable ! [SEP]", add_bos=True, add_eos=True) == [2, 8, 4, 5, 6, 7, 1, 1, 1, 3]
    assert made.decode([8, 4, 5, 6, 7]) == "the unaffable!"
    assert made.frame == ([2], [3])


def test_gguf_word_piece_of_another_case() -> None:
    """Newer files say whether text is lowered and accents are taken off."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581the", "\u2581The", "\u2581th\u00e9"]
    metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 4 + [1] * 3,
    }
    text = "the The th\u00e9"
    assert from_metadata(metadata).encode(text) == [4, 4, 4]
    lower = {**metadata, "tokenizer.ggml.normalizer.lowercase": False}
    assert from_metadata(lower).encode(text) == [4, 5, 6]
    assert from_metadata({**lower, "tokenizer.ggml.normalizer.strip_accents": True}).encode(text) == [4, 5, 4]


def test_gguf_puts_tokens_around_a_text() -> None:
    """A byte-level vocabulary of an encoder (ModernBERT): [CLS] and [SEP] by their own keys."""
    letters = list(CHARACTERS.values())
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "modern-bert",
        "tokenizer.ggml.tokens": ["[CLS]", "[SEP]", *letters, "ab"],
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(letters) + 1),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.cls_token_id": 0,
        "tokenizer.ggml.seperator_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }
    made = from_metadata(metadata)
    assert made.frame == ([0], [1])
    assert made.encode("abb") == [len(letters) + 2, letters.index("b") + 2]
    assert from_metadata({**metadata, "tokenizer.ggml.add_eos_token": False}).frame == ([0], [])


def test_saved_folder_is_the_same_tokenizer(
    bpe: Tokenizer, unigram: Tokenizer, ranks: Tokenizer, tmp_path: Path
) -> None:
    for number, made in enumerate((bpe, unigram, ranks)):
        made.save(tmp_path / str(number))
        again = Tokenizer.load(tmp_path / str(number))
        assert (again.fingerprint, again.adds_bos, again.bos_id) == (made.fingerprint, made.adds_bos, made.bos_id)
        for a, b in zip(again.encode_many(TEXTS[:500]), made.encode_many(TEXTS[:500]), strict=True):
            assert a.tolist() == b.tolist()


def test_control_pieces_are_never_text(bpe: Tokenizer, unigram: Tokenizer, ranks: Tokenizer) -> None:
    for made in (bpe, unigram, ranks):
        unknown = {0} if made is unigram else set()
        for token in made._controls:
            for text in (token, f"a{token}b", f" {token} {token}", token * 3):
                assert not (set(made.encode(text)) & made.special_ids) - unknown
    assert 4 in bpe.encode("<user>")  # user-defined: text may spell it
    byte = bpe.encode("\x01")[-1]
    for text in ("<0x01>", "a<b>b<0x01>", "<user><0x01><user>"):  # the name of a byte's piece is text
        assert byte not in bpe.encode(text) and bpe.decode(bpe.encode(text)) == text


def test_pieces_of_a_stream(bpe: Tokenizer, unigram: Tokenizer) -> None:
    for text in TEXTS[:200]:
        for made in (bpe, unigram):
            ids = made.encode(text)
            stream = StreamDecoder(made)
            assert "".join([*map(stream.push, ids), stream.finish()]) == made.decode(ids)
    # Going on from a prompt keeps the space that a text of its own would lose.
    ids = bpe.encode("human beings are")
    stream = StreamDecoder(bpe, context=ids[:1])
    rest = "".join([*map(stream.push, ids[1:]), stream.finish()])
    assert bpe.decode(ids[:1]) + rest == "human beings are"


def test_merges_are_those_of_the_ranks() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    assert merges_of(dict(ranks)) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]  # (ab, c) never meets: bc comes first
    spaces = {"_" * n: 9.0 for n in range(1, 5)}  # equal ranks: the leftmost pair, so a token grows to the right
    assert merges_of(spaces) == [("___", "_"), ("__", "_"), ("_", "_")]


def test_generation_config_ends_replies(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3, 99999999, "x"]}')
    assert Tokenizer.load(tmp_path).stop_ids == {2, 3}


def test_adds_bos_follows_the_files(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for stated, adds in ((True, True), (False, False), (None, True)):  # without a word the post-processor says
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": stated}))
        assert Tokenizer.load(tmp_path).adds_bos is adds


# --- broken -------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: bytes, score: float = -1.0, kind: int = 1) -> bytes:
    return field(1, field(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


GOOD = piece(b"<unk>", 0, 2) + piece(b"<s>", 0, 3) + piece(b"</s>", 0, 3) + piece(b"a") + piece(b"b") + piece(b"ab")
BPE = field(2, b"\x18\x02")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected 1 to .* pieces, found 0"),
        (b"\xff" * 11, "a number does not end"),
        (b"\x0b", "no protobuf field has key 11"),
        (b"\x00\x00", "no protobuf field has key 0"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated at byte 10"),
        (b"\x08\x01", "piece 0: broken: expected a message, found a number"),
        (GOOD + piece(b""), "piece 6: expected 1 to"),
        (GOOD + piece(b"a"), "piece 6: 'a' is piece 3 already"),
        (GOOD + piece(b"\xff"), "piece 6: not UTF-8 at byte 0"),
        (GOOD + piece(b"x", float("nan")), "piece 6: expected a finite score, got nan"),
        (GOOD + piece(b"x", kind=9), "piece 6: type 9 is unknown"),
        (GOOD + piece(b"x", kind=2), "both have type unknown"),
        (GOOD + piece(b"<0xZZ>", kind=6), "piece 6: '<0xZZ>' has type byte; expected <0x00> to <0xFF>"),
        (GOOD + piece(b"<0x-1>", kind=6), "has type byte"),
        (GOOD + piece(b"<0x41>", kind=6) + field(2, b"\x98\x02\x01"), "1 of 256; <0x00> is missing"),
        (GOOD + field(2, b"\x18\x03"), "model type 3: expected 1"),
        (GOOD + field(2, b"\xc0\x01\x01"), "whitespace as a suffix"),
        (GOOD + field(2, b"\xc8\x02\x63"), "bos id 99: expected 0 to 5"),
        (GOOD + BPE + piece(b"x" * 600), "too long for a BPE vocabulary"),
        (GOOD + piece(b"x" * 70000), "piece 6: expected 1 to 65536"),
        (GOOD + field(3, field(2, b"\x10\0\0\0")), "broken normalization: a trie of 16 bytes"),
        (GOOD + field(3, field(2, b"\x04\0\0\0\0\0\0\0")), None),
    ],
)  # fmt: skip
def test_broken_sentencepiece(data: bytes, message: str | None) -> None:
    if message is None:
        assert from_bytes(data).encode("ab") != []
        return
    with pytest.raises(TokenizerError, match=rf"^tokenizer\.model: .*{message}|^tokenizer\.model.*{message}"):
        from_bytes(data)


def test_sentencepiece_cut_anywhere() -> None:
    data = GOOD + BPE
    assert from_bytes(data).encode("ab") == [0, 5]  # no piece for the space before
    for length in range(1, len(data)):
        survives(lambda n=length: from_bytes(data[:n]), FEW)


@pytest.mark.parametrize("name", ["bpe.model", "unigram.model"])
def test_damaged_sentencepiece(name: str) -> None:
    data, draw = (FOLDER / name).read_bytes(), random.Random(3)
    head = data[:3000] + data[-1500:] if name == "unigram.model" else GOOD + BPE + data[-300:]
    made = [survives(lambda: from_bytes(damaged(head, draw)), FEW) for _ in range(MUTANTS)]
    assert 0 < sum(made) < MUTANTS


def test_damaged_charsmap() -> None:
    charsmap, draw = read_pieces((FOLDER / "unigram.model").read_bytes()).charsmap, random.Random(4)
    whole = CharsMap(charsmap, "x")
    assert whole("ﬁ①e\u0301ａｂa\tx\r\n") == "fi1éaba x\n" and whole("") == "" and whole("plain") == "plain"
    for _ in range(MUTANTS):
        try:
            made = CharsMap(damaged(charsmap, draw), "x")
        except TokenizerError as error:
            assert str(error).startswith("x: broken normalization")
            continue
        for text in FEW:
            assert isinstance(made(text), str)


BYTES = b"".join(base64.b64encode(bytes([value])) + b" %d\n" % value for value in range(256))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a token for each byte; 0x00 and 255 more are missing"),
        (BYTES[7:], "a token for each byte; 0x00 and 0 more are missing"),
        (BYTES + b"####\n", "line 257: expected a token in base64"),
        (BYTES + b"YWI= -1", "line 257: expected a token in base64 and its id; got b'YWI= -1'"),
        (BYTES + b"YWI= 99999999", "an id below 4194304"),
        (BYTES + b"YWI= 99999999999999999999", "expected a token in base64 and its id"),
        (BYTES + b"YWI 256", "line 257: .*got b'YWI 256'"),
        (BYTES + b"YQ== 256", "line 257: token b'a' or id 256 comes twice"),
        (BYTES + b"YWI= 255", "comes twice"),
        (BYTES + base64.b64encode(b"a" * 5000) + b" 256", "a token of 1 to 4096 bytes"),
        (BYTES + b"YWI= 100257", r"id 100257 is <\|endoftext\|> in cl100k_base, but b'ab' here"),
    ],
)
def test_broken_ranks(data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=rf"^cl100k_base\.tiktoken: .*{message}"):
        from_ranks(data, "cl100k_base")


def test_unknown_encoding() -> None:
    with pytest.raises(TokenizerError, match=r"no encoding 'cl100k' \(did you mean 'cl100k_base'\?\); known: gpt2"):
        from_ranks(BYTES, "cl100k")


def test_damaged_ranks() -> None:
    data, draw = BYTES + b"YWI= 256\nYWJj 257\n", random.Random(5)
    made = [survives(lambda: from_ranks(damaged(data, draw), "r50k_base"), FEW) for _ in range(MUTANTS)]
    assert sum(made) < MUTANTS


def gpt2_files() -> tuple[dict[str, Any], str]:
    vocab = {written(bytes([value])): value for value in range(256)}
    return {**vocab, "ab": 256, "abc": 257, "<|endoftext|>": 258}, "#version: 0.2\na b\nab c\n"


@pytest.mark.parametrize(
    ("change", "merges", "message"),
    [
        ({"x1": -1}, None, "'x1': expected an id of 0 to"),
        ({"x1": 1.5}, None, "expected an id"),
        ({"x1": True}, None, "expected an id"),
        ({"x1": 2**40}, None, "expected an id"),
        ({"x1": 97}, None, "id 97: 'x1' is empty or shares it with"),
        ({"": 300}, None, "is empty or shares"),
        ({}, "a b c\n", "merges, line 1: expected two tokens, got 'a b c'"),
        ({}, "a \n", "expected two tokens"),
        ({}, "a q7\n", "broken"),
        ({}, "abc abc\n", "broken"),
    ],
)
def test_broken_gpt2_files(change: dict[str, Any], merges: str | None, message: str) -> None:
    vocab, good = gpt2_files()
    with pytest.raises(TokenizerError, match=rf"^vocab\.json: .*{message}"):
        from_merges({**vocab, **change}, good if merges is None else merges)


def test_damaged_gpt2_files(tmp_path: Path) -> None:
    vocab, merges = gpt2_files()
    assert from_merges(vocab, merges).encode("abcab") == [257, 256]
    text, draw = json.dumps(vocab, ensure_ascii=False).encode(), random.Random(6)
    for number in range(MUTANTS):
        a, b = (damaged(text, draw), merges.encode()) if number % 2 else (text, damaged(merges.encode(), draw))
        (tmp_path / "vocab.json").write_bytes(a)
        (tmp_path / "merges.txt").write_bytes(b)
        survives(lambda: Tokenizer.load(tmp_path), FEW)


VALUES: list[Any] = [
    None,
    -1,
    0,
    1,
    2**31,
    2**63,
    1.5,
    float("nan"),
    "",
    "x",
    True,
    [],
    [1],
    ["a"],
    [None],
    {},
    b"x",
    [-1] * 9,
]


@pytest.mark.parametrize("model", ["llama", "t5", "gpt2", "bert"])
def test_damaged_gguf_metadata(model: str) -> None:
    draw = random.Random(7)
    vocab, merges = gpt2_files()
    good: dict[str, Any] = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "\u2581ab", "[UNK]"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.precompiled_charsmap": None,
        "tokenizer.chat_template": "x",
        "tokenizer.huggingface.json": None,
    }
    if model == "llama":
        good["tokenizer.ggml.tokens"] += [f"<0x{value:02X}>" for value in range(256)]
        good["tokenizer.ggml.scores"] += [0.0] * 256
        good["tokenizer.ggml.token_type"] += [6] * 256
    if model == "gpt2":
        good |= {
            "tokenizer.ggml.tokens": list(vocab), "tokenizer.ggml.merges": merges.splitlines()[1:],
            "tokenizer.ggml.token_type": [1] * 258 + [3], "tokenizer.ggml.pre": "default",
        }  # fmt: skip
    if model == "bert":
        good["tokenizer.ggml.tokens"][3] = "\u2581c"
    assert from_metadata(good).encode("ab")
    made = 0
    for _ in range(MUTANTS // 4):
        values = {key: list(value) if isinstance(value, list) else value for key, value in good.items()}
        for _ in range(draw.choice((1, 2))):
            key = draw.choice(list(values))
            value = values[key]
            if isinstance(value, list) and draw.random() < 0.7 and value:
                if draw.random() < 0.3:
                    del value[draw.randrange(len(value)) :]
                else:
                    value[draw.randrange(len(value))] = draw.choice([*VALUES, draw.choice(value)])
            else:
                values[key] = draw.choice(VALUES)
        made += survives(lambda given=values: from_metadata(given), FEW)
    assert 0 < made < MUTANTS // 4


def test_damaged_llama2c() -> None:
    data, draw = llama2c(), random.Random(8)
    with pytest.raises(TokenizerError, match=r"truncated at byte|remain"):
        from_llama2c(data[:-1], {})
    with pytest.raises(TokenizerError, match="expected at least 259 tokens, found 0"):
        from_llama2c(b"", {})
    short = data[: data.index(b"<0xFF>") + 6]
    for _ in range(MUTANTS):
        survives(lambda: from_llama2c(damaged(short, draw), {}), FEW)


def test_word_piece_file(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n##s\n")
    made = Tokenizer.load(tmp_path)
    assert made.encode("Hellos x", add_bos=True, add_eos=True) == [2, 4, 5, 1, 3]
    (tmp_path / "vocab.txt").write_text("a\na\n")
    with pytest.raises(TokenizerError, match="one token a line"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(TokenizerError, match=r"needs \[UNK\]"):
        Tokenizer.load(tmp_path)


def test_special_token_that_two_entries_claim_is_told(tmp_path: Path) -> None:
    content = json.loads(Tokenizer.load(FOLDER / "unigram.model")._files()["tokenizer.json"])
    content["added_tokens"].append({**content["added_tokens"][1], "id": 7})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    survives(lambda: Tokenizer.load(tmp_path), FEW)
    assert issubclass(TokenizerError, MicrogptError)


# --- long runs ------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_many_texts(bpe: Tokenizer, unigram: Tokenizer, ranks: Tokenizer) -> None:
    """Beside the libraries that own the forms: tests/parity/test_tokenizers.py with MICROGPT_FUZZ=100000."""
    texts = make(random.randrange(2**32), 100_000)
    other = from_metadata(gguf_llama())
    for text, a, b, c in zip(texts, *(each.encode_many(texts) for each in (bpe, other, ranks)), strict=True):
        assert a.tolist() == b.tolist() and bpe.decode(a) == text.replace("\u2581", " ")
        assert ranks.decode(c) == text
        for made, ids in ((bpe, a), (unigram, unigram.encode(text)), (ranks, c)):
            stream = StreamDecoder(made)
            assert "".join([*map(stream.push, ids.tolist() if made is not unigram else ids), stream.finish()]) == (
                made.decode(ids)
            )

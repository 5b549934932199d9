"""Many texts and many damaged files: 2,000 of each here, 100,000 texts and 20,000 files a kind in `make soak`.

tests/parity/test_tokenizers.py with MICROGPT_FUZZ=100000 has the texts beside sentencepiece and tiktoken, live.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from microgpt.errors import MicrogptError, TemplateError
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.bytebpe import from_ranks, written
from microgpt.tokenizers.files import from_llama2c
from microgpt.tokenizers.gguf import from_metadata
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.sentencepiece import from_bytes
from microgpt.tokenizers.templates import RENDERER
from tests.chat_cases import CALL, TEMPLATES, TOOL, assistant, user
from tests.tokenizer_fuzz import SENTENCES, SPECIALS, make, sums
from tests.tokenizer_tools import FOLDER, damaged, gguf_llama, llama2c, survives

library = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
FEW = ["", "Hello  wörld\n", "<user> a<b>b </s>", "日本語 \U0001f600 ﬁ①", "a" * 100]
texts_count = pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.soak)])
files_count = pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=pytest.mark.soak)])
soak_only = pytest.mark.parametrize("count", [pytest.param(20_000, marks=pytest.mark.soak)])


# --- texts ------------------------------------------------------------------------------------------------------------


def byte_level() -> Any:
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    return made, library.trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
    )


def byte_fallback() -> Any:
    made = library.Tokenizer(library.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = library.normalizers.Sequence(
        [library.normalizers.Prepend("▁"), library.normalizers.Replace(" ", "▁")]
    )
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    return made, library.trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *fallback])


def word_piece() -> Any:
    made = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = library.normalizers.BertNormalizer()
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece()
    return made, library.trainers.WordPieceTrainer(vocab_size=900, special_tokens=["[UNK]", "[CLS]", "[SEP]"])


def unigram() -> Any:
    made = library.Tokenizer(library.models.Unigram())
    made.normalizer = library.normalizers.NFKC()
    made.pre_tokenizer = library.pre_tokenizers.Metaspace()
    made.decoder = library.decoders.Metaspace()
    return made, library.trainers.UnigramTrainer(vocab_size=600, special_tokens=["<unk>", "</s>"], unk_token="<unk>")


def trained(kind: Callable[[], Any]) -> Any:
    made, trainer = kind()
    trainer.show_progress = False
    made.train_from_iterator(SENTENCES * 3, trainer)
    return made


@texts_count
@pytest.mark.parametrize("kind", [byte_level, byte_fallback, word_piece, unigram])
def test_ids_of_a_tokenizer_json_are_the_library_s(kind: Callable[[], Any], count: int) -> None:
    """Of texts that spell no special token: to us those are text, whatever the model's vocabulary has."""
    theirs = trained(kind)
    theirs.encode_special_tokens = True
    ours = HubTokenizer(theirs.to_str(), {}, "t")
    texts = [text for text in make(count, count) if not any(each in text for each in SPECIALS if "<" in each)]
    assert len(texts) > count / 2
    for start in range(0, len(texts), 10_000):
        some = texts[start : start + 10_000]
        expected = theirs.encode_batch_fast(some, add_special_tokens=False)
        for text, a, b in zip(some, expected, ours.encode_many(some), strict=True):
            assert a.ids == b.tolist(), text
            assert ours.decode(b) == theirs.decode(a.ids, skip_special_tokens=True)
    for text in texts[:300]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.soak
@pytest.mark.parametrize("name", ["bpe.model", "unigram.model", "cl100k_base.tiktoken"])
def test_ids_of_a_hundred_thousand_texts(name: str) -> None:
    """A digest of what sentencepiece and tiktoken make of them (sorted within a text for unigram, see
    tests/parity/write_tokenizers.py)."""
    rows = Tokenizer.load(FOLDER / name).encode_many(make(2, 100_000))
    found = sums(map(sorted, rows)) if name == "unigram.model" else sums(rows)
    golden = json.loads((FOLDER / "soak.json").read_text())
    assert hashlib.sha256(found.tobytes()).hexdigest() == golden[name]


# --- damaged files ----------------------------------------------------------------------------------------------------


@files_count
@pytest.mark.parametrize("kind", [byte_level, byte_fallback, word_piece, unigram, "bpe.model", "unigram.model"])
def test_damaged_tokenizer_json(kind: Any, count: int, tmp_path: Path) -> None:
    config = {}
    if isinstance(kind, str):
        content = json.loads(Tokenizer.load(FOLDER / kind)._files()["tokenizer.json"])
        config = {"bos_token": "<s>", "sentencepiece_normalization": True}
    else:
        content = json.loads(trained(kind).to_str())
    count //= 3  # of each kind
    model = content["model"]
    if isinstance(model["vocab"], dict):
        kept = {token: n for token, n in model["vocab"].items() if n < 300}
        model["vocab"] = kept
        if "merges" in model:
            model["merges"] = [[a, b] for a, b in model["merges"] if a in kept and b in kept and a + b in kept]
    else:
        model["vocab"] = model["vocab"][:60]
    data, draw = json.dumps(content, ensure_ascii=False).encode(), random.Random(count)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes(data)
    assert survives(lambda: Tokenizer.load(tmp_path), FEW)
    made = 0
    for _ in range(count):
        (tmp_path / "tokenizer.json").write_bytes(damaged(data, draw))
        made += survives(lambda: Tokenizer.load(tmp_path), FEW)
    assert made < count // 2


@soak_only
@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken", "llama2c", "gpt2", "gguf"])
def test_damaged_vocabularies(kind: str, count: int, tmp_path: Path) -> None:
    """The same with fewer stand in tests/test_tokenizer_files.py."""
    draw = random.Random(seed := random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    model = (FOLDER / "unigram.model").read_bytes()
    model = model[:3000] + model[-1500:]
    ranks = (FOLDER / "cl100k_base.tiktoken").read_bytes()[:4000]
    old, metadata = llama2c()[:6000], gguf_llama()
    vocab = {**{written(bytes([value])): value for value in range(256)}, "ab": 256, "abc": 257, "<|endoftext|>": 258}
    pair = [json.dumps(vocab, ensure_ascii=False).encode(), b"#version: 0.2\na b\nab c\n"]
    for number in range(count):
        if kind == "sentencepiece":
            survives(lambda: from_bytes(damaged(model, draw)), FEW)
        elif kind == "tiktoken":
            survives(lambda: from_ranks(damaged(ranks, draw), "r50k_base"), FEW)
        elif kind == "llama2c":
            survives(lambda: from_llama2c(damaged(old, draw), {}), FEW)
        elif kind == "gpt2":
            files = [damaged(each, draw) if number % 2 == i else each for i, each in enumerate(pair)]
            for name, data in zip(("vocab.json", "merges.txt"), files, strict=True):
                (tmp_path / name).write_bytes(data)
            survives(lambda: Tokenizer.load(tmp_path), FEW)
        else:
            key = draw.choice([name for name, value in metadata.items() if isinstance(value, list)])
            values = {**metadata, key: list(metadata[key])}
            for _ in range(draw.choice((1, 2, 5))):
                values[key][draw.randrange(len(values[key]))] = draw.choice(
                    [None, "", -1, 2**40, 1.5, "<0x-1>", "<0xZZ>", "x" * 1000, float("nan"), 6, b"a"]
                )
            survives(lambda given=values: from_metadata(given), FEW)


@pytest.fixture
def worker() -> Iterator[None]:
    yield
    RENDERER.close()


@files_count
def test_damaged_templates(count: int, worker: None) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    draw = random.Random(count)
    values = {
        "messages": [user("a"), assistant("b", tool_calls=[CALL])],
        "tools": [TOOL], "bos_token": "<s>", "eos_token": "</s>",
    }  # fmt: skip
    rendered = 0
    for number in range(count):
        source = list(TEMPLATES.values())[number % len(TEMPLATES)].encode()
        text = damaged(source, draw).decode("utf-8", "replace")
        try:
            assert isinstance(RENDERER.render(text, values), str)
            rendered += 1
        except MicrogptError as error:
            assert isinstance(error, TemplateError)
    assert 0 < rendered < count

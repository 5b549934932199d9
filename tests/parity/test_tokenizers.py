"""Tokenizers beside sentencepiece and tiktoken, and chat templates beside transformers, live.

MICROGPT_DATA names a folder with public vocabularies (tokenizer/llama2/tokenizer.model, tokenizer/tiktoken/*.tiktoken,
tokenizer/llamacpp/*.gguf.inp and .out), MICROGPT_TEMPLATES one with chat templates (*.jinja); without them the small
ones of tests/golden are used. MICROGPT_FUZZ is the number of texts, 2,000 unless set; 100,000 in a long run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from microgpt.errors import TemplateError
from microgpt.tokenizers import chat
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.bytebpe import ENCODINGS, from_ranks, read_ranks
from microgpt.tokenizers.gguf import from_metadata
from tests.chat_cases import CONVERSATIONS, TEMPLATES
from tests.tokenizer_fuzz import make, sums
from tests.tokenizer_tools import FOLDER

COUNT = int(os.environ.get("MICROGPT_FUZZ", "2000"))
DATA = Path(os.environ["MICROGPT_DATA"]) / "tokenizer" if "MICROGPT_DATA" in os.environ else None
MODELS = [FOLDER / "bpe.model", FOLDER / "unigram.model"]
RANKS = [FOLDER / "cl100k_base.tiktoken"]
if DATA is not None:
    MODELS += [DATA / "llama2/tokenizer.model", DATA / "sentencepiece/test_model.model"]
    RANKS += [DATA / "tiktoken/cl100k_base.tiktoken", DATA / "tiktoken/r50k_base.tiktoken"]
WORDS = {
    "r50k_base": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_sentencepiece(path: Path) -> None:
    import sentencepiece as reference

    theirs = reference.SentencePieceProcessor(model_file=str(path))
    ours = Tokenizer.load(path)
    texts = make(99, COUNT)
    expected, got = theirs.encode(texts), [row.tolist() for row in ours.encode_many(texts)]
    unigram = path.name in ("unigram.model", "test_model.model")
    different = [
        text for text, a, b in zip(texts, expected, got, strict=True) if (sorted(a) != sorted(b) if unigram else a != b)
    ]
    assert different == []
    if unigram:  # among cuts of equal score theirs follows the rounding of float32 sums
        assert np.mean(sums(expected) == sums(got)) > 0.95
        return
    for row, text in zip(expected[:2000], texts, strict=False):
        assert ours.decode(row) == theirs.decode(row), text


@pytest.mark.parametrize("path", RANKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tiktoken(path: Path) -> None:
    import tiktoken as reference

    data = path.read_bytes()
    theirs = reference.Encoding(
        path.stem,
        pat_str=WORDS[path.stem],
        mergeable_ranks=read_ranks(data, ""),
        special_tokens=ENCODINGS[path.stem][1],
    )
    ours, texts = from_ranks(data, path.stem), make(98, COUNT)
    expected = theirs.encode_batch(texts, disallowed_special=())
    got = ours.encode_many(texts)
    assert [text for text, a, b in zip(texts, expected, got, strict=True) if a != b.tolist()] == []
    assert all(ours.decode(row) == text for text, row in zip(texts, expected, strict=True))


@pytest.mark.skipif(DATA is None, reason="MICROGPT_DATA is not set")
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bert-bge", "falcon", "starcoder", "deepseek-coder"])
def test_llama_cpp_s_cases(name: str) -> None:
    import gguf

    assert DATA is not None
    path = DATA / "llamacpp" / f"ggml-vocab-{name}.gguf"
    reader = gguf.GGUFReader(str(path))
    made = from_metadata({key: value.contents() for key, value in reader.fields.items()}, name)
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().split("\n")
    assert len(texts) == 47
    for text, line in zip(texts, lines, strict=False):
        assert made.encode(text) == [int(each) for each in line.split()], text


def templates() -> dict[str, str]:
    found = dict(TEMPLATES)
    folder = os.environ.get("MICROGPT_TEMPLATES")
    for path in sorted(Path(folder).glob("*.jinja")) if folder else ():
        found[path.stem] = path.read_text("utf-8")
    return found


@pytest.mark.parametrize("name", templates())
def test_chat_templates(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = templates()[name]
    for messages, values in CONVERSATIONS:
        copy = json.loads(json.dumps([messages, {"bos_token": "<s>", "eos_token": "</s>", **values}]))
        given = {"tools": None, "documents": None, "add_generation_prompt": False, **values}
        try:
            expected = render_jinja_template([copy[0]], chat_template=template, **copy[1])[0][0]
        except Exception:  # it refuses, or breaks
            with pytest.raises(TemplateError):
                chat.render(template, messages, given, {"bos_token": "<s>", "eos_token": "</s>"})
            continue
        assert chat.render(template, messages, given, {"bos_token": "<s>", "eos_token": "</s>"}) == (expected, {})

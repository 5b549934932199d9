"""The vocabularies of GGUF files that we wrote, used by llama.cpp (package `cyllama`): ids of texts, greedy text."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt.io.gguf import GgufFile
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.bpe import train_bpe
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.gguf import from_metadata
from microgpt.tokenizers.hub import HubTokenizer
from tests.tokenizer_fuzz import SENTENCES, make
from tests.tokenizer_tools import FOLDER

TEXTS = make(415, 500)
DATA = Path(os.environ["MICROGPT_DATA"]) / "tokenizer" if "MICROGPT_DATA" in os.environ else None
SETTINGS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
            "max_position_embeddings": 256}  # fmt: skip
CHILD = """
import json, sys
import numpy as np
from cyllama.llama import llama_cpp as llama
llama.disable_logging(); llama.llama_backend_init(); llama.ggml_backend_load_all()
path, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
texts = json.loads(open(path + ".texts", encoding="utf-8").read())
settings = llama.LlamaModelParams()
settings.n_gpu_layers = 0
class Model(llama.LlamaModel):
    n_vocab = 0  # which the context reads
model = Model(path_model=path, params=settings, verbose=False)
vocab = model.get_vocab()
Model.n_vocab = vocab.n_vocab
settings = llama.LlamaContextParams()
settings.n_ctx = settings.n_batch = 256
settings.n_threads = settings.n_threads_batch = 1
settings.type_k = settings.type_v = 0
context = llama.LlamaContext(model, settings, verbose=False)
answer = {"plain": [vocab.tokenize(text, False, False) for text in texts],
          "framed": [vocab.tokenize(text, True, False) for text in texts[:20]],
          "size": vocab.n_vocab, "template": model.get_default_chat_template(), "ids": []}
ids, place, written = vocab.tokenize(prompt, True, False), 0, b""
for _ in range(count):
    batch = llama.LlamaBatch(n_tokens=256, embd=0, n_seq_max=1)
    for i, token in enumerate(ids):
        batch.add(token, place + i, [0], True)
    context.decode(batch)
    best = np.argmax(np.array(context.get_logits_ith(len(ids) - 1))[:vocab.n_vocab])
    place, ids = place + len(ids), [int(best)]
    if vocab.is_eog(ids[0]):
        break
    answer["ids"] += ids
answer["text"] = "".join(vocab.token_to_piece(token, 0, True) for token in answer["ids"])
open(path + ".json", "w").write(json.dumps(answer))
"""


def neox(folder: Path) -> Tokenizer:
    text = gzip.decompress((folder / "hf/gpt_neox_20B_tokenizer.json.gz").read_bytes()).decode()
    content = json.loads(text)
    content["normalizer"] = None  # NFC, which llama.cpp does not do
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": False}
    return HubTokenizer(json.dumps(content), ends, "neox")


def gemma_like(folder: Path) -> Tokenizer:
    """Llama's vocabulary as Gemma writes its own: every pair that makes a token is a merge, no space before a text, and
    tokens that are taken wherever they stand."""
    files = Tokenizer.load(folder / "llama2/tokenizer.model")._files()
    content = json.loads(files["tokenizer.json"])
    vocab = content["model"]["vocab"]
    made = dict.fromkeys(left + right for left, right in content["model"]["merges"])
    cuts = ((token[:at], token[at:]) for token in made for at in range(1, len(token)))
    content["model"]["merges"] = [pair for pair in cuts if pair[0] in vocab and pair[1] in vocab]
    content["normalizer"] = content["normalizer"]["normalizers"][-1]
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                                "invert": False}  # fmt: skip
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"] += [{"id": vocab[token], "content": token, **flags} for token in ("ation", "\u2581the")]
    return HubTokenizer(json.dumps(content), json.loads(files["tokenizer_config.json"]), "like Gemma's")


def metaspace() -> Tokenizer:
    """The small SentencePiece vocabulary without user-defined tokens, its spaces marked by a pre-tokenizer."""
    files = Tokenizer.load(FOLDER / "bpe.model")._files()
    content = json.loads(files["tokenizer.json"])
    content["normalizer"], content["model"]["ignore_merges"] = None, False
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    return HubTokenizer(json.dumps(content), json.loads(files["tokenizer_config.json"]), "metaspace")


MADE: dict[str, tuple[str, Callable[[], Tokenizer]]] = {
    "trained": ("gpt2 gpt-2", lambda: train_bpe(make(9, 3000), 1500)),
    "characters": ("gpt2 gpt-2", lambda: CharTokenizer.train(TEXTS)),
    "bpe.model": ("llama default", lambda: Tokenizer.load(FOLDER / "bpe.model")),
    "metaspace": ("llama default", metaspace),
    "unigram.model": ("t5 default", lambda: Tokenizer.load(FOLDER / "unigram.model")),
    "cl100k": ("gpt2 llama-bpe", lambda: Tokenizer.load(FOLDER / "cl100k_base.tiktoken")),
}
if DATA is not None:
    MADE |= {
        "gpt2": ("gpt2 gpt-2", lambda: Tokenizer.load(DATA / "gpt2/encoder.json")),
        "r50k_whole": ("gpt2 gpt-2", lambda: Tokenizer.load(DATA / "tiktoken/r50k_base.tiktoken")),
        "cl100k_whole": ("gpt2 llama-bpe", lambda: Tokenizer.load(DATA / "tiktoken/cl100k_base.tiktoken")),
        "neox": ("gpt2 gpt-2", lambda: neox(DATA)),
        "llama2": ("llama default", lambda: Tokenizer.load(DATA / "llama2/tokenizer.model")),
        "llama2c": ("llama default", lambda: Tokenizer.load(DATA / "llama2/tokenizer.bin")),
        "gemma": ("llama default", lambda: gemma_like(DATA)),
        "sentencepiece": ("t5 default", lambda: Tokenizer.load(DATA / "sentencepiece/test_model.model")),
        "starcoder": ("gpt2 starcoder", lambda: read(DATA / "llamacpp/ggml-vocab-starcoder.gguf")),
        "falcon": ("gpt2 falcon", lambda: read(DATA / "llamacpp/ggml-vocab-falcon.gguf")),
        "bert": ("bert None", lambda: Tokenizer.load(DATA / "bert/bert-vocab.txt")),
    }


def read(path: Path) -> Tokenizer:
    return from_metadata(GgufFile(path).metadata)


def same_there(name: str, text: str) -> bool:
    """Whether the ids of a text are promised to be the same: not where export() warns, nor for U+2581 written in a
    text, which SentencePiece's unigram models squeeze like a space and llama.cpp's do not.
    """
    if name == "bert":
        return all(ord(c) < 0x250 for c in text)
    if name == "metaspace":
        return text[0] not in " \u2581"
    if name in ("unigram.model", "sentencepiece"):
        return "\u2581" not in text
    return name != "bpe.model" or not any(shown in text for shown in ("<user>", "a<b>"))


def answers(path: Path, texts: list[str], prompt: str, count: int) -> dict[str, Any]:
    """What llama.cpp makes of texts, and how it goes on with a prompt."""
    Path(f"{path}.texts").write_text(json.dumps(texts))
    subprocess.run([sys.executable, "-c", CHILD, str(path), prompt, str(count)], check=True, timeout=120)
    found: dict[str, Any] = json.loads(Path(f"{path}.json").read_text())
    return found


QUICK = {"trained", "characters", "bpe.model"}  # `make parity` tries them all


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.soak) for n in MADE])
def test_ids(tmp_path: Path, name: str) -> None:
    """The same ids for fuzzed texts, there and in our own reader; ids that no token has are unused ones."""
    wanted, make_it = MADE[name]
    tokenizer = make_it()
    tokenizer.chat_templates["default"] = "{{ messages[0]['content'] }}"
    kind, pre = wanted.split()
    size = tokenizer.vocab_size + 5
    model = Decoder(FAMILIES.get("llama").read({**SETTINGS, "vocab_size": size}), seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if name not in ("bpe.model", "metaspace", "bert") else "ignore")
        path = microgpt.LanguageModel(model, tokenizer).export(tmp_path / "m.gguf", "f32")
    metadata = GgufFile(path).metadata
    assert metadata["tokenizer.ggml.model"] == kind and str(metadata.get("tokenizer.ggml.pre")) == pre
    back = microgpt.load(path).tokenizer
    texts = [text for text in TEXTS if same_there(name, text)]
    assert len(texts) >= (400 if kind != "bert" else 100)
    ours = [row.tolist() for row in tokenizer.encode_many(TEXTS)]
    assert [row.tolist() for row in back.encode_many(TEXTS)] == ours
    assert (back.bos_id, back.eos_id, back.adds_bos) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos)
    theirs = answers(path, texts, "a", 0)
    assert theirs["size"] == size and theirs["template"] == tokenizer.chat_templates["default"]
    ours = [ids for ids, text in zip(ours, TEXTS, strict=True) if same_there(name, text)]
    pairs = zip(texts, theirs["plain"], ours, strict=True)
    assert [pair for pair in pairs if pair[1] != pair[2]][:3] == []
    before = [tokenizer.bos_id] if tokenizer.adds_bos else []
    assert theirs["framed"] == [[*(before or tokenizer.frame[0]), *ids, *tokenizer.frame[1]] for ids in ours[:20]]


@pytest.mark.parametrize("tokenizer", ["bpe", "char", str(FOLDER / "bpe.model")], ids=["bpe", "char", "bpe.model"])
def test_greedy_text(tmp_path: Path, tokenizer: str) -> None:
    """A model that was trained here goes on with a prompt there, text to text."""
    data = tmp_path / "text.txt"
    data.write_text("\n".join(SENTENCES[:1] * 240))
    size = {"vocab_size": 400} if tokenizer == "bpe" else {}
    run = microgpt.train(data=str(data), tokenizer=tokenizer, steps=120, width=64, heads=2, layers=1, block_size=64,
                         seed=3, **size)  # fmt: skip
    ours = microgpt.LanguageModel(run.model, run.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = ours.export(tmp_path / "m.gguf", "f32")
    wanted = ours.generate("All human beings", temperature=0.0, max_tokens=40)
    found = answers(path, [], "All human beings", 40)
    assert found["ids"] == wanted.ids and len(wanted.ids) >= 20
    assert found["text"] == wanted.text and microgpt.load(path).generate(
        "All human beings", temperature=0.0, max_tokens=40
    ).text == wanted.text  # fmt: skip

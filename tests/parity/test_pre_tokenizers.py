"""How words are cut for each name of tokenizer.ggml.pre, beside llama.cpp (package `cyllama`) on one vocabulary."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.gguf import save_gguf
from microgpt.tokenizers.bytebpe import CHARACTERS
from microgpt.tokenizers.gguf import from_metadata
from microgpt.tokenizers.patterns import ALIASES, PATTERNS
from tests.tokenizer_fuzz import make

COUNT = int(os.environ.get("MICROGPT_FUZZ", "2000"))
SETTINGS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
            "max_position_embeddings": 8}  # fmt: skip
CHILD = """
import json, sys
from cyllama.llama import llama_cpp as llama
llama.disable_logging(); llama.llama_backend_init(); llama.ggml_backend_load_all()
texts = json.loads(open(sys.argv[1], encoding="utf-8").read())
for path in sys.argv[2:]:
    settings = llama.LlamaModelParams()
    settings.n_gpu_layers = 0
    model = llama.LlamaModel(path_model=path, params=settings, verbose=False)
    vocab = model.get_vocab()
    ids = [vocab.tokenize(text, False, False) for text in texts]
    open(path + ".json", "w").write(json.dumps(ids))
"""


def vocabulary(texts: list[str]) -> dict[str, Any]:
    """A byte-level vocabulary whose merges were learned across words, so that every other cut gives other ids."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = [CHARACTERS[value] for value in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    model.train_from_iterator(texts, trainer)
    content = json.loads(model.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["merges"]],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
    }  # fmt: skip


# Where llama.cpp only comes near to the vocabularies' own expressions, in words of scripts with two cases and in
# combining marks (it says [^a-z] for what is no lower case).
CASED = ("tekken", "gpt-4o", "llama4", "kanana2", "minimax-m2", "tiny_aya")


def comparable(name: str, text: str) -> bool:
    """Whether llama.cpp has the vocabulary's own expression for a text."""
    kinds = [unicodedata.category(c) for c in text]
    cased = any(
        kind[0] == "M" or (ord(c) > 127 and kind in ("Lu", "Ll", "Lt")) for c, kind in zip(text, kinds, strict=True)
    )
    if name in CASED and cased:
        return False
    if name == "tiny_aya":  # its word boundary is between a digit and a letter that is not ASCII too
        return not any(a == "Nd" and b[0] == "L" for a, b in itertools.pairwise(kinds))
    return name != "deepseek-llm" or "\u3000" not in text  # a space in the expressions, in llama.cpp in one of two


@pytest.mark.soak
def test_words_are_cut_as_llama_cpp_does(tmp_path: Path) -> None:
    texts = make(77, COUNT)
    metadata, names = vocabulary(make(76, 3000)), [*PATTERNS, *ALIASES]
    names = [name for name in names if name not in ("cl100k", "o200k", "gpt2")]  # tiktoken's names
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    size = len(metadata["tokenizer.ggml.tokens"])
    model = Decoder(FAMILIES.get("llama").read({**SETTINGS, "vocab_size": size}), seed=1)
    paths = [tmp_path / f"{name}.gguf" for name in names]
    for name, path in zip(names, paths, strict=True):
        save_gguf(model, path, "f32", {**metadata, "tokenizer.ggml.pre": name})
    subprocess.run([sys.executable, "-c", CHILD, tmp_path / "texts.json", *paths], check=True, timeout=600)
    answers = set()
    for name, path in zip(names, paths, strict=True):
        theirs = json.loads(Path(f"{path}.json").read_text())
        ours = from_metadata({**metadata, "tokenizer.ggml.pre": name}).encode_many(texts)
        fair = [comparable(name, text) for text in texts]
        pairs = [(t, a, b.tolist()) for t, a, b, ok in zip(texts, theirs, ours, fair, strict=True) if ok]
        assert len(pairs) > COUNT / 4
        assert [pair for pair in pairs if pair[1] != pair[2]][:3] == [], name
        answers.add(json.dumps(theirs))
    assert len(answers) >= 15  # the vocabulary tells the patterns apart

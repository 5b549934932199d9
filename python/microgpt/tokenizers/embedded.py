"""The tokenizer in the metadata of a GGUF file: a tokenizer.json and llama.cpp's own keys, or these alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microgpt.errors import TokenizerError
from microgpt.tokenizers import ggml_vocab, gguf
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.ids import IdsTokenizer

JSON = "tokenizer.huggingface.json"  # of the GGUF specification
CONFIG = "microgpt.tokenizer_config"  # ours: which tokens begin and end a text
STOPS = "microgpt.stop_ids"  # ours: every token besides the end token that ends what a model writes
MODEL, BOS, EOS = "tokenizer.ggml.model", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"


def write(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Metadata that holds the tokenizer of a model of `vocab_size` ids: its tokenizer.json, from which it is read again
    exactly, and llama.cpp's own keys. Where that could not express it, llama.cpp takes and gives ids ("no_vocab"); a
    warning tells why.
    """
    try:
        made = ggml_vocab.vocabulary(tokenizer, vocab_size)
    except TokenizerError as error:
        if not isinstance(tokenizer, IdsTokenizer):
            warnings.warn(f"llama.cpp will take and give ids of this file, not text: {error}", stacklevel=3)
        ends = {BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}
        made = {MODEL: "no_vocab"} | {key: value for key, value in ends.items() if value is not None}
    files = tokenizer._files()
    if "tokenizer.json" in files:
        made |= {JSON: files["tokenizer.json"], CONFIG: files.get("tokenizer_config.json", "{}")}
    if tokenizer.more_stop_ids:
        made[STOPS] = sorted(tokenizer.more_stop_ids)
    templates = dict(tokenizer.chat_templates)
    if "default" in templates:
        made["tokenizer.chat_template"] = templates.pop("default")
    if templates:
        made["tokenizer.chat_templates"] = sorted(templates)
        made |= {f"tokenizer.chat_template.{name}": text for name, text in templates.items()}
    return made


def of_file(metadata: Mapping[str, Any] | None, vocab_size: int, place: Path) -> Tokenizer:
    """The tokenizer of a model that is one file: what its metadata holds, else one of ids; llama2.c keeps it beside."""
    beside = place.with_name("tokenizer.bin")
    if metadata is None and beside.is_file():
        return Tokenizer.load(beside)
    return read(metadata or {}, vocab_size, str(place))


def read(metadata: Mapping[str, Any], vocab_size: int, where: str) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file; one of bare ids where there is none that is understood.

    Raises TokenizerError when it is broken or has more ids than the model.
    """
    text = metadata.get(JSON)
    if isinstance(text, str):
        content, config = (_object(each, where) for each in (text, metadata.get(CONFIG, "{}")))
        found: Tokenizer = (
            CharTokenizer.from_files(content, config, where)
            if CharTokenizer.describes(content)
            else HubTokenizer(text, config, where, content)
        )
        gguf.take_chat(found, metadata, where)
        stops = np.asarray(metadata.get(STOPS, ())).tolist()
        found.more_stop_ids |= {each for each in stops if type(each) is int and 0 <= each < found.vocab_size}
        return found
    if metadata.get(MODEL) == "rwkv":
        warnings.warn(f"{where}: its vocabulary (RWKV's, a trie of bytes) is not read: the model takes and gives ids",
                      stacklevel=3)  # fmt: skip
    elif "tokenizer.ggml.tokens" in metadata and metadata.get(MODEL) != "no_vocab":
        return gguf.from_metadata(metadata, where)
    bos, eos = (value if type(value := metadata.get(key)) is int else None for key in (BOS, EOS))
    return IdsTokenizer(vocab_size, bos, eos)


def _object(text: Any, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{where}: {JSON}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{where}: {JSON}: expected an object, got {type(content).__name__}")
    return content

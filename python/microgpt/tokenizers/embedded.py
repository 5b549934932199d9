"""The tokenizer in the metadata of a GGUF file: a tokenizer.json, which `export` writes, or llama.cpp's own keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from microgpt.errors import TokenizerError
from microgpt.tokenizers import gguf
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.ids import IdsTokenizer

JSON = "tokenizer.huggingface.json"  # of the GGUF specification
CONFIG = "microgpt.tokenizer_config"  # ours: which tokens begin and end a text
MODEL, BOS, EOS = "tokenizer.ggml.model", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"


def write(tokenizer: Tokenizer) -> dict[str, Any]:
    """Metadata that holds the tokenizer. llama.cpp then takes and gives ids ("no_vocab")."""
    files = tokenizer._files()
    made: dict[str, Any] = {MODEL: "no_vocab"}
    if "tokenizer.json" in files:
        made |= {JSON: files["tokenizer.json"], CONFIG: files.get("tokenizer_config.json", "{}")}
    ends = {BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}
    return made | {key: value for key, value in ends.items() if value is not None}


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
            else HubTokenizer(text, config, where)
        )
        template = metadata.get("tokenizer.chat_template")
        if isinstance(template, str) and isinstance(found, HubTokenizer):
            found.chat_templates["default"] = template
        return found
    if "tokenizer.ggml.tokens" in metadata and metadata.get(MODEL) != "no_vocab":
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

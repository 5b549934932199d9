"""Tokenizers from the metadata of a GGUF file (keys ``tokenizer.*``), given as a plain dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from microgpt.errors import TokenizerError, nearest
from microgpt.tokenizers import bytebpe
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.patterns import ALIASES, PATTERNS, pattern_named
from microgpt.tokenizers.pieces import SPACE, VOCAB_LIMIT, Kind, Pieces, tokenizer_of

# With these names of tokenizer.ggml.pre a text begins with the beginning token unless the file says otherwise.
_BEGINS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
           "tekken")  # fmt: skip
_WHOLE = _BEGINS  # and a word that is a token is taken whole, whatever the merges would make of it
_SCORED = {"llama": "bpe", "t5": "unigram"}


def from_metadata(metadata: Mapping[str, Any], where: str = "GGUF") -> HubTokenizer:
    """The tokenizer of ``tokenizer.ggml.*``; a ``tokenizer.huggingface.json`` in it precedes.

    Models llama and t5 (SentencePiece's BPE and unigram), gpt2 (byte-level BPE; ``pre`` says how words are cut, and an
    unknown one is refused, since a guess would change ids), bert (WordPiece). Raises TokenizerError.
    """
    found = _Metadata(metadata, where)
    tokens = found.texts("tokens")
    config = _config(found, tokens)
    whole = metadata.get("tokenizer.huggingface.json")
    model = found.text("model")
    if isinstance(whole, str):
        made = HubTokenizer(whole, config, where)
    elif model in _SCORED:
        made = _scored(found, _SCORED[model], tokens, config)
    elif model == "gpt2":
        made = _byte_level(found, tokens, config)
    elif model == "bert":
        made = _word_piece(found, tokens, config)
    else:
        known = [*_SCORED, "gpt2", "bert"]
        raise TokenizerError(f"{where}: no tokenizer model {model!r}{nearest(model, known)}; known: {', '.join(known)}")
    if made.vocab_size > len(tokens):
        raise TokenizerError(f"{where}: its tokenizer.huggingface.json has more than its {len(tokens)} tokens")
    take_chat(made, metadata, where)
    return made


def take_chat(made: Tokenizer, metadata: Mapping[str, Any], where: str) -> None:
    """What the metadata says of chats, for `made`: its templates and the tokens that end a turn."""
    found = _Metadata(metadata, where)
    ends = [found.id(f"{name}_token_id", made.vocab_size) for name in ("eot", "eom")]
    made.more_stop_ids = frozenset(each for each in ends if each is not None)
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        made.chat_templates["default"] = template
    for key, value in metadata.items():
        if key.startswith("tokenizer.chat_template.") and isinstance(value, str):
            made.chat_templates[key.removeprefix("tokenizer.chat_template.")] = value


class _Metadata:
    """Typed access to ``tokenizer.ggml.*``."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self.where = values, where

    def get(self, key: str) -> Any:
        return self._values.get(f"tokenizer.ggml.{key}")

    def text(self, key: str, default: str | None = None) -> str:
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, str):
            raise TokenizerError(f"{self.where}: tokenizer.ggml.{key}: expected text, got {str(value)[:60]!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return default if value is None else bool(value)

    def id(self, key: str, count: int) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value < count:
            raise TokenizerError(
                f"{self.where}: tokenizer.ggml.{key}: expected 0 to {count - 1}, got {str(value)[:60]}"
            )
        return int(value)

    def texts(self, key: str) -> list[str]:
        found = self._list(key)
        for number, each in enumerate(found):
            if not isinstance(each, str):
                raise TokenizerError(f"{self.where}: tokenizer.ggml.{key}: entry {number} is not text")
        return found

    def numbers(self, key: str, count: int, default: float) -> list[float]:
        if self.get(key) is None:
            return [default] * count
        try:
            return [float(each) for each in self._list(key)]
        except (TypeError, ValueError) as error:
            raise TokenizerError(f"{self.where}: tokenizer.ggml.{key}: expected numbers: {error}") from error

    def kinds(self, count: int) -> list[int]:
        found = self.numbers("token_type", count, Kind.NORMAL)
        if len(found) != count or not all(1 <= each <= 6 and each == int(each) for each in found):
            raise TokenizerError(f"{self.where}: tokenizer.ggml.token_type: expected {count} numbers of 1 to 6")
        return [int(each) for each in found]

    def _list(self, key: str) -> list[Any]:
        value = self.get(key)
        if isinstance(value, (str, bytes)) or not (isinstance(value, Sequence) or hasattr(value, "tolist")):
            raise TokenizerError(f"{self.where}: tokenizer.ggml.{key}: expected a list, got {type(value).__name__}")
        found = list(value) if isinstance(value, Sequence) else value.tolist()
        if not isinstance(found, list) or not 1 <= len(found) <= VOCAB_LIMIT:
            raise TokenizerError(f"{self.where}: tokenizer.ggml.{key}: expected 1 to {VOCAB_LIMIT} entries")
        return found


def _config(found: _Metadata, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    # seperator is how GGUF spells it.
    keys = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "cls": "cls", "seperator": "sep"}
    for key, name in keys.items():
        token = found.id(f"{key}_token_id", len(tokens))
        if token is not None:
            config[f"{name}_token"] = tokens[token]
    for name, other in (("bos", "cls"), ("eos", "sep")):  # what encoders have instead
        if f"{other}_token" in config:
            config.setdefault(f"{name}_token", config[f"{other}_token"])
    for name in ("bos", "eos"):
        if found.get(f"add_{name}_token") is not None:
            config[f"add_{name}_token"] = found.flag(f"add_{name}_token", False)
    return config


def _scored(found: _Metadata, model: str, tokens: list[str], config: dict[str, Any]) -> HubTokenizer:
    kinds = found.kinds(len(tokens))
    charsmap = found.get("precompiled_charsmap")
    try:
        compiled = b"" if charsmap is None else bytes(bytearray(int(each) & 0xFF for each in charsmap))
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"{found.where}: tokenizer.ggml.precompiled_charsmap: expected bytes") from error
    pieces = Pieces(
        tokens,
        found.numbers("scores", len(tokens), 0.0),
        kinds,
        model,
        byte_fallback=model == "bpe" or Kind.BYTE in kinds,
        add_prefix=found.flag("add_space_prefix", True),
        squeeze=found.flag("remove_extra_whitespaces", model == "unigram"),
        charsmap=compiled,
        ends=(found.id("bos_token_id", len(tokens)), found.id("eos_token_id", len(tokens))),
        add_ends=(found.flag("add_bos_token", model == "bpe"), found.flag("add_eos_token", model == "unigram")),
    )
    return tokenizer_of(pieces, config, found.where)


def _byte_level(found: _Metadata, tokens: list[str], config: dict[str, Any]) -> HubTokenizer:
    where = found.where
    pre = found.text("pre", "default")
    pattern = pattern_named(pre)
    if pattern is None:
        known = sorted({*PATTERNS, *ALIASES})
        raise TokenizerError(f"{where}: no tokenizer.ggml.pre {pre!r}{nearest(pre, known)}; known: {', '.join(known)}")
    kinds = found.kinds(len(tokens))
    vocab: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if not token or vocab.setdefault(token, number) != number:
            raise TokenizerError(
                f"{where}: token {number}, {token[:40]!r}, is empty or token {vocab.get(token)} already"
            )
    bytebpe.check_vocab(vocab, where)
    merges = []
    for number, line in enumerate(found.texts("merges")):
        # A token may contain a space where it stands for itself; then the cut that makes two tokens counts.
        cuts = [at for at in range(1, len(line)) if line[at] == " "]
        pairs = [(line[:at], line[at + 1 :]) for at in cuts]
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab and "".join(pair) in vocab]
        if not pairs:
            raise TokenizerError(f"{where}: merge {number}, {line[:60]!r}: expected two tokens that make a third")
        merges.append(pairs[0])
    special = (Kind.CONTROL, Kind.UNKNOWN)
    controls = {token: number for token, number in vocab.items() if kinds[number] in special}
    shown = {token: number for token, number in vocab.items() if kinds[number] == Kind.USER_DEFINED}
    content = bytebpe.byte_level(vocab, merges, pattern, controls, shown=shown, whole_words=pre in _WHOLE)
    content["post_processor"] = None  # which adds nothing, and stands for what `config` says is put around a text
    return bytebpe.make(content, {"add_bos_token": pre in _BEGINS, **config}, where)


def _word_piece(found: _Metadata, tokens: list[str], config: dict[str, Any]) -> HubTokenizer:
    # GGUF marks what begins a word; WordPiece marks what goes on with one.
    kinds = found.kinds(len(tokens))
    vocab: dict[str, int] = {}
    for number, token in enumerate(tokens):
        plain = kinds[number] != Kind.NORMAL or (token.startswith("[") and token.endswith("]") and len(token) > 2)
        name = token if plain else token[1:] if token.startswith(SPACE) else f"##{token}"
        if not name or vocab.setdefault(name, number) != number:
            raise TokenizerError(f"{found.where}: token {number}, {token[:40]!r}, is empty or comes twice")
    for key, name in (("normalizer.lowercase", "do_lower_case"), ("normalizer.strip_accents", "strip_accents")):
        if found.get(key) is not None:
            config[name] = found.flag(key, True)
    return word_piece(vocab, config, found.where)


def word_piece(vocab: dict[str, int], config: dict[str, Any], where: str) -> HubTokenizer:
    """The tokenizer of BERT's WordPiece vocabulary (uncased unless `config` says do_lower_case is false)."""
    lower, strips = config.get("do_lower_case", True) is not False, config.get("strip_accents")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocab]
    if "[UNK]" not in vocab:
        raise TokenizerError(f"{where}: a WordPiece vocabulary needs [UNK]")
    ends = {}
    if "[CLS]" in vocab and "[SEP]" in vocab:
        ends = {"bos_token": "[CLS]", "eos_token": "[SEP]", "add_bos_token": True, "add_eos_token": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[e], "content": e, **flags} for e in sorted(names, key=vocab.__getitem__)],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": lower,
            "strip_accents": strips if isinstance(strips, bool) else None,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }  # fmt: skip
    given = {key: value for key, value in config.items() if value is not None}
    return HubTokenizer(json.dumps(content, ensure_ascii=False), {**ends, **given}, where)

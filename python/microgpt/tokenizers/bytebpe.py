"""Byte-level BPE from what others keep it in: tiktoken ranks, and GPT-2's vocab.json with merges.txt."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from microgpt.errors import TokenizerError, nearest
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.merges import merges_of
from microgpt.tokenizers.patterns import PATTERNS

VOCAB_LIMIT = 2**22
TOKEN_LIMIT = 4096  # bytes; joining a longer one to learn its pair is quadratic
_WORK = 1 << 25  # bytes squared, over all tokens

# GPT-2 writes each byte as a character: itself where it can be seen, else one from U+0100 on.
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [value for value in range(256) if value not in _SEEN]
CHARACTERS = {value: chr(value) for value in _SEEN} | {value: chr(256 + i) for i, value in enumerate(_HIDDEN)}

_END_OF_TEXT = "<|endoftext|>"
_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
# name -> (pattern, control tokens that are no part of the file, with their ids)
ENCODINGS: dict[str, tuple[str, dict[str, int]]] = {
    "gpt2": ("gpt-2", {_END_OF_TEXT: 50256}),
    "r50k_base": ("gpt-2", {_END_OF_TEXT: 50256}),
    "p50k_base": ("gpt-2", {_END_OF_TEXT: 50256}),
    "p50k_edit": ("gpt-2", {_END_OF_TEXT: 50256, **dict(zip(_FIM, range(50281, 50284), strict=True))}),
    "cl100k_base": (
        "cl100k",
        {_END_OF_TEXT: 100257, **dict(zip(_FIM, range(100258, 100261), strict=True)), "<|endofprompt|>": 100276},
    ),
    "o200k_base": ("o200k", {_END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
}


def written(token: bytes) -> str:
    """A token's bytes in GPT-2's characters."""
    return "".join(map(CHARACTERS.__getitem__, token))


def read_ranks(data: bytes, where: str) -> dict[bytes, int]:
    """The tokens of a ``.tiktoken`` file and their ids: lines of base64 and a number. Raises TokenizerError."""
    ranks: dict[bytes, int] = {}
    used: set[int] = set()
    work = 0
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        what = f"{where}: line {number}"
        parts = line.split()
        try:
            if len(parts) != 2 or len(parts[1]) > 9 or not parts[1].isdigit():
                raise ValueError("expected a token in base64 and its id")
            token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(f"{what}: {error}; got {line[:60]!r}") from error
        if not 1 <= len(token) <= TOKEN_LIMIT or rank >= VOCAB_LIMIT:
            raise TokenizerError(f"{what}: expected a token of 1 to {TOKEN_LIMIT} bytes and an id below {VOCAB_LIMIT}")
        if token in ranks or rank in used:
            raise TokenizerError(f"{what}: token {token[:40]!r} or id {rank} comes twice")
        work += len(token) ** 2
        if work > _WORK:
            raise TokenizerError(f"{what}: more long tokens than a vocabulary has")
        ranks[token] = rank
        used.add(rank)
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{where}: expected a token for each byte; 0x{missing[0]:02X} and {len(missing) - 1} more are missing"
        )
    return ranks


def from_ranks(data: bytes, name: str, config: dict[str, Any] | None = None, where: str | None = None) -> HubTokenizer:
    """The tokenizer of a ``.tiktoken`` file; `name` (see ENCODINGS) says how it cuts words and its control tokens.

    Raises TokenizerError for a broken file, and for an unknown `name`: the file itself does not tell.
    """
    where = where or f"{name}.tiktoken"
    if name not in ENCODINGS:
        raise TokenizerError(f"{where}: no encoding {name!r}{nearest(name, ENCODINGS)}; known: {', '.join(ENCODINGS)}")
    pattern, controls = ENCODINGS[name]
    ranks = read_ranks(data, where)
    taken = {rank: token for token, rank in ranks.items()}
    for control, number in controls.items():
        if number in taken:
            raise TokenizerError(f"{where}: id {number} is {control} in {name}, but {taken[number][:40]!r} here")
    merges = [(written(a), written(b)) for a, b in merges_of(dict(ranks.items()))]
    vocab = {written(token): rank for token, rank in ranks.items()}
    ends = {"bos_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT, "add_bos_token": False}
    content = byte_level(vocab, merges, pattern, controls, whole_words=True)
    return make(content, {**ends, **(config or {})}, where)


def from_merges(
    vocab: Mapping[str, Any], merges: str, config: dict[str, Any] | None = None, where: str = "vocab.json"
) -> HubTokenizer:
    """The tokenizer of GPT-2's two files. Raises TokenizerError for ids that are no ids and for broken merges."""
    pairs = []
    for number, line in enumerate(merges.splitlines(), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise TokenizerError(f"{where}: merges, line {number}: expected two tokens, got {line[:60]!r}")
        pairs.append((pair[0], pair[1]))
    controls = {_END_OF_TEXT: vocab[_END_OF_TEXT]} if _END_OF_TEXT in vocab else {}
    ends = {"bos_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT, "add_bos_token": False} if controls else {}
    check_vocab(vocab, where)
    content = byte_level(dict(vocab), pairs, "gpt-2", controls)
    return make(content, {**ends, **(config or {})}, where)


def check_vocab(vocab: Mapping[str, Any], where: str) -> None:
    """Raises TokenizerError unless every id is a whole number of its own.

    Falcon's vocabulary has no token for 28 bytes; those are left out of a text, as the library does.
    """
    owners: dict[int, str] = {}
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < VOCAB_LIMIT:
            raise TokenizerError(
                f"{where}: {token[:40]!r}: expected an id of 0 to {VOCAB_LIMIT - 1}, got {number!r}"[:300]
            )
        other = owners.setdefault(number, token)
        if not token or other != token:
            raise TokenizerError(f"{where}: id {number}: {token[:40]!r} is empty or shares it with {other[:40]!r}")


def byte_level(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    pattern: str,
    controls: Mapping[str, int],
    *,
    shown: Mapping[str, int] | None = None,
    whole_words: bool = False,
) -> dict[str, Any]:
    """The ``tokenizer.json`` of a byte-level BPE. `pattern` names how text is cut into words (patterns.py); `shown`
    are added tokens that decoding does not leave out; `whole_words` takes a word that is a token before any merge.
    """
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False}
        for each in PATTERNS[pattern]
    ]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added: list[dict[str, Any]] = [{"id": n, "content": t, **flags, "special": True} for t, n in controls.items()]
    added += [{"id": n, "content": t, **flags, "special": False} for t, n in (shown or {}).items()]
    added.sort(key=lambda each: each["id"])
    # The library numbers added tokens itself, on from the model's; where that would be wrong the model has them too.
    vocab = {token: number for token, number in vocab.items() if token not in controls and token not in (shown or {})}
    if [each["id"] for each in added] != list(range(len(vocab), len(vocab) + len(added))):
        vocab |= {each["content"]: each["id"] for each in added}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_words,
            "vocab": vocab,
            "merges": merges,
        },
    }


def make(content: dict[str, Any], config: dict[str, Any], where: str) -> HubTokenizer:
    """The tokenizer of a tokenizer.json in memory."""
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return HubTokenizer(json.dumps(content, ensure_ascii=False), {**own, **config}, where, content)

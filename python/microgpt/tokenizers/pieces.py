"""Vocabularies of pieces with scores, as SentencePiece and GGUF files hold them, written as a ``tokenizer.json``."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from microgpt.errors import TokenizerError
from microgpt.tokenizers.charsmap import CharsMap
from microgpt.tokenizers.hub import EXACT, HubTokenizer
from microgpt.tokenizers.merges import merges_of

SPACE = "\u2581"  # how pieces write a space
VOCAB_LIMIT = 2**22  # pieces; the largest public vocabularies have 262,144
PIECE_LIMIT = 1 << 16  # bytes
_SLOW_PIECE = 512  # characters; joining a longer one to learn its pair is quadratic
_SLOW_TOTAL = 1 << 24  # characters squared, over all pieces
BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")


class Kind(IntEnum):
    """What a piece is; the numbers are SentencePiece's and GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Pieces:
    """A vocabulary and how text becomes pieces. `model` unigram or bpe; `charsmap` SentencePiece's compiled
    normalization, empty for none; `add_prefix` writes a space before the text, `squeeze` leaves out spaces at the ends
    and repeated ones.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    model: str
    byte_fallback: bool = False
    add_prefix: bool = True
    squeeze: bool = False
    escape: bool = True
    charsmap: bytes = b""
    ends: tuple[int | None, int | None] = (None, None)  # ids of the beginning and the end token
    add_ends: tuple[bool, bool] = (True, False)


def check(pieces: Pieces, where: str) -> None:
    """Raises TokenizerError for what no text could be cut into: at load, never when a text comes."""
    count = len(pieces.texts)
    if not 1 <= count <= VOCAB_LIMIT:
        raise TokenizerError(f"{where}: expected 1 to {VOCAB_LIMIT} pieces, found {count}")
    if len(pieces.scores) != count or len(pieces.kinds) != count:
        found = f"{len(pieces.scores)} scores and {len(pieces.kinds)} types"
        raise TokenizerError(f"{where}: {count} pieces, but {found}")
    seen: dict[str, int] = {}
    held: dict[int, int] = {}
    work = 0
    for number, (text, score, kind) in enumerate(zip(pieces.texts, pieces.scores, pieces.kinds, strict=True)):
        what = f"{where}: piece {number}"
        if not text or len(text) > PIECE_LIMIT:
            raise TokenizerError(f"{what}: expected 1 to {PIECE_LIMIT} characters, found {len(text)}")
        if seen.setdefault(text, number) != number:
            raise TokenizerError(f"{what}: {text[:40]!r} is piece {seen[text]} already")
        if not math.isfinite(score):
            raise TokenizerError(f"{what}: expected a finite score, got {score}")
        if kind not in Kind.__members__.values():
            raise TokenizerError(f"{what}: type {kind} is unknown; expected 1 to 6")
        if kind == Kind.BYTE:
            match = BYTE_NAME.fullmatch(text)
            if not match:
                raise TokenizerError(f"{what}: {text[:40]!r} has type byte; expected <0x00> to <0xFF>")
            held[int(match[1], 16)] = number
        elif kind == Kind.NORMAL:
            work += len(text) ** 2
            if pieces.model == "bpe" and (len(text) > _SLOW_PIECE or work > _SLOW_TOTAL):
                raise TokenizerError(f"{what}: too long for a BPE vocabulary ({len(text)} characters)")
    if pieces.byte_fallback and len(held) != 256:
        missing = next(value for value in range(256) if value not in held)
        raise TokenizerError(
            f"{where}: it falls back to bytes, but has {len(held)} of 256; <0x{missing:02X}> is missing"
        )
    for name, token in zip(("bos", "eos"), pieces.ends, strict=True):
        if token is not None and not 0 <= token < count:
            raise TokenizerError(f"{where}: {name} id {token}: expected 0 to {count - 1}")


def content_of(pieces: Pieces, where: str) -> dict[str, Any]:
    """The ``tokenizer.json`` of checked pieces, as a dictionary."""
    check(pieces, where)
    kinds = pieces.kinds
    unknown = [number for number, kind in enumerate(kinds) if kind == Kind.UNKNOWN]
    if len(unknown) > 1:
        raise TokenizerError(f"{where}: pieces {unknown[0]} and {unknown[1]} both have type unknown")
    added = [
        _added(number, text, special=kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.UNUSED))
        for number, (text, kind) in enumerate(zip(pieces.texts, kinds, strict=True))
        if kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.UNUSED)
    ]
    model = _unigram(pieces, unknown) if pieces.model == "unigram" else _bpe(pieces, unknown)
    users = [text for text, kind in zip(pieces.texts, kinds, strict=True) if kind == Kind.USER_DEFINED]
    pre: dict[str, Any] | None = None
    if users and pieces.model == "bpe":
        pre = user_splits(users)
        model["ignore_merges"] = True
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer_of(pieces),
        "pre_tokenizer": pre,
        "post_processor": _ends(pieces),
        "decoder": _decoder(pieces),
        "model": model,
    }


def user_splits(users: Sequence[str]) -> dict[str, Any]:
    """The pre-tokenizer that cuts out `users`, for a BPE with ignore_merges."""
    # The longest of them that begins somewhere is a piece whatever stands around it; never joined with another.
    choice = "|".join(re.escape(each) for each in sorted(users, key=len, reverse=True))
    # What is whole between two of them is a token where it is one; text that spells a byte's name must not be.
    parts = (choice, r"\A<(?=0x[0-9A-F]{2}>\z)")
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in parts]
    return {"type": "Sequence", "pretokenizers": splits}


def tokenizer_of(pieces: Pieces, config: dict[str, Any], where: str) -> HubTokenizer:
    """The tokenizer of `pieces`; what `config` (a tokenizer_config.json) says of tokens precedes.

    Raises TokenizerError naming `where`.
    """
    own: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if pieces.charsmap:
        CharsMap(pieces.charsmap, where)  # what is broken in it is told before the library reads it
        own[EXACT] = True
    content = content_of(pieces, where)
    for name, token, adds in zip(("bos", "eos"), pieces.ends, pieces.add_ends, strict=True):
        if token is not None:
            own[f"{name}_token"] = pieces.texts[token]
            own[f"add_{name}_token"] = adds
    return HubTokenizer(json.dumps(content, ensure_ascii=False), {**own, **config}, where)


def _added(number: int, text: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, **flags, "special": special}


def _unigram(pieces: Pieces, unknown: list[int]) -> dict[str, Any]:
    normal = [s for s, kind in zip(pieces.scores, pieces.kinds, strict=True) if kind == Kind.NORMAL]
    highest = max(normal, default=0.0)
    vocab = []
    for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True):
        if kind == Kind.USER_DEFINED:  # SentencePiece's way to prefer them to whatever else covers their bytes
            score = len(text.encode("utf-8", "surrogatepass")) * highest - 0.1
        vocab.append([text, score])
    unk_id = unknown[0] if unknown else None
    return {"type": "Unigram", "unk_id": unk_id, "vocab": vocab, "byte_fallback": pieces.byte_fallback}


def _bpe(pieces: Pieces, unknown: list[int]) -> dict[str, Any]:
    ranks = {
        text: -score
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True)
        if kind == Kind.NORMAL
    }
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces.texts[unknown[0]] if unknown else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": pieces.byte_fallback,
        "ignore_merges": False,
        "vocab": {text: number for number, text in enumerate(pieces.texts)},
        "merges": [list(pair) for pair in merges_of(ranks)],
    }


def normalizer_of(pieces: Pieces) -> dict[str, Any] | None:
    """What is done to text before it is cut, as a tokenizer.json says it; None for nothing."""
    steps: list[dict[str, Any]] = []
    if pieces.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(pieces.charsmap).decode()})
    if pieces.squeeze:
        steps += [_replace("^ +", ""), _replace(" {2,}", " ")]
    mark = SPACE if pieces.escape else " "
    if pieces.add_prefix:
        steps.append({"type": "Prepend", "prepend": mark})
    if pieces.escape:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if pieces.squeeze:
        steps.append(_replace(f"{mark}+$", ""))
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _replace(pattern: str, content: str) -> dict[str, Any]:
    # Beginning and end of the text, not of a line.
    pattern = pattern.replace("^", r"\A").replace("$", r"\z")
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _decoder(pieces: Pieces) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if pieces.escape:
        steps.append({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})
    if pieces.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if pieces.add_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _ends(pieces: Pieces) -> dict[str, Any] | None:
    """The post-processor that puts the beginning and end tokens around a text where the rules say so."""
    used = [t if adds else None for t, adds in zip(pieces.ends, pieces.add_ends, strict=True)]
    bos, eos = [[] if t is None else [{"SpecialToken": {"id": pieces.texts[t], "type_id": 0}}] for t in used]
    if not bos and not eos:
        return None
    tokens = {
        pieces.texts[t]: {"id": pieces.texts[t], "ids": [t], "tokens": [pieces.texts[t]]} for t in used if t is not None
    }
    single = [*bos, {"Sequence": {"id": "A", "type_id": 0}}, *eos]
    pair = [*single, *bos, {"Sequence": {"id": "B", "type_id": 1}}, *eos]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}

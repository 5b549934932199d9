"""Vocabularies of scored pieces for llama.cpp, from a ``tokenizer.json``: the inverse of pieces.py."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np

from microgpt.errors import TokenizerError
from microgpt.tokenizers.merges import last_pair, merges_of
from microgpt.tokenizers.pieces import BYTE_NAME, SPACE, Kind, Pieces, normalizer_of, user_splits


def scored(content: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Keys for a BPE that falls back to bytes (llama) or a unigram vocabulary (t5), `made` its tokens and kinds.

    Raises TokenizerError where llama.cpp would give other ids.
    """
    model, tokens, kinds = content["model"], made["tokens"], dict(made["kinds"])
    bpe = model.get("type", "BPE") == "BPE"
    unknown = tokens.get(model.get("unk_token")) if bpe else model.get("unk_id")
    if unknown is not None:
        kinds[unknown] = Kind.UNKNOWN
    prefix, squeeze, charsmap = _normalization(content, tokens)
    for user in _users(content, model):
        kinds[tokens[user]] = Kind.USER_DEFINED
    numbers = [number for token, number in tokens.items() if BYTE_NAME.fullmatch(token)]
    scores = np.zeros(max(tokens.values()) + 1, np.float32)
    if bpe:
        if len(numbers) != 256:
            raise TokenizerError(f"it has tokens for {len(numbers)} of 256 bytes")
        if squeeze or charsmap:
            raise TokenizerError("it normalizes text, which llama.cpp does for unigram vocabularies alone")
        kinds |= dict.fromkeys(numbers, Kind.BYTE)
        for token, score in _scores(model, tokens, kinds).items():
            scores[tokens[token]] = score
    else:
        if model.get("byte_fallback") or unknown is None:
            raise TokenizerError("llama.cpp's unigram vocabularies have an unknown token and do not fall back to bytes")
        scores[: len(model["vocab"])] = [score for _, score in model["vocab"]]
    notes = []
    if prefix and content.get("normalizer") is None:
        notes.append("it puts a space also before a text that begins with one")
    users = [token for token, number in tokens.items() if kinds.get(number) == Kind.USER_DEFINED]
    if prefix and users:
        notes.append(f"it puts a space behind {users[0][:40]!r} and none before it where it begins a text")
    found = {"model": "llama" if bpe else "t5", "pre": "default", "tokens": tokens, "kinds": kinds, "notes": notes,
             "add_space_prefix": prefix, "remove_extra_whitespaces": squeeze, "unknown_token_id": unknown}  # fmt: skip
    if charsmap:
        found["precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    return {**found, "scores": scores}


def _normalization(content: dict[str, Any], tokens: dict[str, int]) -> tuple[bool, bool, bytes]:
    """Whether a space is put before a text, whether spaces are squeezed, and SentencePiece's normalization."""
    given = content.get("normalizer")
    steps = [] if given is None else given["normalizers"] if given["type"] == "Sequence" else [given]
    pre = content.get("pre_tokenizer") or {}
    if pre.get("type") == "Metaspace" and not steps:
        cut = pre.get("split", True) and any(SPACE in token[1:] for token in tokens)
        if cut or pre.get("replacement") != SPACE:
            raise TokenizerError("its Metaspace cuts within tokens")
        return pre.get("prepend_scheme", "always") != "never", False, b""
    charsmap = b""
    if steps and steps[0]["type"] == "Precompiled":
        charsmap = base64.b64decode(steps[0]["precompiled_charsmap"])
    for prefix in (False, True):
        for squeeze in (False, True):
            pieces = Pieces((), (), (), "bpe", add_prefix=prefix, squeeze=squeeze, charsmap=charsmap)
            if normalizer_of(pieces) == {"type": "Sequence", "normalizers": steps}:
                return prefix, squeeze, charsmap
    raise TokenizerError("llama.cpp has no form for its normalizer")


def _users(content: dict[str, Any], model: dict[str, Any]) -> list[str]:
    """The pieces that are taken whole whatever stands around them, as pieces.py writes them down."""
    pre, whole = content.get("pre_tokenizer") or {}, bool(model.get("ignore_merges"))
    kind, pattern, found = pre.get("type"), pre.get("pattern"), []
    spaces = kind == "Split" and pattern == {"String": " "}  # Gemma's: there are none any more
    if not spaces and kind not in (None, "Metaspace"):
        try:
            choice = pre["pretokenizers"][0]["pattern"]["Regex"]
        except LookupError:
            choice = ""
        parts = re.findall(r"(?:\\.|[^|\\])+", choice, re.DOTALL)
        found = [re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts]
        if not found or user_splits(found) != pre:
            raise TokenizerError(f"llama.cpp has no form for its pre-tokenizer {kind}")
    if model.get("type", "BPE") == "BPE" and whole != bool(found):
        raise TokenizerError("llama.cpp's scored vocabularies take no whole words before merges")
    return found


def _scores(model: dict[str, Any], tokens: dict[str, int], kinds: dict[int, Kind]) -> dict[str, float]:
    """A score for each token so that joining by scores does what the merges do: minus the place of its first merge.

    llama.cpp joins any two parts whose union is a token; merges.py says which pairs that can be. They must all be
    merges, in the same order.
    """
    pairs = [tuple(each.split(" ", 1) if isinstance(each, str) else each) for each in model["merges"]]
    places = {pair: place for place, pair in reversed(list(enumerate(pairs)))}
    first: dict[str, float] = {}
    for place, pair in enumerate(pairs):
        first.setdefault("".join(pair), place)
    joined = [token for token, number in tokens.items() if kinds.get(number) != Kind.USER_DEFINED]
    ranks = {token: first.get(token, len(pairs) + tokens[token]) for token in joined}
    last = 0
    for left, right in merges_of(ranks):
        place = places.get((left, right), -1)
        if place < 0 and last_pair(left + right, ranks) == len(left):  # else the two never meet
            raise TokenizerError(f"llama.cpp would join {left[:40]!r} and {right[:40]!r}, which no merge of it does")
        if 0 <= place < last:
            raise TokenizerError(f"its merges that make {(left + right)[:40]!r} are in an order that no scores have")
        last = max(last, place)
    plain = (token for token in joined if kinds.get(tokens[token], Kind.NORMAL) == Kind.NORMAL)
    return {token: -float(ranks[token]) for token in plain}

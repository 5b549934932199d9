"""A tokenizer as llama.cpp understands it: the keys ``tokenizer.ggml.*`` of a GGUF file, the inverse of gguf.py.

Written is only what gives the same ids there; the reason why not, and for which texts it comes near only, is told.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from microgpt.errors import TokenizerError
from microgpt.tokenizers.base import Tokenizer, token_text
from microgpt.tokenizers.bytebpe import CHARACTERS, written
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.patterns import PATTERNS
from microgpt.tokenizers.pieces import SPACE, Kind
from microgpt.tokenizers.scored import scored

# Patterns whose key is not what llama.cpp calls them: its name, and that of the same with whole words before merges.
_NAMES: dict[str, tuple[str | None, str | None]] = {
    "cl100k": ("dbrx", "llama-bpe"),
    "llama-bpe": ("dbrx", "llama-bpe"),
    "o200k": ("gpt-4o", None),
    "tekken": (None, "tekken"),
}
# Our name in tokenizer_config.json -> GGUF's; seperator is how that spells it.
_TOKENS = {"unk": "unknown", "pad": "padding", "cls": "cls", "sep": "seperator", "mask": "mask"}


def vocabulary(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """Keys ``tokenizer.ggml.*`` for a model of `size` ids; those that no token has become unused tokens.

    Models gpt2 (byte-level BPE; characters too, as merges of their bytes), llama and t5 (scored pieces) and bert
    (WordPiece). Raises TokenizerError with the reason where llama.cpp would give other ids; warns where it does so for
    some texts alone.
    """
    files = tokenizer._files()
    if "tokenizer.json" not in files:
        raise TokenizerError("it has no vocabulary")
    content, config = (json.loads(files.get(name, "{}")) for name in ("tokenizer.json", "tokenizer_config.json"))
    if tokenizer.vocab_size > size:
        raise TokenizerError(f"it has {tokenizer.vocab_size} ids, the model {size}")
    before, after = tokenizer.frame  # an encoder's tokens may be known by these alone
    first = before[-1] if tokenizer.bos_id is None and before else tokenizer.bos_id
    last = after[0] if tokenizer.eos_id is None and after else tokenizer.eos_id
    if last is None:
        raise TokenizerError("it names no end token, and llama.cpp would take one of its own")
    made = _characters(tokenizer) if isinstance(tokenizer, CharTokenizer) else _of_json(content)
    for note in made.pop("notes", ()):
        warnings.warn(f"llama.cpp will give other ids for some texts: {note}", stacklevel=4)
    tokens, kinds = made.pop("tokens"), made.pop("kinds")
    made |= _table(tokens, kinds, size)
    if "scores" in made:
        made["scores"] = np.pad(made["scores"], (0, size - len(made["scores"])))
    made |= {"bos_token_id": first, "eos_token_id": last}
    made |= {"add_bos_token": tokenizer.adds_bos or before[-1:] == [first], "add_eos_token": after[:1] == [last]}
    for ours, theirs in _TOKENS.items():
        made.setdefault(f"{theirs}_token_id", tokens.get(token_text(config, f"{ours}_token")))
    ends = sorted(tokenizer.more_stop_ids - {tokenizer.eos_id})
    made |= dict(zip(("eot_token_id", "eom_token_id"), ends, strict=False))
    return {f"tokenizer.ggml.{key}": value for key, value in made.items() if value is not None}


def _table(tokens: Mapping[str, int], kinds: Mapping[int, Kind], size: int) -> dict[str, Any]:
    texts: list[str] = [""] * size
    types = np.full(size, Kind.UNUSED, np.int32)
    for text, number in tokens.items():
        texts[number], types[number] = text, kinds.get(number, Kind.NORMAL)
    for number, text in enumerate(texts):
        if not text:
            texts[number] = next(
                name for name in (f"[PAD{number}{'+' * n}]" for n in itertools.count()) if name not in tokens
            )
    return {"tokens": texts, "token_type": types}


def _characters(tokenizer: CharTokenizer) -> dict[str, Any]:
    """Each character is a token, and the merges of its bytes, which need not be tokens themselves, make it.

    UTF-8 tells first bytes from others, so that no merge joins two characters.
    """
    tokens = {tokenizer._tokens[0]: 0}
    merges: dict[str, None] = {}
    for number, character in enumerate(tokenizer._tokens[1:], 1):
        data = character.encode()
        tokens[written(data)] = number
        for at in range(1, len(data)):
            merges[f"{written(data[:at])} {written(data[at : at + 1])}"] = None
    found = {"tokens": tokens, "kinds": {0: Kind.CONTROL}, "merges": list(merges)}
    return {"model": "gpt2", "pre": "gpt-2", **found}


def _of_json(content: dict[str, Any]) -> dict[str, Any]:
    model = content.get("model") or {}
    kind = model.get("type", "BPE")
    vocab = model.get("vocab", {})
    if isinstance(vocab, list):
        vocab = {entry[0]: number for number, entry in enumerate(vocab)}
    tokens, kinds = dict(vocab), {}
    for each in content.get("added_tokens", ()):
        tokens[each["content"]] = each["id"]
        kinds[each["id"]] = Kind.CONTROL if each.get("special") else Kind.USER_DEFINED
        if not each.get("special") and any(each.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise TokenizerError(f"its token {each['content'][:40]!r} takes what stands around it")
    if len(set(tokens.values())) != len(tokens):
        raise TokenizerError("two of its tokens share an id")
    made = {"tokens": tokens, "kinds": kinds}
    if kind == "WordPiece":
        return _word_piece(content, made)
    if kind == "BPE" and not model.get("byte_fallback"):
        return _byte_level(content, made)
    if kind in ("BPE", "Unigram"):
        return scored(content, made)
    raise TokenizerError(f"llama.cpp has no form for a {kind} vocabulary")


def _byte_level(content: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    model = content["model"]
    normalizer = (content.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise TokenizerError(f"it changes text before it is cut ({normalizer})")
    if normalizer == "NFC":
        made["notes"] = ["it does not compose characters (NFC) before it cuts"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(f"llama.cpp has no form for {key}")
    if model.get("unk_token") is not None and not set(CHARACTERS.values()) <= made["tokens"].keys():
        raise TokenizerError("some bytes are unknown to it, which llama.cpp leaves out")
    steps = _cuts(content.get("pre_tokenizer"))
    pairs = (each.split(" ", 1) if isinstance(each, str) else each for each in model["merges"])
    merges = [(left, right) for left, right in pairs]
    if any(" " in part for pair in merges for part in pair):
        raise TokenizerError("a merge has a space in it")
    whole = bool(model.get("ignore_merges"))
    for key in (key for key, pattern in PATTERNS.items() if pattern == steps):
        names = _NAMES.get(key, (key, None))
        name = names[whole] or (names[not whole] if _made_by_merges(model, merges, made["kinds"]) else None)
        if name is not None:
            return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in merges], **made}
    raise TokenizerError("no pre-tokenizer of llama.cpp cuts words as it does")


def _cuts(pre: dict[str, Any] | None) -> tuple[str, ...]:
    """The regular expressions of a pre-tokenizer, one after the other. Raises TokenizerError for other kinds."""
    found: list[str] = []
    steps = [] if pre is None else pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    for step in steps:
        pattern = step.get("pattern") or {}
        if step["type"] == "ByteLevel" and not step.get("add_prefix_space", True):
            found += PATTERNS["gpt-2"] if step.get("use_regex", True) else ()
        elif step["type"] == "Digits" and step.get("individual_digits"):
            found.append(r"\p{N}")
        elif step["type"] == "Split" and "Regex" in pattern and step.get("behavior") == "Isolated":
            if step.get("invert"):
                raise TokenizerError("no pre-tokenizer of llama.cpp cuts words as it does")
            found.append(pattern["Regex"])
        else:
            raise TokenizerError(f"llama.cpp has no form for its pre-tokenizer {step['type']}")
    if not any(step["type"] == "ByteLevel" for step in steps):
        raise TokenizerError("it is no byte-level BPE and does not fall back to bytes")
    return tuple(found)


def _made_by_merges(model: dict[str, Any], merges: Sequence[tuple[str, str]], kinds: Mapping[int, Kind]) -> bool:
    """Whether merges make each token of its own bytes: then a word that is a token needs no rule of its own."""
    import tokenizers

    plain = tokenizers.models.BPE(vocab=model["vocab"], merges=merges)
    alone = set(CHARACTERS.values())
    return all(
        [each.id for each in plain.tokenize(token)] == [number]
        for token, number in model["vocab"].items()
        if set(token) <= alone and number not in kinds
    )


def _word_piece(content: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """GGUF marks what begins a word; WordPiece what goes on with one."""
    model, normalizer = content["model"], content.get("normalizer") or {}
    plain = normalizer.get("lowercase") and normalizer.get("strip_accents") is not False
    if normalizer.get("type") != "BertNormalizer" or not plain or not normalizer.get("handle_chinese_chars"):
        raise TokenizerError("llama.cpp's WordPiece is that of BERT uncased alone")
    if (content.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
        raise TokenizerError("llama.cpp's WordPiece is that of BERT uncased alone")
    prefix = model.get("continuing_subword_prefix", "##")
    tokens: dict[str, int] = {}
    for token, number in made["tokens"].items():
        whole = number in made["kinds"] or (token.startswith("[") and token.endswith("]") and len(token) > 2)
        name = token if whole else token.removeprefix(prefix) if token.startswith(prefix) else SPACE + token
        if not name or tokens.setdefault(name, number) != number:
            raise TokenizerError(f"its tokens {token[:40]!r} and {number} would have one name")
    unknown = made["tokens"].get(model.get("unk_token"))
    notes = ["it takes off accents otherwise than BERT in scripts other than Latin, and cuts Korean otherwise"]
    found = {"model": "bert", "tokens": tokens, "kinds": made["kinds"], "unknown_token_id": unknown}
    return {**found, "notes": notes}

"""One token for each character, and one control token: the vocabulary of the smallest models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from microgpt.errors import TokenizerError
from microgpt.tokenizers.base import Tokenizer, token_text, uncovered

END_OF_TEXT = "<|endoftext|>"

_PRE_TOKENIZER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
_DECODER = {"type": "Fuse"}


class CharTokenizer(Tokenizer):
    """Id 0 is ``<|endoftext|>``, which begins and ends a document; then one id for each of `characters`, in
    order.

    A character is a Unicode code point. Raises TokenizerError for lone surrogates and repeated characters.
    """

    def __init__(self, characters: Sequence[str]) -> None:
        if not characters:
            raise TokenizerError("a character vocabulary needs at least one character, got none")
        self._tokens = [END_OF_TEXT, *characters]
        self._ids = {char: number for number, char in enumerate(characters, 1)}
        for char in characters:
            if len(char) != 1 or 0xD800 <= ord(char) <= 0xDFFF:
                raise TokenizerError(f"expected single characters that UTF-8 can write, got {char!r}")
        if len(self._ids) != len(characters):
            raise TokenizerError("a character vocabulary may not name a character twice")
        self.vocab_size = len(self._tokens)
        self.bos_id = self.eos_id = 0
        self.special_ids = frozenset([0])
        self._controls = {END_OF_TEXT: 0}
        # Code point -> id, -1 for none; the last entry stands for everything beyond.
        points = np.array([ord(char) for char in characters])
        self._table = np.full(int(points.max()) + 2, -1, np.int32)
        self._table[points] = np.arange(1, self.vocab_size)

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokenizer:
        """The vocabulary of all characters in `texts`, by code point."""
        found: set[str] = set()
        for text in texts:
            found.update(text)
        return cls(sorted(found))

    def _encode(self, text: str) -> list[int]:
        try:
            return [self._ids[char] for char in text]
        except KeyError:
            raise uncovered(text, self._ids) from None

    def encode_many(
        self, texts: Sequence[str], add_bos: bool = False, add_eos: bool = False
    ) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
        """The ids of each text as int32 arrays (views of one), without a Python step per character."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._table[np.minimum(points, len(self._table) - 1)]
        if len(ids) and ids.min() < 0:
            number = int(np.searchsorted(np.cumsum(lengths), np.argmin(ids), side="right"))
            raise TokenizerError(f"text {number}: {uncovered(texts[number], self._ids)}")
        edges = int(add_bos) + int(add_eos)
        flat = np.zeros(len(ids) + edges * len(texts), np.int32)  # 0 is the control token
        # Each character moves behind the control tokens written before it.
        flat[np.arange(len(ids)) + np.repeat(np.arange(len(texts)) * edges + int(add_bos), lengths)] = ids
        ends = np.cumsum(lengths + edges).tolist()
        return [flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=False)]

    def _decode(self, ids: list[int]) -> str:
        return "".join([self._tokens[token] for token in ids])

    def _files(self) -> dict[str, str]:
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_ADDED_TOKEN],
            "normalizer": None,
            "pre_tokenizer": _PRE_TOKENIZER,
            "post_processor": None,
            "decoder": _DECODER,
            # "<unk>" is in no character vocabulary, so that the library raises where it would have to guess.
            "model": {"type": "WordLevel", "vocab": {END_OF_TEXT: 0, **self._ids}, "unk_token": "<unk>"},
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
        }
        if self.max_length is not None:
            config["model_max_length"] = self.max_length
        return {
            "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n",
            "tokenizer_config.json": json.dumps(config, indent=1) + "\n",
            **super()._files(),
        }

    @staticmethod
    def describes(content: dict[str, Any]) -> bool:
        """Whether a parsed ``tokenizer.json`` has the form that :meth:`save` writes."""
        model = content.get("model")
        return (
            isinstance(model, dict)
            and model.get("type") == "WordLevel"
            and content.get("pre_tokenizer") == _PRE_TOKENIZER
            and content.get("decoder") == _DECODER
            and content.get("normalizer") is None
        )

    @classmethod
    def from_files(cls, content: dict[str, Any], config: dict[str, Any], where: str) -> CharTokenizer:
        """The tokenizer of two parsed files; raises TokenizerError, naming the file `where`, if they are
        inconsistent.
        """
        vocab = content["model"].get("vocab")
        if not isinstance(vocab, dict) or not all(type(number) is int for number in vocab.values()):
            raise TokenizerError(f"{where}: model.vocab: expected an object of token to id")
        tokens = sorted(vocab, key=lambda token: int(vocab[token]))
        if [vocab[token] for token in tokens] != list(range(len(tokens))):
            raise TokenizerError(f"{where}: model.vocab: expected each id below {len(tokens)} exactly once")
        if tokens[:1] != [END_OF_TEXT] or content.get("added_tokens") != [_ADDED_TOKEN]:
            raise TokenizerError(f"{where}: expected {END_OF_TEXT} as id 0 and as the only added token")
        for key in ("bos_token", "eos_token"):
            if key in config and token_text(config, key) != END_OF_TEXT:
                raise TokenizerError(f"{where}: {key}: expected {END_OF_TEXT}, got {config[key]!r}")
        try:
            tokenizer = cls(tokens[1:])
        except TokenizerError as error:
            raise TokenizerError(f"{where}: {error}") from error
        length = config.get("model_max_length")
        tokenizer.max_length = length if type(length) is int else None
        return tokenizer


_ADDED_TOKEN = {
    "id": 0,
    "content": END_OF_TEXT,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}

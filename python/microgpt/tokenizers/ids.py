"""A stand-in where a model comes without a vocabulary: its text is the ids themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import NoneType
from typing import Any

from microgpt.errors import TokenizerError
from microgpt.tokenizers.base import Tokenizer

CLASS = "IdsTokenizer"


class IdsTokenizer(Tokenizer):
    """Text is ids in decimal, each followed by a space: "1 300 301 ". `bos_id`, `eos_id` where the model names them."""

    def __init__(self, vocab_size: int, bos_id: int | None = None, eos_id: int | None = None) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.bos_id, self.eos_id = (value if value is not None and 0 <= value < vocab_size else None
                                    for value in (bos_id, eos_id))  # fmt: skip
        self.special_ids = frozenset(value for value in (self.bos_id, self.eos_id) if value is not None)

    def _encode(self, text: str) -> list[int]:
        ids = []
        for word in text.split():
            if not (word.isascii() and word.isdigit() and len(word) <= 9 and int(word) < self.vocab_size):
                raise TokenizerError(
                    f"this model came without a vocabulary: expected ids from 0 to {self.vocab_size - 1} with spaces "
                    f"between them, got {word[:40]!r}"
                )
            ids.append(int(word))
        return ids

    def _decode(self, ids: list[int]) -> str:
        return "".join(f"{number} " for number in ids)

    def _files(self) -> dict[str, str]:
        ends = {"bos_token_id": self.bos_id, "eos_token_id": self.eos_id}
        config = {"tokenizer_class": CLASS, "vocab_size": self.vocab_size, **ends}
        return {"tokenizer_config.json": json.dumps(config, indent=1) + "\n"}

    @staticmethod
    def from_config(config: Mapping[str, Any], where: str) -> IdsTokenizer:
        """What tokenizer_config.json says of one. Raises TokenizerError."""
        size, ends = config.get("vocab_size"), (config.get("bos_token_id"), config.get("eos_token_id"))
        if type(size) is not int or not 1 <= size <= 2**24 or any(type(each) not in (int, NoneType) for each in ends):
            raise TokenizerError(f"{where}: expected a vocab_size of 1 to {2**24}, and ids or null for the ends")
        return IdsTokenizer(size, *ends)

    @property
    def fingerprint(self) -> str:
        """Names the number of ids and the two that are known."""
        return f"ids {self.vocab_size} {self.bos_id} {self.eos_id}"

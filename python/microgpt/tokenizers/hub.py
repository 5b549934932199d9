"""Any ``tokenizer.json`` of Hugging Face, run by their `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from microgpt.errors import MissingExtraError, TokenizerError
from microgpt.tokenizers.base import Tokenizer, token_text

_VOCAB_LIMIT = 2**24


class HubTokenizer(Tokenizer):
    """The tokenizer that the text of a ``tokenizer.json`` describes; `config` is its parsed
    tokenizer_config.json.

    Raises TokenizerError naming `where` for a broken file, MissingExtraError without the `tokenizers`
    library.
    """

    def __init__(self, text: str, config: dict[str, Any], where: str = "tokenizer.json") -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise MissingExtraError(
                f"{where}: this vocabulary needs the 'tokenizers' library; pip install tokenizers"
            ) from error
        self._text, self._config = text, config
        self._library = guard(f"{where}: broken", lambda: tokenizers.Tokenizer.from_str(text))
        # Truncation or padding asked for by the file would change text behind the caller's back.
        self._library.no_truncation()
        self._library.no_padding()
        # Text is content: "<|endoftext|>" typed by a user is not the control token.
        self._library.encode_special_tokens = True
        vocab = guard(f"{where}: broken", lambda: self._library.get_vocab(with_added_tokens=True))
        last = max(vocab.values(), default=-1)
        if not 0 <= last < _VOCAB_LIMIT:
            raise TokenizerError(f"{where}: expected 1 to {_VOCAB_LIMIT} ids, found {last + 1}")
        self.vocab_size = last + 1
        present = frozenset(vocab.values())
        self._present = None if len(present) == self.vocab_size else present
        added = self._library.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        ids: dict[str, int | None] = {}
        for key in ("bos_token", "eos_token"):
            token = token_text(config, key)
            ids[key] = None if token is None else vocab.get(token)
            if token is not None and token not in vocab:
                raise TokenizerError(f"{where}: {key} {token!r} is not in the vocabulary")
        self.bos_id, self.eos_id = ids["bos_token"], ids["eos_token"]
        length = config.get("model_max_length")
        self.max_length = length if type(length) is int else None

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = guard(
            "cannot encode this text", lambda: self._library.encode(text, add_special_tokens=False).ids
        )
        return ids

    def encode_many(
        self, texts: Sequence[str], add_bos: bool = False, add_eos: bool = False
    ) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
        """The ids of each text as int32 arrays, by the library's threads; raises TokenizerError naming the text."""
        bos, eos = self._edge("bos", add_bos), self._edge("eos", add_eos)
        try:
            found = guard("", lambda: self._library.encode_batch_fast(list(texts), add_special_tokens=False))
        except TokenizerError:
            return super().encode_many(texts, add_bos, add_eos)  # one by one, to find which it was
        return [np.array([*bos, *each.ids, *eos], np.int32) for each in found]

    def _decode(self, ids: list[int]) -> str:
        text: str = guard("cannot decode", lambda: self._library.decode(ids, skip_special_tokens=False))
        return text

    def _has(self, token: int) -> bool:
        return 0 <= token < self.vocab_size if self._present is None else token in self._present

    def _files(self) -> dict[str, str]:
        config = self._config if self.max_length is None else {**self._config, "model_max_length": self.max_length}
        return {
            "tokenizer.json": self._text,
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
        }


def guard(what: str, call: Callable[[], Any]) -> Any:
    """Run a call into the library; whatever goes wrong there is a TokenizerError."""
    try:
        return call()
    except BaseException as error:
        # A Rust panic arrives as a PanicException, which is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{what}: {error}") from error
        raise

"""What every tokenizer can do, and how one is found in a model folder."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microgpt import system
from microgpt.errors import StorageError, TokenizerError

_FILE_LIMIT = 256 << 20  # bytes; the largest public tokenizer.json are about 35 MB
_SHOWN = 5


class Tokenizer(ABC):
    """Ids 0…`vocab_size`-1 for text. `bos_id` and `eos_id` are None where the vocabulary has no such token.

    Text is always content: the spelling of a control token in it never becomes the control token.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    special_ids: frozenset[int]
    stop_ids: frozenset[int]  # the tokens that end what a model writes: `eos_id`, and the end of a turn
    adds_bos: bool  # whether a text for the model begins with `bos_id`
    max_length: int | None = None  # tokens a model accepts; noted in tokenizer_config.json
    chat_templates: dict[str, str]  # Jinja texts by name, "default" is one

    def __init__(self) -> None:
        self.chat_templates = {}

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def _files(self) -> dict[str, str]:
        return {}

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """The ids of `text`, between the beginning and end tokens where asked.

        Raises TokenizerError naming the characters (and their positions) that the vocabulary does not cover.
        """
        return [*self._edge("bos", add_bos), *self._encode(text), *self._edge("eos", add_eos)]

    def encode_many(
        self, texts: Sequence[str], add_bos: bool = False, add_eos: bool = False
    ) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
        """The ids of each text as int32 arrays; raises TokenizerError like :meth:`encode`, naming the
        text.
        """
        found = []
        for number, text in enumerate(texts):
            try:
                found.append(np.array(self.encode(text, add_bos, add_eos), np.int32))
            except TokenizerError as error:
                raise TokenizerError(f"text {number}: {error}") from error
        return found

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; raises TokenizerError for an id outside the vocabulary."""
        checked = []
        for position, value in enumerate(ids):
            try:
                token = operator.index(value)
            except TypeError as error:
                raise TokenizerError(f"id at position {position}: expected an int, got {value!r}") from error
            if not self._has(token):
                last = self.vocab_size - 1
                raise TokenizerError(f"id {token} at position {position}: expected 0 to {last}")
            if not (skip_special_tokens and token in self.special_ids):
                checked.append(token)
        return self._decode(checked)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the vocabulary and of what begins and ends a document."""
        content = self._files()["tokenizer.json"] + f"\n{self.bos_id} {self.eos_id}"
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self, folder: Path | str) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, which transformers loads too;
        StorageError.
        """
        folder = Path(folder)
        for name, text in self._files().items():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with open(folder / name, "w", encoding="utf-8", newline="\n", opener=_no_follow) as file:
                    file.write(text)
            except OSError as error:
                raise StorageError(f"writing {folder / name} failed: {error.strerror or error}") from error

    @staticmethod
    def load(folder: Path | str) -> Tokenizer:
        """The tokenizer of a model folder: ``tokenizer.json``, else ``tokenizer.model`` (SentencePiece), ``vocab.json``
        with ``merges.txt``, ``vocab.txt`` (WordPiece) or ``*.tiktoken``; with ``tokenizer_config.json`` and chat
        templates, if there. Also one such file, or a ``tokenizer.bin`` of llama2.c.

        A character vocabulary needs no library; all others need `tokenizers` (MissingExtraError).
        Raises TokenizerError when a file is missing, truncated or inconsistent.
        """
        from microgpt.tokenizers.files import open_tokenizer

        return open_tokenizer(Path(folder))

    def _has(self, token: int) -> bool:
        return 0 <= token < self.vocab_size

    def _edge(self, name: str, wanted: bool) -> list[int]:
        token = self.bos_id if name == "bos" else self.eos_id
        if wanted and token is None:
            raise TokenizerError(f"add_{name}: this tokenizer has no {name} token")
        return [token] if wanted and token is not None else []


def uncovered(text: str, covered: Iterable[str]) -> TokenizerError:
    """The error for `text`: its first few characters that are not in `covered`, each with its first
    position.
    """
    known = set(covered)
    bad = {char: text.index(char) for char in dict.fromkeys(text) if char not in known}
    shown = ", ".join(f"{char!r} at position {at}" for char, at in list(bad.items())[:_SHOWN])
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return TokenizerError(f"characters outside the vocabulary: {shown}{more}")


def token_text(config: dict[str, Any], key: str) -> str | None:
    """The string of a token in tokenizer_config.json, which older files wrap as ``{"content": ...}``."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | system.flags("NOFOLLOW"), 0o666)


def read_text(path: Path) -> str:
    """A UTF-8 file of at most 256 MiB. Raises TokenizerError."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: cannot read: {error}") from error


def read_bytes(path: Path) -> bytes:
    """A regular file of at most 256 MiB. Raises TokenizerError."""
    try:
        if not path.is_file():
            what = "not a file" if path.exists() else "no such file"
            raise TokenizerError(f"{path}: {what}; expected a model folder with a tokenizer.json")
        if path.stat().st_size > _FILE_LIMIT:
            raise TokenizerError(f"{path}: expected at most {_FILE_LIMIT} bytes, found {path.stat().st_size}")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read: {error}") from error


def parse_json(path: Path, text: str) -> dict[str, Any]:
    """A JSON object. Raises TokenizerError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: broken or truncated: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content

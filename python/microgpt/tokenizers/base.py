"""What every tokenizer can do, and how one is found in a model folder."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from microgpt import system
from microgpt.errors import StorageError, TokenizerError
from microgpt.tokenizers.chat import Messages, choose, render

_FILE_LIMIT = 256 << 20  # bytes; the largest public tokenizer.json are about 35 MB
_SHOWN = 5
_HALVES = re.compile("[\ud800-\udfff]")


def check_text(text: Any) -> str:
    """The text, if it is one that UTF-8 can write. Raises TokenizerError naming the character and its position."""
    if not isinstance(text, str):
        raise TokenizerError(f"expected a text, got {type(text).__name__}")
    half = None if text.isascii() else _HALVES.search(text)
    if half:
        raise TokenizerError(
            f"character {half.start()}, U+{ord(half[0]):04X}, is half of a surrogate pair, which is no text: read the "
            "input as UTF-8 (errors='replace' makes U+FFFD of what is not)"
        )
    return text


class Tokenizer(ABC):
    """Ids 0…`vocab_size`-1 for text. `bos_id` and `eos_id` are None where the vocabulary has no such token.

    Text is always content: the spelling of a control token in it never becomes the control token.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    special_ids: frozenset[int]
    max_length: int | None = None  # tokens a model accepts; noted in tokenizer_config.json
    more_stop_ids: frozenset[int] = frozenset()  # tokens besides `eos_id` that end what a model writes: a turn's end
    chat_templates: dict[str, str]  # Jinja texts by name; "default" is the one for most chats

    _adds_bos = True  # where there is a `bos_id`
    _controls: Mapping[str, int] = MappingProxyType({})  # tokens that steer a model, by their spelling
    _shown: frozenset[str] = frozenset()  # those of them that decoding does not leave out

    def __new__(cls, *_: Any, **__: Any) -> Self:
        made = super().__new__(cls)
        made.chat_templates = {}
        return made

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end what a model writes."""
        return self.more_stop_ids | ({self.eos_id} if self.eos_id is not None else frozenset())

    @property
    def adds_bos(self) -> bool:
        """Whether a text for the model begins with `bos_id`."""
        return self._adds_bos and self.bos_id is not None

    @adds_bos.setter
    def adds_bos(self, value: bool) -> None:
        self._adds_bos = value

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids before and after a whole text, as an encoder reads it: [CLS] and [SEP], say."""
        return self._edge("bos", self.adds_bos), []

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def _files(self) -> dict[str, str]:
        """What a folder needs for this tokenizer: contents by name, subfolders included."""
        default = self.chat_templates.get("default")
        found = {} if default is None else {"chat_template.jinja": default}
        more = {name: text for name, text in self.chat_templates.items() if name != "default"}
        return found | {f"additional_chat_templates/{name}.jinja": text for name, text in more.items()}

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """The ids of `text`, between the beginning and end tokens where asked.

        Raises TokenizerError naming the characters (and their positions) that the vocabulary does not cover, or that
        are half of a surrogate pair.
        """
        return [*self._edge("bos", add_bos), *self._encode(check_text(text)), *self._edge("eos", add_eos)]

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

    def render_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **values: Any,
    ) -> str:
        """The text of a chat as its template writes it, with control tokens spelled out. See apply_chat_template."""
        text, marks = self._render(messages, tools, add_generation_prompt, template, values)
        for mark, meant in marks.items():
            text = text.replace(mark, meant)
        return text

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **values: Any,
    ) -> list[int]:
        """The ids of a chat: `messages` are dictionaries with a role and content.

        `tools` are JSON schemas; `add_generation_prompt` begins the assistant's turn; `template` names one of
        `chat_templates`, by default the one for tools where tools are given; further `values` (enable_thinking=False)
        are the template's. What messages, tools and values say is text: the spelling of a control token in them
        never becomes that token. Raises TemplateError, with the template's own words where it refuses the messages.
        """
        text, marks = self._render(messages, tools, add_generation_prompt, template, values)
        return self.encode_marked(text, marks)

    def _render(
        self, messages: Messages, tools: Any, prompt: bool, template: str | None, values: dict[str, Any]
    ) -> tuple[str, dict[str, str]]:
        chosen = choose(self.chat_templates, template, bool(tools))
        given = {"tools": tools, "documents": None, **values, "add_generation_prompt": prompt}
        own = self._controls.keys() - self._shown
        return render(chosen, messages, given, self._template_values(), self._controls.keys(), own)

    def encode_marked(self, text: str, marks: Mapping[str, str]) -> list[int]:
        """The ids of a rendered chat. Control tokens spelled in `text` are meant; characters of `marks` stand for
        text that is not, whatever it spells. Raises TokenizerError.
        """
        found = []
        for number, part in enumerate(re.split("(" + "|".join(map(re.escape, self._controls)) + ")", text)):
            if number % 2:
                found.append(self._controls[part])
                continue
            for mark, meant in marks.items():
                part = part.replace(mark, meant)
            found += self._encode(part)
        return found

    def _template_values(self) -> dict[str, str]:
        """Names that templates use for control tokens."""
        ends = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        spellings = {number: token for token, number in self._controls.items()}
        return {name: spellings[number] for name, number in ends.items() if number in spellings}

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
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
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

"""Any ``tokenizer.json`` of Hugging Face, run by their `tokenizers` library."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from microgpt.errors import MissingExtraError, TokenizerError
from microgpt.tokenizers.base import Tokenizer, token_text
from microgpt.tokenizers.charsmap import CharsMap

_VOCAB_LIMIT = 2**24
EXACT = "sentencepiece_normalization"  # in tokenizer_config.json: normalize as that library does, not as this one


class HubTokenizer(Tokenizer):
    """The tokenizer that the text of a ``tokenizer.json`` describes; `config` is its parsed
    tokenizer_config.json.

    Raises TokenizerError naming `where` for a broken file, MissingExtraError without the `tokenizers`
    library.
    """

    def __init__(
        self,
        text: str,
        config: dict[str, Any],
        where: str = "tokenizer.json",
        content: dict[str, Any] | None = None,  # `text`, where it is parsed already
    ) -> None:
        self._text, self._config, self._where = text, config, where
        library = _open(text, where)
        content = json.loads(text) if content is None else content
        self._before = _normalization(content, where) if config.get(EXACT) is True else None
        self._used = json.dumps(content, ensure_ascii=False) if self._before else text
        if self._before:
            library = _open(self._used, where)
        added = library.get_added_tokens_decoder()
        present = _numbers(content.get("model"), library).union(added)
        last = max(present, default=-1)
        if not 0 <= last < _VOCAB_LIMIT:
            raise TokenizerError(f"{where}: expected 1 to {_VOCAB_LIMIT} ids, found {last + 1}")
        self.vocab_size = last + 1
        self._present = None if len(present) == self.vocab_size else present
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self._specials = {added[number].content: number for number in self.special_ids}
        # What a chat's text may not spell: also tokens such as <tool_call> that are shown, but runs of spaces.
        self._controls = {token.content: number for number, token in added.items() if token.content.strip()}
        self._shown = frozenset(self._controls.keys() - self._specials.keys())
        post = self._post = content.get("post_processor")
        self._library = library
        self._names: dict[str, str] = {}
        if _reachable(content.get("model"), self._specials):
            self._library, self._names = self._sealed(self._specials)
        self._chat: tuple[Any, dict[str, str]] | None = None
        ids: dict[str, int | None] = {}
        for key in ("bos_token", "eos_token"):
            token = token_text(config, key)
            ids[key] = None if token is None else library.token_to_id(token)
            if token is not None and ids[key] is None:
                raise TokenizerError(f"{where}: {key} {token!r} is not in the vocabulary")
        self.bos_id, self.eos_id = ids["bos_token"], ids["eos_token"]
        self.adds_bos = _adds_bos(config, post, self.bos_id == self.eos_id, library)
        self._added_bos = self.adds_bos  # as the files say
        length = config.get("model_max_length")
        self.max_length = length if type(length) is int else None

    def _sealed(self, controls: dict[str, int]) -> tuple[Any, dict[str, str]]:
        """The library's tokenizer with names for `controls` that no text can spell, and what each name stands for."""
        seal = f"\U0010fffd{secrets.token_hex(16)}"
        names = {token: f"{seal}-{number};" for token, number in controls.items()}
        library = _open(json.dumps(_renamed(json.loads(self._used), names), ensure_ascii=False), self._where)
        for token, name in names.items():
            if library.token_to_id(name) != controls[token]:
                raise TokenizerError(f"{self._where}: {token[:40]!r} has two meanings in it")
        return library, {name: token for token, name in names.items()}

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """As the post-processor says, and without one as tokenizer_config.json does (add_bos_token, add_eos_token)."""
        if self._post is None:
            ends = self._config.get("add_eos_token") is True and self.eos_id is not None
            return super().frame[0], self._edge("eos", ends)
        made = guard("post-processor", lambda: self._library.encode("a", add_special_tokens=True))
        inner = [i for i, special in enumerate(made.special_tokens_mask) if not special] or [len(made.ids)]
        return made.ids[: inner[0]], made.ids[inner[-1] + 1 :]

    def _encode(self, text: str) -> list[int]:
        text = self._before(text) if self._before else text
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
            plain = list(map(self._before, texts)) if self._before else list(texts)
            found = guard("", lambda: self._library.encode_batch_fast(plain, add_special_tokens=False))
        except TokenizerError:
            return super().encode_many(texts, add_bos, add_eos)  # one by one, to find which it was
        return [np.array([*bos, *each.ids, *eos], np.int32) for each in found]

    def encode_marked(self, text: str, marks: Mapping[str, str]) -> list[int]:
        """As in the base class; ids are those of the library, which also looks at what stands around control tokens."""
        if self._chat is None:
            library, names = self._sealed({**self._controls, **self._specials})
            library.encode_special_tokens = False  # by their secret names, that is
            self._chat = library, {token: name for name, token in names.items()}
        library, secret = self._chat
        parts = [text]
        if secret:  # of several that begin at one place the longest, as the library does
            choice = "|".join(re.escape(each) for each in sorted(secret, key=len, reverse=True))
            parts = re.split(f"({choice})", text)
        for number, part in enumerate(parts):
            if number % 2:
                parts[number] = secret[part]
                continue
            for mark, meant in marks.items():
                part = part.replace(mark, meant)
            parts[number] = self._before(part) if self._before else part
        text = "".join(parts)
        ids: list[int] = guard("cannot encode this text", lambda: library.encode(text, add_special_tokens=False).ids)
        return ids

    def _decode(self, ids: list[int]) -> str:
        text: str = guard("cannot decode", lambda: self._library.decode(ids, skip_special_tokens=False))
        if self._names and "\U0010fffd" in text:
            for name, token in self._names.items():
                text = text.replace(name, token)
        return text

    def _has(self, token: int) -> bool:
        return 0 <= token < self.vocab_size if self._present is None else token in self._present

    def _template_values(self) -> dict[str, str]:
        found = {key: token_text(self._config, key) for key in self._config if key.endswith("_token")}
        return {key: value for key, value in found.items() if value is not None}

    def _files(self) -> dict[str, str]:
        config = {key: value for key, value in self._config.items() if key != "chat_template"}  # a file of its own
        if self.adds_bos != self._added_bos:
            config["add_bos_token"] = self.adds_bos
        if self.max_length is not None:
            config["model_max_length"] = self.max_length
        return {
            "tokenizer.json": self._text,
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
            **super()._files(),
        }


def _open(text: str, where: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError(
            f"{where}: this vocabulary needs the 'tokenizers' library; pip install tokenizers"
        ) from error
    library = guard(f"{where}: broken", lambda: tokenizers.Tokenizer.from_str(text))
    # Truncation or padding asked for by the file would change text behind the caller's back.
    library.no_truncation()
    library.no_padding()
    # Text is content: "<|endoftext|>" typed by a user is not the control token.
    library.encode_special_tokens = True
    return library


def _numbers(model: Any, library: Any) -> frozenset[int]:
    """The ids of a model's own tokens. Those of a large vocabulary are at hand; the library would copy every token."""
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict) and vocab and all(type(number) is int for number in vocab.values()):
        return frozenset(vocab.values())
    return frozenset(guard("broken", lambda: library.get_vocab(with_added_tokens=True)).values())


def _reachable(model: Any, specials: dict[str, int]) -> bool:
    """Whether the model itself, without added tokens, may cut a special token out of text."""
    if not isinstance(model, dict) or not specials:
        return False
    if model.get("type", "BPE") == "BPE" and not model.get("ignore_merges"):
        merges = model.get("merges", ())
        return any((m.replace(" ", "", 1) if isinstance(m, str) else "".join(m)) in specials for m in merges)
    vocab = model.get("vocab", ())
    return any(each in specials for each in (vocab if isinstance(vocab, dict) else (entry[0] for entry in vocab)))


def _normalization(content: dict[str, Any], where: str) -> CharsMap | None:
    """SentencePiece's own normalization in place of the library's, which is taken out of `content`."""
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    for number, step in enumerate(steps):
        if step.get("type") == "Precompiled":
            content["normalizer"] = {"type": "Sequence", "normalizers": [*steps[:number], *steps[number + 1 :]]}
            return CharsMap(base64.b64decode(step["precompiled_charsmap"]), where)
    return None


def _pair(merge: Any) -> Sequence[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _renamed(content: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A tokenizer.json in which the tokens `names` are called otherwise; they keep their ids."""
    for token in content.get("added_tokens", ()):
        if token["content"] in names:
            token.update(content=names[token["content"]], normalized=False, single_word=False)
    model = content["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = ((each, *_pair(each)) for each in model["merges"])
        model["merges"] = [m for m, a, b in pairs if a + b not in names and a not in names and b not in names]
    return content


def _adds_bos(config: dict[str, Any], post: Any, same_ends: bool, library: Any) -> bool:
    """Whether a text begins with the beginning token: what the files say; without a word, where one token does both
    (as in vocabularies that are trained here).
    """
    stated = config.get("add_bos_token")
    if isinstance(stated, bool):
        return stated
    if post is None:
        return same_ends
    first = guard("post-processor", lambda: library.encode("", add_special_tokens=True).tokens)[:1]
    return bool(first) and first[0] == token_text(config, "bos_token")


def guard(what: str, call: Callable[[], Any]) -> Any:
    """Run a call into the library; whatever goes wrong there is a TokenizerError."""
    try:
        return call()
    except BaseException as error:
        # A Rust panic arrives as a PanicException, which is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{what}: {error}") from error
        raise

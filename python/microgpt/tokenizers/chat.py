"""Messages of a chat to text and ids, such that what a message says never becomes a control token.

Spellings of control tokens in messages are replaced by characters that occur nowhere else before the template sees
them. What the template then spells is meant; what those characters stand for is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from microgpt.errors import TemplateError
from microgpt.tokenizers.templates import RENDERER

Messages = Sequence[Mapping[str, Any]]
MOST_MESSAGES = 4096
_DEEPEST = 64
_PRIVATE = range(0x100000, 0x10FFFE)  # code points that no script uses


def choose(templates: Mapping[str, str], name: str | None, tools: bool) -> str:
    """The template called `name`; without a name that for tools where there are some, else the default.

    Raises TemplateError where there is none.
    """
    if name is None:
        name = "tool_use" if tools and "tool_use" in templates else "default"
    if name not in templates:
        known = f"; known: {', '.join(templates)}" if templates else ""
        raise TemplateError(f"this tokenizer has no chat template {name!r}{known}")
    return templates[name]


def checked(messages: Any) -> list[dict[str, Any]]:
    """The messages as plain dictionaries, without keys that are None. Raises TemplateError for anything else."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TemplateError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if not 1 <= len(messages) <= MOST_MESSAGES:
        raise TemplateError(f"messages: expected 1 to {MOST_MESSAGES}, got {len(messages)}")
    found = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TemplateError(f"message {number}: expected a dictionary with a role, got {str(message)[:60]!r}")
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list, tuple)):
            raise TemplateError(f"message {number}: content: expected text or parts, got {type(content).__name__}")
        plain = _plain(message, f"message {number}")
        found.append({key: value for key, value in plain.items() if value is not None})
    return found


def render(
    template: str,
    messages: Messages,
    values: Mapping[str, Any],
    trusted: Mapping[str, str],
    controls: Iterable[str] = (),
    own: Iterable[str] = (),
) -> tuple[str, dict[str, str]]:
    """The text of a chat, and what characters in it stand for (see the module).

    `controls` are spellings to seal in what users, tools and documents say; `own` those in what the assistant said,
    where <think> may be meant. `values` holds what else the template sees, sealed too; `trusted` what may be control
    tokens, such as bos_token. Raises TemplateError.
    """
    plain = [_reasoning(each) for each in checked(messages)]
    rest = {key: _plain(value, key) for key, value in values.items()}
    seal = _Seal(template, [plain, rest])
    strict, lenient = seal.over(controls), seal.over(own)
    sealed = [lenient(each) if each["role"] == "assistant" else strict(each) for each in plain]
    for message, before in zip(sealed, plain, strict=True):
        message["role"] = before["role"]  # compared by templates; checked to be no spelling below
        if any(each in message["role"] for each in controls):
            raise TemplateError(f"role {message['role'][:60]!r}: a control token is no role")
    return RENDERER.render(template, {**trusted, **strict(rest), "messages": sealed}), seal.meaning


def _reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under each of the names that templates read."""
    names = ("reasoning_content", "thinking", "reasoning")
    given = next((message[name] for name in names if name in message), None)
    return message if given is None else {"thinking": given, **message, "reasoning_content": given}


class _Seal:
    """Gives out characters that occur in none of the texts, and remembers what they stand for."""

    def __init__(self, template: str, values: Any) -> None:
        used = {each for text in [template, *_strings(values)] for each in text if ord(each) >= _PRIVATE.start}
        self._free = (chr(point) for point in _PRIVATE if chr(point) not in used)
        self._marks: dict[str, str] = {}

    @property
    def meaning(self) -> dict[str, str]:
        return {mark: text for text, mark in self._marks.items()}

    def _mark(self, text: str) -> str:
        if text not in self._marks:
            self._marks[text] = next(self._free)
        return self._marks[text]

    def over(self, spellings: Iterable[str]) -> Any:
        """A function that seals the spellings in every text of a value.

        A text that ends with the beginning of one, or begins with the end of one, gets a mark there that stands for
        nothing, so that no spelling arises where a template puts texts side by side.
        """
        known = sorted({each for each in spellings if each}, key=len, reverse=True)
        if not known:
            return lambda value: value
        whole = re.compile("|".join(map(re.escape, known)))
        heads = {each[:length] for each in known for length in range(1, len(each))}
        tails = {each[length:] for each in known for length in range(1, len(each))}
        longest = len(known[0])

        def text(value: str) -> str:
            if not value:
                return value
            sealed = whole.sub(lambda match: self._mark(match[0]), value)
            core = sealed.strip()  # templates trim
            if not core:
                return sealed
            lead = sealed[: sealed.index(core)]
            tail = sealed[len(lead) + len(core) :]
            starts = any(core[:length] in tails for length in range(1, min(longest, len(core) + 1)))
            ends = any(core[-length:] in heads for length in range(1, min(longest, len(core) + 1)))
            return f"{lead}{self._mark('') if starts else ''}{core}{self._mark('') if ends else ''}{tail}"

        def seal(value: Any) -> Any:
            if isinstance(value, str):
                return text(value)
            if isinstance(value, list):
                return [seal(each) for each in value]
            if isinstance(value, dict):
                # Names such as "content" are the template's; one that spells a control token is not.
                return {whole.sub(lambda m: self._mark(m[0]), key): seal(each) for key, each in value.items()}
            return value

        return seal


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Only what JSON has, rebuilt: objects with methods are nothing for a template."""
    if depth > _DEEPEST:
        raise TemplateError(f"{where}: nested more than {_DEEPEST} deep")
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        if any("\ud800" <= each <= "\udfff" for each in text):
            raise TemplateError(f"{where}: expected text that UTF-8 can write, found half a surrogate pair")
        return text
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TemplateError(f"{where}: expected names that are text")
        return {_plain(key, where): _plain(each, where, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, where, depth + 1) for each in value]
    raise TemplateError(f"{where}: expected JSON types, got {type(value).__name__}")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _strings(each)

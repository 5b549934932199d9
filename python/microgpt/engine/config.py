"""The options of generation: one dataclass, and the one place that makes it of keywords."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from ..errors import ConfigError, nearest
from .sampler import Sampling, shown, whole

F = TypeVar("F", bound=Callable[..., Any])


class GenerationOptions(TypedDict, total=False):
    """The keywords of LanguageModel.generate for type checkers; a test compares them with GenerationConfig."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    max_tokens: int
    stop: str | Sequence[str]
    ignore_eos: bool


@dataclass(frozen=True)
class GenerationConfig(Sampling):
    """Sampling, and where a text ends: at the end token (unless `ignore_eos`), after `max_tokens`, before a `stop`.

    `stop`: one string or several; kept as a tuple. Raises ConfigError for an impossible value.
    """

    max_tokens: int = 64
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "max_tokens", whole("max_tokens", self.max_tokens, lambda n: n >= 1, "at least 1"))
        given = self.stop
        stop = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else None
        if stop is None or not all(isinstance(each, str) and each for each in stop):
            raise ConfigError(f"stop: expected a string or a list of strings, none empty, got {shown(given)}")
        if any("\ud800" <= char <= "\udfff" for each in stop for char in each):
            raise ConfigError(f"stop: expected text that UTF-8 can write, got {shown(given)}")
        object.__setattr__(self, "stop", stop)
        if not isinstance(self.ignore_eos, bool):
            raise ConfigError(f"ignore_eos: expected True or False, got {shown(self.ignore_eos)}")

    @classmethod
    def of(cls, options: GenerationOptions) -> GenerationConfig:
        """Keywords as a configuration; an unknown one is a ConfigError that names the nearest."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        return cls(**options)


def shows_options(function: F) -> F:
    """Let help() show the fields of GenerationConfig, with types and defaults, in place of **options."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    fields = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in dataclasses.fields(GenerationConfig)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore[attr-defined]
    return function

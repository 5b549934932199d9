"""One language to select modules or parameters by name: for decay groups, freezing, adapters, quantization.

A filter is a glob over dotted names ("blocks.*.mixer.q", "*.bias"), "re:PATTERN" (full match), a function of
(name, thing), a tuple or list of filters (any of them), or Not(filter).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

from .errors import ConfigError

Filter: TypeAlias = Union[str, Callable[[str, Any], bool], "Not", Sequence["Filter"]]


@dataclass(frozen=True)
class Not:
    """Everything that `inner` does not select."""

    inner: Any


def matches(where: Filter, name: str, thing: Any = None) -> bool:
    """Whether the filter selects `name`. Raises ConfigError for something that is not a filter."""
    if isinstance(where, str):
        if where.startswith("re:"):
            try:
                return re.fullmatch(where[3:], name) is not None
            except re.error as error:
                raise ConfigError(f"filter {where!r}: not a regular expression ({error})") from None
        return fnmatch.fnmatchcase(name, where)
    if isinstance(where, Not):
        return not matches(where.inner, name, thing)
    if callable(where):
        return bool(where(name, thing))
    if isinstance(where, Sequence):
        return any(matches(each, name, thing) for each in where)
    raise ConfigError(f"not a filter: {where!r}; use a glob, 're:...', a function, Not(...) or a list of them")

"""A named table that names the nearest entry when asked for one it does not have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from .errors import ConfigError, UsageError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Name -> thing, in the order of registration. `kind` is used in messages ("optimizer", "family")."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register `item`. Raises UsageError if the name is taken."""
        if name in self._items:
            raise UsageError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = item
        return item

    def get(self, name: str) -> T:
        """The entry called `name`. Raises ConfigError with the known and the nearest names."""
        try:
            return self._items[name]
        except (KeyError, TypeError):  # a list is no key of a dictionary
            known = ", ".join(sorted(self._items))
            raise ConfigError(f"unknown {self.kind} {name!r}{nearest(name, self._items)}; known: {known}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> Iterator[tuple[str, T]]:
        """Pairs of name and entry."""
        return iter(self._items.items())

"""Checks of settings: each raises ConfigError with what was expected and what was given."""

from __future__ import annotations

import math
import reprlib
import sys

from ..errors import ConfigError


def require(condition: bool, what: str, expected: object, got: object) -> None:
    """Raise ConfigError unless `condition`."""
    if not condition:
        raise ConfigError(f"{what}: expected {expected}, got {_shown(got)}")


_short = reprlib.Repr()  # a configuration file can name one list a billion times
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 2, 8, 8, 8
_short.maxstring = _short.maxother = _short.maxlong = 200


def _shown(value: object) -> str:
    try:
        return _short.repr(value)
    except ValueError:  # a number too long for Python to write
        return f"a very long {type(value).__name__}"


def whole(what: str, value: object, least: int = 1, most: int = 2**31 - 1) -> None:
    """Raise ConfigError unless value is an int in [least, most]."""
    ok = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    require(ok, what, f"a whole number from {least} to {most}", value)


def number(what: str, value: object, least: float, most: float = math.inf) -> None:
    """Raise ConfigError unless value is a finite number in [least, most]."""
    ok = False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        ok = abs(value) <= sys.float_info.max and least <= value <= most
    require(ok, what, f"a number from {least} to {most}", value)

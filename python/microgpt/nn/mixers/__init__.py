"""Mixers: what moves information between tokens. A new one is a file here that registers its spec kind."""

from __future__ import annotations

from ...registry import Registry
from ..module import Module

# spec kind -> module class, called with (spec, width, index, std, out_std, dtype, max_positions)
MIXERS: Registry[type[Module]] = Registry("mixer")

from . import attention as _attention  # noqa: E402, F401
from . import differential as _differential  # noqa: E402, F401

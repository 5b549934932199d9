"""Feed-forward layers: what works on each token alone. A new one is a file here that registers its spec kind."""

from __future__ import annotations

from ...registry import Registry
from ..module import Module

# spec kind -> module class, called with (spec, width, std, out_std, dtype)
FFNS: Registry[type[Module]] = Registry("feed-forward")

from . import mlp as _mlp  # noqa: E402, F401
from . import xielu as _xielu  # noqa: E402, F401

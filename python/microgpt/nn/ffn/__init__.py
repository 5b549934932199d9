"""Feed-forward layers: what works on each token alone. A new one is a file here: a spec, and a module it describes."""

from __future__ import annotations

import importlib
import pkgutil

from ...registry import Registry
from ..module import Module
from ..spec import registrar

FFNS: Registry[type[Module]] = Registry("feed-forward")  # spec kind -> module class, built from (spec, place)
feed_forward = registrar(FFNS)  # @feed_forward(Spec) above a module

# Every file of this folder registers what it defines when it is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

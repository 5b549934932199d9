"""Mixers: what moves information between tokens. A new one is a file here: a spec, and a module that it describes."""

from __future__ import annotations

import importlib
import pkgutil

from ...registry import Registry
from ..module import Module
from ..spec import registrar

MIXERS: Registry[type[Module]] = Registry("mixer")  # spec kind -> module class, built from (spec, place)
mixer = registrar(MIXERS)  # @mixer(Spec) above a module

# Every file of this folder registers what it defines when it is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

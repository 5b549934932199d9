"""microgpt: a language model's whole life on an ordinary CPU.

Importing is cheap and silent; names load what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it. The public face of DESIGN: what is listed here is a promise.
_EXPORTS = {
    "Tensor": "tensors",
    "tensor": "tensors",
    "no_grad": "autograd",
    "MicrogptError": "errors",
    "load": "api",
    "train": "api",
    "quantize": "api",
    "info": "api",
    "viz": "api",
    "LanguageModel": "api",
    "Callback": "training.callback",
}
_MODULES = ("ops", "nn", "models", "optim", "data", "tokenizers", "io", "training", "engine", "errors", "api", "scalar")

if TYPE_CHECKING:
    from .api import LanguageModel, info, load, quantize, train, viz
    from .autograd import no_grad
    from .errors import MicrogptError
    from .tensors import Tensor, tensor
    from .training.callback import Callback

__all__ = [
    "Callback",
    "LanguageModel",
    "MicrogptError",
    "Tensor",
    "info",
    "load",
    "no_grad",
    "quantize",
    "tensor",
    "train",
    "viz",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'microgpt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, *_MODULES])

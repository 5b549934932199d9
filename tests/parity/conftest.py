"""These tests compare with other libraries: one that is missing is an error, not a skip."""

from importlib.util import find_spec

import pytest

NEEDED = ("torch", "transformers", "gguf", "sentencepiece", "tiktoken", "cyllama", "rwkv")

if lacking := [name for name in NEEDED if find_spec(name) is None]:
    raise pytest.UsageError(f"tests/parity needs {', '.join(lacking)}: make parity installs what it needs")

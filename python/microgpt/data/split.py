"""Setting documents aside for validation, and the seeded order that everything random about data uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from microgpt.errors import ConfigError

_SPLIT_STREAM = 2**64 - 1  # no epoch has this number, so the split and the epochs draw from different streams


def permutation(n: int, seed: int, stream: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A permutation of 0…n-1 fixed by `seed` and `stream` (each below 2**64), the same on every machine;
    int64 (n,).
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed: expected 0 <= seed < 2**64, got {seed}")
    # Raw Philox words and a stable sort: NumPy may change its shuffles, but not these.
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(n)
    return np.argsort(bits, kind="stable")


def split(documents: list[str], fraction: float = 0.1, seed: int = 0) -> tuple[list[str], list[str]]:
    """Split into (train, validation) by document, in their given order; the same seed makes the same split.

    A positive `fraction` (below 1) sets at least one document aside, and at least one stays for training.
    A single document is cut instead: its tail validates. Raises ConfigError for an impossible fraction or
    seed.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"validation fraction: expected 0 <= fraction < 1, got {fraction}")
    if fraction == 0:
        return list(documents), []
    if len(documents) == 1:
        text = documents[0]
        cut = len(text) - min(len(text) - 1, max(1, round(len(text) * fraction)))
        return [text[:cut]], [text[cut:]] if cut < len(text) else []
    count = min(len(documents) - 1, max(1, round(len(documents) * fraction)))
    chosen = set(permutation(len(documents), seed, _SPLIT_STREAM)[: max(count, 0)].tolist())
    train = [text for i, text in enumerate(documents) if i not in chosen]
    return train, [text for i, text in enumerate(documents) if i in chosen]

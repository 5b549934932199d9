"""Setting documents aside for validation, and the seeded order that everything random about data uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from microgpt.errors import ConfigError

Longs = np.ndarray[Any, np.dtype[np.int64]]

SORTED = 1 << 20  # up to here an order is a sorted array of random words; beyond, a bijection without memory
_SPLIT_STREAM = 2**64 - 1  # no epoch has this number, so the split and the epochs draw from different streams
# The mixing steps of SplitMix64 (Steele, Lea, Flood 2014), which NumPy's wrapping uint64 gives exactly.
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def permutation(n: int, seed: int, stream: int) -> Longs:
    """A permutation of 0…n-1 fixed by `seed` and `stream` (each below 2**64), the same on every machine;
    int64 (n,).
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed: expected 0 <= seed < 2**64, got {seed}")
    # Raw Philox words and a stable sort: NumPy may change its shuffles, but not these.
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(n)
    return np.argsort(bits, kind="stable")


def scattered(numbers: Longs, n: int, seed: int, stream: int) -> Longs:
    """Where a bijection of 0…n-1 fixed by `seed` and `stream` sends `numbers`: a shuffle that needs no memory.

    A Feistel network of six rounds on the smallest even number of bits that holds n; a number sent outside
    is sent again until it falls inside (Black & Rogaway, Ciphers with arbitrary finite domains, 2002).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(6)

    def send(x: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        left, right = x >> half, x & mask
        for key in keys:
            mixed = right ^ key
            for shift, factor in _MIX:
                mixed = (mixed ^ (mixed >> shift)) * factor
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        return (left << half) | right

    found = send(numbers.astype(np.uint64))
    while len(outside := np.flatnonzero(found >= np.uint64(n))):
        found[outside] = send(found[outside])
    return found.astype(np.int64)


def check_fraction(fraction: float) -> None:
    """Raise ConfigError unless 0 <= fraction < 1."""
    if not 0 <= fraction < 1:
        raise ConfigError(f"validation fraction: expected 0 <= fraction < 1, got {fraction}")


def held_out(count: int, fraction: float, seed: int) -> Longs:
    """Numbers of the documents among `count` that validate, in random order: the same choice as :func:`split`.

    Beyond 2**20 documents the choice is made by :func:`scattered`, so that memory follows what is chosen.
    """
    check_fraction(fraction)
    if fraction == 0 or count < 2:
        return np.empty(0, np.int64)
    chosen = min(count - 1, max(1, round(count * fraction)))
    if count <= SORTED:
        return permutation(count, seed, _SPLIT_STREAM)[:chosen]
    return scattered(np.arange(chosen), count, seed, _SPLIT_STREAM)


def split(documents: list[str], fraction: float = 0.1, seed: int = 0) -> tuple[list[str], list[str]]:
    """Split into (train, validation) by document, in their given order; the same seed makes the same split.

    A positive `fraction` (below 1) sets at least one document aside, and at least one stays for training.
    A single document is cut instead: its tail validates. Raises ConfigError for an impossible fraction or
    seed.
    """
    check_fraction(fraction)
    if fraction == 0:
        return list(documents), []
    if len(documents) == 1:
        text = documents[0]
        cut = len(text) - min(len(text) - 1, max(1, round(len(text) * fraction)))
        return [text[:cut]], [text[cut:]] if cut < len(text) else []
    chosen = set(held_out(len(documents), fraction, seed).tolist())
    train = [text for i, text in enumerate(documents) if i not in chosen]
    return train, [text for i, text in enumerate(documents) if i in chosen]

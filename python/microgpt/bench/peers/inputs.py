"""Numbers that both sides compute with: the same for everybody, made from seeds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

COLD_BYTES = 192 << 20  # what a cold case walks through before it comes to the same memory again: beyond every cache
SAMPLES = 64  # numbers of a result that are compared


@functools.lru_cache(maxsize=4)
def uniform(seed: int, *shape: int) -> Floats:
    """float32 in [-1, 1), to be copied: several sets of arrays begin with the same numbers."""
    return np.random.default_rng(seed).random(shape, np.float32) * np.float32(2) - np.float32(1)


def ids(seed: int, count: int, below: int) -> Ints:
    """`count` int32 in [0, below)."""
    return np.random.default_rng(seed).integers(0, below, count).astype(np.int32)


def rope_tables(tokens: int, half: int) -> tuple[Floats, Floats]:
    """cos and sin (tokens, half) of rotary positions, base 10,000."""
    angles = np.arange(tokens)[:, None] * 10000.0 ** (-np.arange(half) / half)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def in_turn(steps: list[Callable[[], object]]) -> Callable[[], object]:
    """One step that is each of `steps` in turn."""
    turn = itertools.cycle(steps)
    return steps[0] if len(steps) == 1 else lambda: next(turn)()


def places(size: int) -> npt.NDArray[np.int64]:
    """Which elements of a flat result are compared."""
    return np.linspace(0, size - 1, min(size, SAMPLES)).astype(np.int64)


def sample(values: Any) -> list[float]:
    """Elements of a float32 result, for the comparison."""
    flat = np.asarray(values, np.float32).reshape(-1)
    return [float(x) for x in flat[places(flat.size)]]


# What a kind of case is made by, and the arguments after sizes and type: both sides have functions of these names.
KINDS: dict[str, tuple[str, tuple[bool, ...]]] = {
    "gemm": ("gemm", ()),
    "attention": ("attention", ()),
    "decode": ("decode", ()),
    "layer_norm": ("norm", (True, False)),
    "layer_norm_backward": ("norm", (True, True)),
    "rms_norm": ("norm", (False, False)),
    "rms_norm_backward": ("norm", (False, True)),
    "gelu": ("gelu", (False,)),
    "gelu_backward": ("gelu", (True,)),
    "silu_glu": ("silu_glu", (False,)),
    "silu_glu_backward": ("silu_glu", (True,)),
    "rope": ("rope", ()),
    "embedding": ("embedding", ()),
    "dropout": ("dropout", ()),
    "adamw": ("adamw", ()),
    "gradient_norm": ("gradient_norm", ()),
    "projection_loss": ("projection_loss", ()),
}


def make(functions: Sequence[Callable[..., Any]], request: dict[str, Any]) -> list[Any]:
    """The copies of a request's case, by the one of `functions` that its kind names."""
    name, more = KINDS[request["kind"]]
    (function,) = (each for each in functions if each.__name__ == name)
    return [function(request["sizes"], request["dtype"], *more) for _ in range(request["copies"])]

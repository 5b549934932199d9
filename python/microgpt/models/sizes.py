"""`--size`: layers, heads and width of a model with about so many parameters."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from ..errors import ConfigError, nearest
from .zoo import maker

NAMED = {"tiny": "1m", "small": "10m", "medium": "30m", "large": "124m"}
# OpenAI's GPT-2 family keeps its own shapes (Radford et al. 2019, table 2), whatever the vocabulary.
GPT2 = {"124m": (12, 12, 768), "355m": (24, 16, 1024), "774m": (36, 20, 1280), "1558m": (48, 25, 1600)}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
ASPECT = 56  # width over layers; GPT-2 has 64, small models do better a little deeper
CLOSE = 0.05


class Dimensions(NamedTuple):
    """Shape of a model."""

    layers: int
    heads: int
    width: int


def parse_size(size: str) -> int:
    """Parameters meant by "10m", "1.5M", "250k", "2e6" or a name. Raises ConfigError."""
    text = NAMED.get(size.lower(), size.lower()).strip().replace(",", "").replace("_", "")
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?(?:e[0-9]{1,2})?)([kmb]?)", text)
    count = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 1.0 <= count <= 1e12:
        names = ", ".join(NAMED)
        raise ConfigError(f"size: expected a number such as 10m or 250k, or one of {names}; got {size!r}"
                          f"{nearest(size, NAMED)}")  # fmt: skip
    return round(count)


def dimensions(model: str, size: str, vocab_size: int, block_size: int) -> Dimensions:
    """The shape whose parameter count is within 5 % of `size` and looks most like a model: its width over its layers
    nearest to 56; where none is so near, the nearest in count. Raises ConfigError when the vocabulary alone is larger.
    """
    key = NAMED.get(size.lower(), size.lower())
    if model == "gpt" and key in GPT2:
        return Dimensions(*GPT2[key])
    wanted = parse_size(size)
    found: list[tuple[bool, float, Dimensions]] = []
    least = math.inf
    maker(model)
    for width in _widths():
        try:
            one, two = (count(model, Dimensions(n, _heads(width), width), vocab_size, block_size) for n in (1, 2))
        except ConfigError:  # a family may not have a shape that others have
            continue
        least = min(least, one)
        layers = min(1024, max(1, round((wanted - one) / (two - one)) + 1))
        shape = Dimensions(layers, _heads(width), width)
        held = count(model, shape, vocab_size, block_size)
        if layers > 2 and held != one + (layers - 1) * (two - one):  # blocks of several kinds: once more, by their mean
            layers += round((wanted - held) / ((held - one) / (layers - 1)))
            shape = Dimensions(min(1024, max(1, layers)), _heads(width), width)
            held = count(model, shape, vocab_size, block_size)
        off = abs(math.log(held / wanted))
        near = off <= math.log1p(CLOSE)
        found.append((not near, abs(math.log(width / shape.layers / ASPECT)) if near else off, shape))
    far, off, shape = min(found)
    if far and off > math.log(2.0):
        raise ConfigError(f"size: {size} is {wanted:,} parameters, but the smallest {model} with a vocabulary of "
                          f"{vocab_size:,} has {int(least):,}")  # fmt: skip
    return shape


def count(model: str, shape: Dimensions, vocab_size: int, block_size: int) -> int:
    """Parameters of a ready-made model."""
    config = maker(model)(vocab_size, shape.width, shape.layers, shape.heads, block_size, 0.0)
    return config.num_parameters()


def _widths() -> list[int]:
    return [*range(16, 96, 16), *range(96, 512, 32), *range(512, 2048, 128), *range(2048, 8193, 256)]


def _heads(width: int) -> int:
    """Heads 64 wide where that makes an even number of them, 32 or 16 wide in smaller models."""
    if width >= 256 and width % 128 == 0:
        return width // 64
    return width // 32 if width >= 64 and width % 32 == 0 else width // 16

"""Descriptions of rotary positions; positions.py makes the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .checks import number, require, whole


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions were stretched to a longer context; fields that a `kind` does not use are ignored.

    linear (arXiv:2306.15595) divides frequencies by `factor`; dynamic raises theta beyond the original context; yarn
    (arXiv:2309.00071) and llama3 divide the slow ones; longrope (arXiv:2402.13753) divides each by a factor of its own;
    proportional divides by `factor` and turns the first `share` of the pairs only, at frequencies of the whole head;
    ntk raises theta by factor^(dims / (dims - 2)).
    `attention_factor` multiplies queries and keys; None derives it as the method says.
    """

    kind: str
    factor: float = 1.0
    original: int = 0  # positions the model was first trained on; 0: its max_positions
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    share: float = 1.0

    KINDS: ClassVar[tuple[str, ...]] = ("linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "ntk")

    def __post_init__(self) -> None:
        require(self.kind in self.KINDS, "rope scaling kind", "one of " + ", ".join(self.KINDS), self.kind)
        number("rope scaling factor", self.factor, 1e-6)
        number("rope scaling share", self.share, 0.0, 1.0)
        whole("rope scaling original", self.original, 0)
        for name in ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"):
            number(f"rope scaling {name}", getattr(self, name), 1e-6)
        for name in ("mscale", "mscale_all_dim"):
            number(f"rope scaling {name}", getattr(self, name), 0.0)
        if self.attention_factor is not None:
            number("rope scaling attention_factor", self.attention_factor, 1e-6)
        require(isinstance(self.truncate, bool), "rope scaling truncate", "True or False", self.truncate)
        for name in ("short_factor", "long_factor"):
            values = getattr(self, name)
            require(isinstance(values, (tuple, list)), f"rope scaling {name}", "a list of numbers", values)
            for value in values:
                number(f"rope scaling {name}", value, 1e-6)
            object.__setattr__(self, name, tuple(values))
        if self.kind == "llama3":
            require(self.high_freq_factor > self.low_freq_factor, "rope scaling high_freq_factor",
                    f"more than low_freq_factor {self.low_freq_factor}", self.high_freq_factor)  # fmt: skip
        if self.kind == "longrope":
            require(len(self.short_factor) == len(self.long_factor) > 0, "rope scaling long_factor",
                    f"as many numbers as short_factor, {len(self.short_factor)}", len(self.long_factor))  # fmt: skip
            require(self.original != 1, "rope scaling original", "at least 2 for longrope", self.original)


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions: the first `dims` components of each head turn, at frequencies theta^(-2i/dims), scaled.

    `reverse` turns them the other way (nanochat).
    """

    theta: float = 10000.0
    dims: int = 0  # 0: the whole head
    interleaved: bool = False
    scaling: RopeScaling | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        number("rope theta", self.theta, 1e-6)
        whole("rope dims", self.dims, 0)
        require(self.dims % 2 == 0, "rope dims", "an even number", self.dims)
        if self.scaling is not None and self.scaling.kind == "yarn":
            require(self.theta > 1.0, "rope theta", "more than 1 for yarn", self.theta)

    def check(self, head_dim: int) -> None:
        """Raises ConfigError unless it fits heads of this width."""
        require(self.dims <= head_dim, "rope dims", f"at most the head width {head_dim}", self.dims)
        require(self.dims > 0 or head_dim % 2 == 0, "attention head_dim", "an even width for rope", head_dim)
        half = (self.dims or head_dim) // 2
        if self.scaling is not None and self.scaling.kind == "longrope":
            found = len(self.scaling.long_factor)
            require(found == half, "rope scaling long_factor", f"{half} numbers, one a pair", found)

"""Learning-rate schedules: factor of the peak rate at a step, from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ConfigError, UsageError
from ..registry import Registry


@dataclass(frozen=True)
class Schedule:
    """`kind` constant, linear, cosine or wsd after `warmup` linear steps; ends at `floor` times the peak.

    wsd (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395) holds the peak and falls linearly over the last
    `decay` part of the steps. Step 0 is the first; a step beyond `steps` stays at the end.
    """

    kind: str
    steps: int
    warmup: int = 0
    floor: float = 0.0
    decay: float = 0.2

    def __post_init__(self) -> None:
        KINDS.get(self.kind)
        if self.steps < 1:
            raise ConfigError(f"schedule: expected at least one step, got {self.steps}")
        if not 0 <= self.warmup <= self.steps:
            raise ConfigError(f"warmup: expected 0 to {self.steps} steps, got {self.warmup}")
        if not 0.0 <= self.floor <= 1.0:
            raise ConfigError(f"min_lr: expected at most the peak learning rate, got {self.floor} of it")
        if not 0.0 < self.decay <= 1.0:
            raise ConfigError(f"decay: expected a part in (0, 1], got {self.decay}")

    def __call__(self, step: int) -> float:
        """The factor at `step`, which counts from 0."""
        if step < 0:
            raise UsageError(f"schedule: expected a step of at least 0, got {step}")
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (1.0 - self.floor) * KINDS.get(self.kind)(progress, self.decay)


KINDS: Registry[Callable[[float, float], float]] = Registry("schedule")
KINDS.add("constant", lambda progress, decay: 1.0)
KINDS.add("linear", lambda progress, decay: 1.0 - progress)
KINDS.add("cosine", lambda progress, decay: 0.5 * (1.0 + math.cos(math.pi * progress)))
KINDS.add("wsd", lambda progress, decay: min(1.0, (1.0 - progress) / decay))

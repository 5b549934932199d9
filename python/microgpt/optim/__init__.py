"""Optimizers: update rules over contiguous arenas, schedules, groups."""

from .arena import Arenas, Group, decay_groups
from .optimizer import Optimizer
from .rules import RULES, AdamW, Sgd, UpdateRule
from .schedule import Schedule

__all__ = ["RULES", "AdamW", "Arenas", "Group", "Optimizer", "Schedule", "Sgd", "UpdateRule", "decay_groups"]

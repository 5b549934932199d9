"""Groups from plain settings: filters with a weight decay and a factor on the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigError
from ..filters import matches
from ..nn.module import Module
from .arena import Group


def named_groups(model: Module, weight_decay: float, settings: Sequence[dict[str, Any]]) -> list[Group]:
    """Groups for an Optimizer: those of `settings` first, then the usual rule (matrices decay, vectors do not).

    A setting is {"where": filter, "weight_decay": x, "lr_scale": y}; without its weight_decay the usual rule decides.
    A parameter belongs to the first that selects it; raises ConfigError for a setting that is left with none.
    """
    left = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    for i, setting in enumerate([*settings, {"where": "*"}]):
        chosen = {name: p.ndim >= 2 for name, p in left if matches(setting["where"], name, p)}
        if not chosen and i < len(settings):
            some = ", ".join(name for name, _ in left[:6])
            raise ConfigError(
                f"groups[{i}]: filter {setting['where']!r} matches no parameter (that an earlier group left); "
                f"names look like {some or 'nothing: all are taken'}"
            )
        left = [(name, p) for name, p in left if name not in chosen]
        for matrices in (True, False):
            names = frozenset(name for name, matrix in chosen.items() if matrix == matrices)
            decay = float(setting.get("weight_decay", weight_decay if matrices else 0.0))
            scale = float(setting.get("lr_scale", 1.0))
            groups.append(Group(_among(names), decay, scale))
    return groups


def _among(names: frozenset[str]) -> Callable[[str, Any], bool]:
    return lambda name, parameter: name in names

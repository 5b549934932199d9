"""Which settings a resumed run may change, and what a run folder was trained with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..io.checkpoint import RunFolder
from ..models.pretrained import read_json
from .build import resolve_dtype
from .config import TrainConfig

# The weights, the optimizer's state or the order of the data were made for these.
FIXED = {
    "the model": ("model", "size", "layers", "heads", "width", "block_size", "dropout"),
    "the tokenizer": ("tokenizer", "vocab_size"),
    "the order of the data": ("weights", "documents", "dedup", "curriculum", "packing", "batch_size", "seed",
                              "val_fraction"),
    "the optimizer's state": ("optimizer", "dtype"),
}  # fmt: skip


def run_config(run: Path) -> TrainConfig:
    """The configuration that a run folder was trained with. Raises CheckpointError when there is none."""
    place, _ = RunFolder(run).latest()
    values = read_json(place / "trainer_state.json")
    if not isinstance(values.get("config"), dict):
        raise CheckpointError(f"{place}: trainer_state.json holds no configuration")
    return TrainConfig.from_dict(values["config"])


def changed(config: TrainConfig, settings: dict[str, Any]) -> tuple[TrainConfig, list[str]]:
    """`config` with `settings` in place of its own, and a line for each difference.

    Raises ConfigError that names every change which a resumed run cannot make, and what it can.
    """
    if "steps" in settings or "epochs" in settings:
        settings = {"steps": None, "epochs": None, **settings}
    new = TrainConfig.from_dict({**config.to_dict(), **settings})
    new = dataclasses.replace(new, dtype=resolve_dtype(new.dtype))
    refused = []
    for what, names in FIXED.items():
        for name in names:
            was, value = getattr(config, name), getattr(new, name)
            if was != value:
                refused.append(f"{name}: the run that is resumed has {was}, got {value} ({what} was made for it)")
    every = [field.name for field in dataclasses.fields(TrainConfig)]
    if refused:
        fixed = {name for group in FIXED.values() for name in group}
        free = ", ".join(name for name in every if name not in fixed)
        raise ConfigError(f"{'; '.join(refused)}; train a new run for that. A resumed run may change: {free}")
    lines = [
        f"changed: {name} {getattr(config, name)} -> {getattr(new, name)}"
        for name in every
        if getattr(config, name) != getattr(new, name)
    ]
    return new, lines

"""The configuration of a run from what a caller gives: settings, a file of them, a run to go on with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .config import TrainConfig, check_names
from .resume import changed, run_config
from .settings import check_shape, read_settings, with_file


def chosen_config(
    settings: dict[str, Any],
    out: str | os.PathLike[str] | None,
    resume: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | None,
    say: Callable[[str], None] | None,
) -> TrainConfig:
    """`settings` precede those of the file `config`, and both those of the run `resume`; `say` is told what differs.

    Raises ConfigError for unknown or impossible settings and where both `out` and `resume` are given, CheckpointError.
    """
    check_names(settings)
    check_shape(settings)
    if config is not None:
        settings = with_file(read_settings(Path(config)), settings)
    if resume is None:
        return TrainConfig(**settings)
    if out is not None:
        raise ConfigError("give out or resume, not both")
    chosen, lines = changed(run_config(Path(resume)), settings)
    if say is not None:
        for line in lines:
            say(line)
    return chosen

"""The dry run: what a configuration would take, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..optim import RULES
from .build import make_data, make_model, resolve_dtype, total_steps
from .config import TrainConfig
from .probe import TRAINING, peak_flops


def plan(config: TrainConfig, say: Callable[[str], None] | None = None, show: bool = False) -> list[str]:
    """Lines with parameters, FLOPs of a token and of a step, memory and time; reads the data and writes nothing.

    Raises what the run would: ConfigError, DataError, TokenizerError.
    """
    data = make_data(config, None, None, say, show)
    dtype = resolve_dtype(config.dtype)
    model = make_model(config, data.tokenizer.vocab_size)
    parameters = model.num_parameters()
    steps = total_steps(config, data.train)
    tokens = config.batch_size * config.block_size * config.accumulate
    per_token = TRAINING * model.flops_per_token((config.block_size + 1) // 2)
    item = 8 if dtype == "float64" else 4
    copies = 2 + len(_slots(config)) + (config.ema > 0) + (dtype == "bfloat16") / 2  # of which the model is a copy
    # A block keeps about 8 vectors of the width and two of the feed-forward; recomputation keeps its input only.
    kept = 1 if config.checkpointing else 16
    activations = item * config.batch_size * config.block_size * config.width * (config.layers * kept + 8)
    peak = peak_flops(dtype)
    seconds = steps * tokens * per_token / peak
    return [
        *data.summary,
        f"model        {config.model}, {parameters:,} parameters, {dtype}",
        f"work         {per_token:.3g} FLOPs a token, {per_token * tokens:.3g} a step of {tokens:,} tokens, "
        f"{per_token * tokens * steps:.3g} in {steps:,} steps",
        f"memory       about {_size(item * copies * parameters + activations)}: {copies:g} arrays of the parameters, "
        f"{_size(activations)} of activations (rough)",
        f"checkpoints  {_size(item * (copies - 1) * parameters)} each, room for {config.keep + 2} of them",
        f"time         at least {_time(seconds)}, at the {peak / 1e9:.0f} GFLOP/s that a product reaches here; "
        f"{_time(2 * seconds)} at half of it",
    ]


def _slots(config: TrainConfig) -> tuple[str, ...]:
    rule: Any = RULES.get(config.optimizer)
    return tuple(rule.slots)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

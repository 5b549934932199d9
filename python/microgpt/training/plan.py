"""The dry run: what a configuration would take, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..models.config import ModelConfig
from ..ops.loss import LOGITS_AT_ONCE
from ..optim import RULES
from .build import make_data, model_config, resolve_dtype, total_steps
from .config import TrainConfig
from .probe import TRAINING, peak_flops

PROCESS = 80 << 20  # bytes of Python, NumPy and the tokenizer


def plan(config: TrainConfig, say: Callable[[str], None] | None = None, show: bool = False) -> list[str]:
    """Lines with parameters, FLOPs of a token and of a step, memory and time; reads the data and writes nothing.

    Raises what the run would: ConfigError, DataError, TokenizerError.
    """
    data = make_data(config, None, None, say, show)
    dtype = resolve_dtype(config.dtype)
    model = model_config(config, data.tokenizer.vocab_size)
    parameters = model.num_parameters()
    steps = total_steps(config, data.train)
    tokens = config.batch_size * config.block_size * config.accumulate
    per_token = TRAINING * model.flops_per_token((config.block_size + 1) // 2)
    arenas, activations, memory = training_memory(config, model)
    wide = 8 if dtype == "float64" else 4  # a checkpoint has everything but the gradients
    peak = peak_flops(dtype)
    seconds = steps * tokens * per_token / peak
    return [
        *data.summary,
        f"model        {config.model}, {parameters:,} parameters, {dtype}",
        f"work         {per_token:.3g} FLOPs a token, {per_token * tokens:.3g} a step of {tokens:,} tokens, "
        f"{per_token * tokens * steps:.3g} in {steps:,} steps",
        f"memory       about {_size(memory)}: {_size(arenas)} of parameters, gradients and optimizer, "
        f"{_size(activations)} of activations",
        f"checkpoints  {_size(arenas - wide * parameters)} each, room for {config.keep + 2} of them",
        f"time         at least {_time(seconds)}, at the {peak / 1e9:.0f} GFLOP/s that a product reaches here; "
        f"{_time(2 * seconds)} at half of it",
    ]


def training_memory(config: TrainConfig, model: ModelConfig) -> tuple[int, int, int]:
    """Bytes of parameters with all that belongs to them, of activations, and of the whole process; before validation,
    whose forward has memory of its own.
    """
    dtype = resolve_dtype(config.dtype)
    wide = 8 if dtype == "float64" else 4
    item = 2 if dtype == "bfloat16" else wide
    batch = config.batch_size * config.block_size
    # Parameters, gradients, moments, average; of bfloat16 the parameters that the model computes with as well.
    copies = wide * (2 + len(_slots(config)) + (config.ema > 0)) + (item if item < wide else 0)
    # The backward of a block works on about its activations again, which checkpointing has counted already. The head
    # keeps a chunk of float32 logits; where that is not all of them, also the gradients of what made them.
    again = 0 if config.checkpointing else max(block.activations(model.width) for block in model.blocks)
    kept = model.activations(config.checkpointing) + again
    rows = min(batch, max(64, LOGITS_AT_ONCE // model.vocab_size))
    logits = wide + (item if item < wide else 0)  # of bfloat16 a rounded copy as well
    head = model.vocab_size * (logits * rows + (wide * model.width if rows < batch else 0))
    arenas, activations = copies * model.num_parameters(), item * batch * kept
    return arenas, activations, arenas + activations + head + PROCESS


def _slots(config: TrainConfig) -> tuple[str, ...]:
    rule: Any = RULES.get(config.optimizer)
    return tuple(rule.slots)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

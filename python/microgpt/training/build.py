"""What a configuration describes: data, model, optimizer, number of steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from .. import _kernels as k
from ..data.batches import Stream
from ..data.prepare import DataSettings, Prepared, prepare
from ..models.config import ModelConfig
from ..models.decoder import Decoder
from ..models.sizes import dimensions
from ..models.zoo import maker
from ..optim import RULES, Optimizer
from ..optim.groups import named_groups
from ..tokenizers.base import Tokenizer
from .config import TrainConfig


def make_data(
    config: TrainConfig,
    tokenizer: Tokenizer | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] | None = None,
    show: bool = False,
) -> Prepared:
    """The data that the configuration describes, with a tokenizer made from them unless one is given."""
    names = [each.name for each in dataclasses.fields(DataSettings)]
    settings = DataSettings(**{name: getattr(config, name) for name in names})
    return prepare(settings, tokenizer, folder, say or (lambda line: None), show)


def resolve_dtype(dtype: str) -> str:
    """`auto` is bfloat16 where this machine multiplies it fast, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if k.fast_bf16() else "float32"


def model_config(config: TrainConfig, vocab_size: int) -> ModelConfig:
    """The architecture that the configuration describes. Raises ConfigError for an impossible one."""
    make = maker(config.model)
    layers, heads, width = config.layers, config.heads, config.width
    if config.size is not None:
        layers, heads, width = dimensions(config.model, config.size, vocab_size, config.block_size)
    return make(vocab_size, width, layers, heads, config.block_size, config.dropout)


def make_model(config: TrainConfig, vocab_size: int) -> Decoder:
    """The model that the configuration describes, with initial weights."""
    model = Decoder(model_config(config, vocab_size), dtype=resolve_dtype(config.dtype), seed=config.seed)
    model.remat = config.checkpointing
    return model


def make_optimizer(config: TrainConfig, model: Decoder) -> Optimizer:
    """The optimizer that the configuration describes. Raises ConfigError for a group that selects nothing."""
    cls = RULES.get(config.optimizer)
    settings = (
        {"beta1": config.beta1, "beta2": config.beta2, "eps": config.eps}
        if config.optimizer == "adamw"
        else {"momentum": config.momentum}
    )
    groups = named_groups(model, config.weight_decay, config.groups)
    return Optimizer(model, cls(**settings), groups, config.clip)


def loss_options(config: TrainConfig) -> dict[str, float]:
    """What the training loss has beyond cross-entropy; absent where it is zero."""
    options = {"label_smoothing": config.label_smoothing, "z_loss": config.z_loss}
    return {name: value for name, value in options.items() if value}


def total_steps(config: TrainConfig, train: Stream) -> int:
    """Steps from `steps`, or from `epochs` rounded up; 1,000 without either."""
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * train.steps_per_epoch / config.accumulate))
    return config.steps or 1000

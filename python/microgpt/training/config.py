"""TrainConfig: every setting of a training run, with the names of the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, nearest
from ..nn.spec import from_dict, number, require, whole


@dataclass(frozen=True)
class TrainConfig:
    """Defaults train a small GPT on the bundled names in about a second.

    Either `steps` or `epochs` is given; without both it is 1,000 steps. `lr` falls from its peak by `schedule` to
    `min_lr` (a part of the peak). A step is `accumulate` batches of `batch_size` sequences of `block_size` tokens.
    """

    data: str | tuple[str, ...] = "names"
    weights: tuple[float, ...] | None = None
    documents: str = "auto"
    dedup: bool = False
    curriculum: str = "none"
    packing: bool = True
    tokenizer: str = "auto"
    vocab_size: int | None = None
    model: str = "gpt"
    size: str | None = None
    layers: int = 2
    heads: int = 4
    width: int = 64
    block_size: int = 16
    dropout: float = 0.0
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 3e-3
    min_lr: float = 0.1
    schedule: str = "cosine"
    warmup: int = 50
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.9
    clip: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ema: float = 0.0
    groups: tuple[dict[str, Any], ...] = ()
    seed: int = 0
    val_fraction: float = 0.1
    eval_every: int = 250
    eval_batches: int = 50
    patience: int = 0
    sample_every: int = 0
    sample_prompt: str = ""
    log_every: int = 10
    save_every: int = 0
    keep: int = 3
    checkpointing: bool = False
    tensorboard: bool = False
    plot: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "block_size", "batch_size", "accumulate", "log_every", "keep"):
            whole(name, getattr(self, name))
        for name in ("warmup", "eval_every", "eval_batches", "save_every"):
            whole(name, getattr(self, name), 0)
        whole("seed", self.seed, 0, 2**64 - 1)
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("give steps or epochs, not both")
        if self.steps is not None:
            whole("steps", self.steps)
        if self.epochs is not None:
            number("epochs", self.epochs, 1e-9)
        number("dropout", self.dropout, 0.0, 0.999)
        number("lr", self.lr, 0.0, 1e30)
        number("min_lr", self.min_lr, 0.0, 1.0)
        number("weight_decay", self.weight_decay, 0.0)
        number("clip", self.clip, 0.0)
        number("val_fraction", self.val_fraction, 0.0, 0.9)
        require(self.dtype in ("float32", "float64"), "dtype", "float32 or float64", self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse; raises ConfigError naming unknown keys and the nearest known one."""
        return from_dict(cls, values, "training configuration")


def check_names(values: dict[str, Any]) -> None:
    """Raise ConfigError for a setting that does not exist."""
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}{nearest(name, known)}; known: {', '.join(known)}")

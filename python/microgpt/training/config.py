"""TrainConfig: every setting of a training run, with the names of the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, nearest
from ..nn.checks import number, require, whole
from ..nn.spec import from_dict

# What may be typed, and what it means; auto is resolved when the run starts.
DTYPES = {
    "f32": "float32", "bf16": "bfloat16", "f64": "float64", "auto": "auto", "float32": "float32",
    "bfloat16": "bfloat16", "float64": "float64",
}  # fmt: skip
MOST_EMA = 1.0 - 2.0**-24  # the largest decay that float32 tells from 1


@dataclass(frozen=True)
class TrainConfig:
    """Defaults train a small GPT on the bundled names in about a second.

    Either `steps` or `epochs` is given; without both it is 1,000 steps. `lr` falls from its peak by `schedule` to
    `min_lr` (a part of the peak). A step is `accumulate` batches of `batch_size` sequences of `block_size` tokens.

    `label_smoothing` and `z_loss` act in training only. `ema` above 0 averages the weights with that decay.
    `patience` validations without a new best end the run. `groups`, the first that matches a parameter first:
    {"where": filter, "weight_decay": x, "lr_scale": y}; the usual rule holds for what a group does not say.
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
        for name in ("data", "weights", "groups"):  # JSON and TOML know lists only
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "dtype", DTYPES.get(self.dtype, self.dtype) if isinstance(self.dtype, str) else "")
        require(self.dtype in DTYPES.values(), "dtype", f"one of {', '.join(DTYPES)}", self.dtype)
        for name in ("layers", "heads", "width", "block_size", "batch_size", "accumulate", "log_every", "keep"):
            whole(name, getattr(self, name))
        for name in ("documents", "curriculum", "tokenizer", "model", "optimizer", "schedule", "sample_prompt"):
            require(isinstance(getattr(self, name), str), name, "a text", getattr(self, name))
        require(self.size is None or isinstance(self.size, str), "size", 'a text such as "10m"', self.size)
        require(isinstance(self.groups, tuple), "groups", "a list of objects", self.groups)
        for name in ("warmup", "eval_every", "eval_batches", "save_every", "patience", "sample_every"):
            whole(name, getattr(self, name), 0)
        whole("seed", self.seed, 0, 2**64 - 1)
        if self.vocab_size is not None:
            whole("vocab_size", self.vocab_size)
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("give steps or epochs, not both")
        if self.steps is not None:
            whole("steps", self.steps)
        if self.epochs is not None:
            number("epochs", self.epochs, 1e-9, 1e9)
        number("dropout", self.dropout, 0.0, 0.999)
        number("lr", self.lr, 0.0, 1e30)
        number("min_lr", self.min_lr, 0.0, 1.0)
        number("weight_decay", self.weight_decay, 0.0)
        number("clip", self.clip, 0.0)
        number("label_smoothing", self.label_smoothing, 0.0, 0.999)
        number("z_loss", self.z_loss, 0.0)
        number("ema", self.ema, 0.0, MOST_EMA)
        number("val_fraction", self.val_fraction, 0.0, 0.9)
        for name in ("dedup", "packing", "checkpointing", "tensorboard", "plot"):
            require(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        if self.patience and not self.eval_every:
            raise ConfigError(f"patience: expected eval_every above 0 with patience {self.patience}, got eval_every 0")
        if self.patience and not self.val_fraction:
            raise ConfigError(f"patience: expected val_fraction above 0 with patience {self.patience}, got 0")
        self._check_data()
        for i, group in enumerate(self.groups):
            check_group(f"groups[{i}]", group)

    def _check_data(self) -> None:
        paths = isinstance(self.data, tuple) and self.data and all(isinstance(each, str) for each in self.data)
        require(paths or isinstance(self.data, str), "data", "a path or several", self.data)
        for name in ("data", "tokenizer", "sample_prompt"):
            value = getattr(self, name)
            for text in value if isinstance(value, tuple) else (value,):
                require(bool(text) or name == "sample_prompt", name, "a path", text)
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    wrong = f"got {text!r} (character {error.start})"
                    raise ConfigError(f"{name}: expected text that UTF-8 can write, {wrong}") from None
        if self.weights is not None:
            require(isinstance(self.weights, tuple), "weights", "a list of numbers", self.weights)
            count = len(self.data) if isinstance(self.data, tuple) else 1
            require(len(self.weights) == count, "weights", f"one for each of the {count} data", self.weights)
            for each in self.weights:
                number("weights", each, 1e-9, 1e9)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse; raises ConfigError naming unknown keys and the nearest known one."""
        return from_dict(cls, values, "training configuration")


def check_group(where: str, group: Any) -> None:
    """Raise ConfigError unless `group` is {"where": filter} with weight_decay, lr_scale or both."""
    known = ("where", "weight_decay", "lr_scale")
    require(isinstance(group, dict) and "where" in group, where, "an object with a filter `where`", group)
    filters = group["where"] if isinstance(group["where"], (list, tuple)) else [group["where"]]
    text = bool(filters) and all(isinstance(each, str) for each in filters)
    require(text, f"{where}.where", "a glob, re:PATTERN, or a list of them", group["where"])
    for key in group:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(str(key), known)}; known: {', '.join(known)}")
    require(len(group) > 1, where, "weight_decay, lr_scale or both", group)
    for key in group.keys() - {"where"}:
        number(f"{where}.{key}", group[key], 0.0)


def check_names(values: dict[str, Any]) -> None:
    """Raise ConfigError for a setting that does not exist."""
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}{nearest(name, known)}; known: {', '.join(known)}")

"""pretrain(): from a TrainConfig to a trained run folder: data, tokenizer, model, optimizer, trainer."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..data.batches import Batches, Stream
from ..data.prepare import DataSettings, Prepared, prepare
from ..errors import CheckpointError, ConfigError, NonFiniteError
from ..io import safetensors
from ..io.checkpoint import RunFolder, preflight
from ..models.decoder import Decoder
from ..models.pretrained import load_decoder, read_json, save_decoder, write_json
from ..models.zoo import MODELS
from ..optim import RULES, Optimizer, Schedule, decay_groups
from ..tokenizers.base import Tokenizer
from .config import TrainConfig
from .logger import Callback, JsonLines, Progress
from .objective import LanguageModeling
from .trainer import Limits, Trainer, checkpoint_bytes, read_state


@dataclass
class Run:
    """A finished training run: `path` of its folder (None when not saved), the model, and what was measured."""

    path: Path | None
    model: Decoder
    tokenizer: Tokenizer
    config: TrainConfig
    steps: int
    loss: float
    val_loss: float | None
    seconds: float
    losses: list[float] = field(default_factory=list)


def data_settings(config: TrainConfig) -> DataSettings:
    """The part of a configuration that says what is trained on."""
    return DataSettings(**{each.name: getattr(config, each.name) for each in dataclasses.fields(DataSettings)})


def make_data(config: TrainConfig, tokenizer: Tokenizer | None) -> tuple[Prepared, Tokenizer, Stream, Batches | None]:
    """The data that the configuration describes, with a tokenizer made from them unless one is given."""
    data = prepare(data_settings(config), tokenizer)
    return data, data.tokenizer, data.train, data.validation


def make_model(config: TrainConfig, vocab_size: int) -> Decoder:
    """The model that the configuration describes, with initial weights."""
    spec = MODELS.get(config.model)(
        vocab_size, config.width, config.layers, config.heads, config.block_size, config.dropout
    )
    model = Decoder(spec, dtype=config.dtype, seed=config.seed)
    model.remat = config.checkpointing
    return model


def make_optimizer(config: TrainConfig, model: Decoder) -> Optimizer:
    """The optimizer that the configuration describes."""
    cls = RULES.get(config.optimizer)
    settings = (
        {"beta1": config.beta1, "beta2": config.beta2, "eps": config.eps}
        if config.optimizer == "adamw"
        else {"momentum": config.momentum}
    )
    return Optimizer(model, cls(**settings), decay_groups(config.weight_decay), config.clip)


def total_steps(config: TrainConfig, train: Stream) -> int:
    """Steps from `steps`, or from `epochs` rounded up; 1,000 without either."""
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * train.steps_per_epoch / config.accumulate))
    return config.steps or 1000


def pretrain(
    config: TrainConfig,
    out: Path | None = None,
    resume: Path | None = None,
    show: bool = False,
    say: Callable[[str], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train from scratch, or go on with run folder `resume` (whose configuration is then `config`).

    `out` is the run folder, None trains without saving; `say` gets a line for each thing worth telling.
    Raises ConfigError, DataError, LockError, StorageError, NonFiniteError, CheckpointError.
    """
    say = say or (lambda line: None)
    started = time.perf_counter()
    place = resume or out
    folder = RunFolder(place, __version__) if place else None
    if folder is not None:
        folder.lock()
        for name in folder.clean():
            say(f"removed {name}, left by a run that was killed")
    try:
        return _pretrain(config, folder, resume is not None, show, say, callbacks, started)
    finally:
        if folder is not None:
            folder.close()


def _pretrain(
    config: TrainConfig,
    folder: RunFolder | None,
    resuming: bool,
    show: bool,
    say: Callable[[str], None],
    callbacks: Sequence[Callback],
    started: float,
) -> Run:
    checkpoint: Path | None = None
    if resuming:
        assert folder is not None
        checkpoint, problems = folder.latest()
        for line in problems:
            say(line)
    elif folder is not None and folder.checkpoints():
        raise ConfigError(f"{folder.path} already holds a run; resume it, or choose another folder")
    tokenizer = Tokenizer.load(checkpoint) if checkpoint else None
    data = prepare(data_settings(config), tokenizer, folder.path if folder else None, say, show)
    tokenizer, train, validation = data.tokenizer, data.train, data.validation
    model = load_decoder(checkpoint, config.dtype) if checkpoint else make_model(config, tokenizer.vocab_size)
    model.remat = config.checkpointing
    optimizer = make_optimizer(config, model)
    steps = total_steps(config, train)
    schedule = Schedule(config.schedule, steps, min(config.warmup, steps // 2), config.min_lr)
    sequences = train.sequences
    objective = LanguageModeling(model, config.batch_size * config.block_size, sequences, config.seed)
    limits = Limits(
        steps, config.accumulate, config.log_every, config.eval_every, config.eval_batches, config.save_every
    )
    for line in data.summary:
        say(line)
    say(f"{config.model}: {model.num_parameters():,} parameters, {steps:,} steps of "
        f"{config.batch_size * config.accumulate} sequences of up to {config.block_size} tokens")  # fmt: skip
    if folder is not None:
        # A new checkpoint is written beside the old one before that is removed.
        preflight(folder.path, 2 * checkpoint_bytes(optimizer))
    trainer = Trainer(objective, train, optimizer, schedule, limits, config.lr, validation)
    if folder is not None:
        trainer.save = _saver(folder, config, trainer, model, tokenizer)
    if checkpoint is not None:
        optimizer.load_arrays(safetensors.load(checkpoint / "optimizer.safetensors"))
        trainer.restore(read_state(checkpoint).get("trainer", {}))
        say(f"going on after step {trainer.step} of {checkpoint}")
    first = trainer.step
    if folder is not None:
        trainer.callbacks.append(JsonLines(folder.path / "metrics.jsonl", first))
    trainer.callbacks += [Progress(first, steps, show), *callbacks]
    trainer.run()
    value = trainer.evaluate() if validation else None
    loss = trainer.losses[-1] if trainer.losses else math.nan
    seconds = time.perf_counter() - started
    return Run(folder.path if folder else None, model, tokenizer, config, trainer.step, loss, value, seconds,
               trainer.losses)  # fmt: skip


def _saver(
    folder: RunFolder, config: TrainConfig, trainer: Trainer, model: Decoder, tokenizer: Tokenizer
) -> Callable[[int, bool], None]:
    tokenizer.max_length = model.config.max_positions

    def save(step: int, best: bool) -> None:
        if not np.isfinite(trainer.optimizer.arenas.params.numpy()).all():
            raise NonFiniteError(f"step {step}: weights are no longer finite and were not saved; try a lower lr")

        def write(place: Path) -> dict[str, Any]:
            save_decoder(model, place, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
            tokenizer.save(place)
            safetensors.save(place / "optimizer.safetensors", trainer.optimizer.arrays(), {})
            write_json(place / "trainer_state.json", {"trainer": trainer.state(), "config": config.to_dict()})
            return {"steps": trainer.limits.steps}

        folder.save(step, write, keep_last=config.keep, best=best)

    return save


def resume_config(run: Path) -> TrainConfig:
    """The configuration that a run folder was trained with. Raises CheckpointError when there is none."""
    place, _ = RunFolder(run).latest()
    values = read_json(place / "trainer_state.json")
    if not isinstance(values.get("config"), dict):
        raise CheckpointError(f"{place}: trainer_state.json holds no configuration")
    return TrainConfig.from_dict(values["config"])


__all__ = ["Run", "make_data", "make_model", "make_optimizer", "pretrain", "resume_config", "total_steps"]

"""pretrain(): from a TrainConfig to a trained run folder: data, tokenizer, model, optimizer, trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .. import __version__
from ..data.prepare import Prepared
from ..errors import ConfigError, NonFiniteError, TokenizerError
from ..io import safetensors
from ..io.checkpoint import RunFolder, preflight
from ..models.decoder import Decoder
from ..models.pretrained import load_decoder, save_decoder, write_json
from ..optim import Schedule
from ..tokenizers.base import Tokenizer
from .build import loss_options, make_data, make_model, make_optimizer, resolve_dtype, total_steps
from .callback import Callback
from .config import TrainConfig
from .curves import check_plot, read_curve, save_picture
from .ema import Ema
from .logger import JsonLines, Progress, Samples, TensorBoard
from .objective import LanguageModeling
from .probe import TRAINING, Meter
from .settings import HEADER, save_settings
from .signals import Signals
from .trainer import Limits, Trainer, checkpoint_bytes, read_state

# (model, tokenizer, prompt, seed) -> text; this layer cannot generate by itself.
Sampler: TypeAlias = Callable[[Decoder, Tokenizer, str, int], str]


@dataclass
class Run:
    """A finished training run: `path` of its folder (None when not saved), the model, and what was measured.

    `model` has the averaged weights where `ema` is on. `stopped` says why the run ended early, None when it did not;
    `signal` is the number of the signal that ended it, or 0.
    """

    path: Path | None
    model: Decoder
    tokenizer: Tokenizer
    config: TrainConfig
    steps: int
    loss: float
    val_loss: float | None
    seconds: float
    losses: list[float] = field(default_factory=list)
    best: float | None = None
    stopped: str | None = None
    signal: int = 0


@dataclass
class Tools:
    """What pretrain() is given besides settings; the fields mean what its arguments say."""

    show: bool = False
    say: Callable[[str], None] = lambda line: None
    callbacks: Sequence[Callback] = ()
    sampler: Sampler | None = None
    signals: Signals | None = None


def pretrain(
    config: TrainConfig,
    out: Path | None = None,
    resume: Path | None = None,
    show: bool = False,
    say: Callable[[str], None] | None = None,
    callbacks: Sequence[Callback] = (),
    sampler: Sampler | None = None,
    handle_signals: bool = False,
) -> Run:
    """Train from scratch, or go on with run folder `resume` (whose configuration is then `config`).

    `out` is the run folder, None trains without saving; `say` gets a line for each thing worth telling; `sampler`
    writes the samples of `sample_every`. With `handle_signals`, SIGINT and SIGTERM finish the step, save and stop.
    Raises ConfigError, DataError, LockError, StorageError, NonFiniteError, CheckpointError, MissingExtraError.
    """
    started = time.perf_counter()
    config = dataclasses.replace(config, dtype=resolve_dtype(config.dtype))
    if config.plot:
        check_plot()
        if not (out or resume):
            raise ConfigError("plot: expected a run folder (out) to draw in")
    if config.sample_every and sampler is None:
        raise ConfigError("sample_every: expected 0 where nothing writes samples; microgpt.train does")
    place = resume or out
    folder = RunFolder(place, __version__) if place else None
    with contextlib.ExitStack() as stack:
        tools = Tools(show, say or (lambda line: None), callbacks, sampler)
        if handle_signals:
            tools.signals = stack.enter_context(Signals())
        if folder is not None:
            stack.callback(folder.close)
            folder.lock()
            for name in folder.clean():
                tools.say(f"removed {name}, left by a run that was killed")
        return _pretrain(config, folder, resume is not None, tools, started)


def _pretrain(config: TrainConfig, folder: RunFolder | None, resuming: bool, tools: Tools, started: float) -> Run:
    checkpoint = _checkpoint(folder, resuming, tools.say)
    tokenizer = Tokenizer.load(checkpoint) if checkpoint else None
    data = make_data(config, tokenizer, folder.path if folder else None, tools.say, tools.show)
    tokenizer = data.tokenizer
    tokenizer.adds_bos = tokenizer.bos_id is not None  # as its documents do, whatever the vocabulary was made for
    model = load_decoder(checkpoint, config.dtype) if checkpoint else make_model(config, tokenizer.vocab_size)
    model.remat = config.checkpointing
    if config.sample_every:
        _check_prompt(config.sample_prompt, tokenizer, model)
    trainer = make_trainer(config, model, data)
    for line in data.summary:
        tools.say(line)
    tools.say(f"{config.model}: {model.num_parameters():,} parameters, {trainer.limits.steps:,} steps of "
              f"{config.batch_size * config.accumulate} sequences of up to {config.block_size} tokens")  # fmt: skip
    if folder is not None:
        # A new checkpoint is written beside the best and the latest before one of them is removed.
        preflight(folder.path, 3 * checkpoint_bytes(trainer, tokenizer.vocab_size))
        trainer.save = _saver(folder, config, trainer, model, tokenizer)
    if checkpoint is not None:
        _restore(trainer, model, checkpoint)
        tools.say(f"going on after step {trainer.step} of {checkpoint}")
    if folder is not None:
        save_settings(config, folder.path / "config.toml")
    _attach(trainer, model, tokenizer, config, folder, tools)
    if tools.signals is not None:
        tools.signals.attach(lambda name: trainer.request_stop(name, hurry=True))
    trainer.run()
    if tools.signals is not None:
        tools.signals.attach(None)
    value = trainer.val_loss[1] if trainer.val_loss and trainer.val_loss[0] == trainer.step else None
    if value is None and data.validation is not None and not trainer.hurry:
        value = trainer.evaluate()
    if trainer.ema is not None:
        trainer.ema.keep()
    if config.plot and folder is not None:
        save_picture([read_curve(folder.path)], folder.path / "loss.png")
    return Run(
        path=folder.path if folder else None,
        model=model,
        tokenizer=tokenizer,
        config=config,
        steps=trainer.step,
        loss=trainer.losses[-1] if trainer.losses else math.nan,
        val_loss=value,
        seconds=time.perf_counter() - started,
        losses=trainer.losses,
        best=None if math.isinf(trainer.best) else trainer.best,
        stopped=trainer.stopping,
        signal=tools.signals.received if tools.signals else 0,
    )


def make_trainer(config: TrainConfig, model: Decoder, data: Prepared) -> Trainer:
    """The trainer that a configuration describes, for a model and its data; it saves and reports nothing yet."""
    optimizer = make_optimizer(config, model)
    steps = total_steps(config, data.train)
    schedule = Schedule(config.schedule, steps, min(config.warmup, steps // 2), config.min_lr)
    objective = LanguageModeling(model, config.batch_size * config.block_size, data.train.sequences, config.seed,
                                 loss_options(config), data.val_bytes_per_token)  # fmt: skip
    limits = Limits(
        steps, config.accumulate, config.log_every, config.eval_every, config.eval_batches, config.save_every,
        config.sample_every, config.patience,
    )  # fmt: skip
    ema = Ema(model, optimizer.arenas, config.ema) if config.ema else None
    return Trainer(objective, data.train, optimizer, schedule, limits, config.lr, data.validation, ema)


def _checkpoint(folder: RunFolder | None, resuming: bool, say: Callable[[str], None]) -> Path | None:
    if folder is None:
        return None
    if resuming:
        found, problems = folder.latest()
        for line in problems:
            say(line)
        return found
    if folder.checkpoints():
        raise ConfigError(f"{folder.path} already holds a run; resume it, or choose another folder")
    _check_own(folder.path)
    return None


def _check_own(place: Path) -> None:
    """A run overwrites only what a run wrote: an earlier one that never came to its first checkpoint."""
    settings = place / "config.toml"
    own = settings.is_file() and settings.read_bytes().startswith(HEADER.encode())
    for name in ("config.toml", "metrics.jsonl", "samples.jsonl"):
        if (place / name).exists() and not own and (place / name).stat().st_size:
            raise ConfigError(f"{place / name}: expected a new or empty run folder, found a file that no run wrote; "
                              "choose another folder")  # fmt: skip


def _check_prompt(prompt: str, tokenizer: Tokenizer, model: Decoder) -> None:
    """What would otherwise fail at the first sample, hours later."""
    ids = tokenizer.encode(prompt, add_bos=tokenizer.bos_id is not None)
    if not 0 < len(ids) < model.config.max_positions:
        raise TokenizerError(
            f"sample_prompt: expected 1 to {model.config.max_positions - 1} tokens, got {len(ids)} from {prompt!r}"
        )


def _attach(
    trainer: Trainer, model: Decoder, tokenizer: Tokenizer, config: TrainConfig, folder: RunFolder | None, tools: Tools
) -> None:
    """Callbacks, measurements and samples."""
    first = trainer.step
    progress = Progress(first, trainer.limits.steps, tools.show)
    flops = TRAINING * model.flops_per_token((config.block_size + 1) // 2)  # a causal row sees half of the others
    before = 0.0
    if folder is not None:
        if config.tensorboard:
            trainer.callbacks.append(TensorBoard(folder.path / "tensorboard", first))
        lines = JsonLines(folder.path / "metrics.jsonl", first)
        before = lines.elapsed
        trainer.callbacks.append(lines)
    elif config.tensorboard:
        raise ConfigError("tensorboard: expected a run folder (out) to write to")
    trainer.callbacks += [progress, *tools.callbacks]
    trainer.measure = Meter(flops, config.dtype, before)
    if tools.sampler is not None and config.sample_every:
        sampler = tools.sampler
        samples = Samples(folder.path / "samples.jsonl" if folder is not None else None, first)
        trainer.callbacks.append(samples)

        def sample(step: int) -> None:
            with trainer.averaged():
                text = sampler(model, tokenizer, config.sample_prompt, config.seed + step)
            line = f"step {step}: {config.sample_prompt}{text}"
            progress.write(line) if tools.show else tools.say(line)
            samples.write(step, config.sample_prompt, text)

        trainer.sample = sample


def _saver(
    folder: RunFolder, config: TrainConfig, trainer: Trainer, model: Decoder, tokenizer: Tokenizer
) -> Callable[[int, bool], None]:
    tokenizer.max_length = model.config.max_positions

    def save(step: int, best: bool) -> None:
        if not np.isfinite(trainer.optimizer.arenas.params.numpy()).all():
            raise NonFiniteError(f"step {step}: weights are no longer finite and were not saved; try a lower lr")

        def write(place: Path) -> dict[str, Any]:
            with trainer.averaged():
                save_decoder(model, place, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
            if trainer.ema is not None:
                safetensors.save(place / EMA, trainer.ema.arrays(), {})
            tokenizer.save(place)
            safetensors.save(place / "optimizer.safetensors", trainer.optimizer.arrays(), {})
            write_json(place / "trainer_state.json", {"trainer": trainer.state(), "config": config.to_dict()})
            return {"steps": trainer.limits.steps}

        folder.save(step, write, keep_last=config.keep, best=best)

    return save


# With ema, model.safetensors (what `load` and transformers open) holds the average, and this file the rest.
EMA = "ema.safetensors"


def _restore(trainer: Trainer, model: Decoder, checkpoint: Path) -> None:
    """Optimizer, averages and position of a checkpoint whose model.safetensors the model already holds."""
    kept = safetensors.load(checkpoint / EMA) if (checkpoint / EMA).exists() else {}
    weights = {name.removeprefix("weights."): array for name, array in kept.items() if name.startswith("weights.")}
    if weights:
        model.load_arrays(weights)
    trainer.optimizer.load_arrays(safetensors.load(checkpoint / "optimizer.safetensors"))
    if trainer.ema is not None and not weights:  # with weights, the model that the average began as was the average
        trainer.ema.load_average(kept) if kept else trainer.ema.follow()
    trainer.restore(read_state(checkpoint).get("trainer", {}))


__all__ = ["Run", "Sampler", "make_trainer", "pretrain"]

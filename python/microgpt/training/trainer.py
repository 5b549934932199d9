"""Trainer: feeds batches to a recorded step, validates, reports, saves, resumes. It knows no objective by name."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _kernels as k
from ..autograd import no_grad
from ..data.batches import BatchBlock, Batches, Stream
from ..errors import CheckpointError, NonFiniteError
from ..models.pretrained import read_json
from ..optim import Optimizer, Schedule
from ..program import Program
from ..tensors import Tensor
from .callback import Callback
from .ema import Ema
from .objective import Objective

AHEAD = 256  # micro-batches prepared at a time, at most: NumPy's cost per batch falls to about a microsecond
AHEAD_TOKENS = 1 << 20  # and tokens at a time


@dataclass(frozen=True)
class Limits:
    """How long to train and how often to do what; 0 switches a thing off."""

    steps: int
    accumulate: int = 1
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 50
    save_every: int = 0
    sample_every: int = 0
    patience: int = 0  # validations without a new best before the run ends


class Trainer:
    """Trains what the objective knows on `train` batches.

    A step is `accumulate` micro-batches, their mean loss and gradient, clipping, the update, and `ema` where there is
    one; it is recorded once and replayed. A loss or gradient that is not finite raises NonFiniteError and leaves the
    weights as they were. Set `save(step, best)`, `sample(step)` and `measure(tokens_per_second)` to have checkpoints,
    samples and more figures in the records.
    """

    def __init__(
        self,
        objective: Objective,
        train: Stream,
        optimizer: Optimizer,
        schedule: Schedule,
        limits: Limits,
        lr: float,
        validation: Batches | None = None,
        ema: Ema | None = None,
    ) -> None:
        self.objective = objective
        self.train = train
        self.optimizer = optimizer
        self.schedule = schedule
        self.limits = limits
        self.lr = lr
        self.validation = validation
        self.ema = ema
        self.callbacks: list[Callback] = []
        self.save: Callable[[int, bool], None] | None = None
        self.sample: Callable[[int], None] | None = None
        self.measure: Callable[[float], dict[str, float]] | None = None
        self.step = 0
        self.tokens = 0  # targets seen
        self.best = math.inf
        self.waited = 0  # validations since the best one
        self.val_loss: tuple[int, float] | None = None  # of the newest validation, and its step
        self.losses: list[float] = []  # of the logged steps
        self.stopping: str | None = None  # why the run ends before its last step
        self.hurry = False  # whether the end must not wait for a validation
        self._save_asked = False
        self._saved = 0  # the step of the newest checkpoint
        self._owed = False  # a validation that was cut short; a resumed run begins with it
        self._sample_owed = False  # likewise
        self._aside = 0.0  # seconds spent on other things than steps since the last record
        self._buffers = [objective.buffers() for _ in range(limits.accumulate)]
        self._block: BatchBlock | None = None
        self._row = 0
        self._first = 0  # sequence of this step
        self._data_state = train.state()
        self._program: Program[Tensor] = Program(self._step)
        self._eval_buffers: Any = None
        self._eval_program: Program[Tensor] | None = None

    def request_stop(self, reason: str, hurry: bool = False) -> None:
        """End after the present step, with a checkpoint.

        In a `hurry` a validation is cut short; the run that is resumed makes up for it.
        """
        self.stopping, self.hurry = self.stopping or reason, self.hurry or hurry

    def request_save(self) -> None:
        """Save a checkpoint after the present step."""
        self._save_asked = True

    # -- one step ------------------------------------------------------------------------------------------------
    def _step(self) -> Tensor:
        """What is recorded: it only launches kernels."""
        share = 1.0 / self.limits.accumulate
        total: Tensor | None = None
        for buffers in self._buffers:
            loss = self.objective.loss(buffers, self.optimizer.step)
            seed = k.empty((), loss.dtype)
            k.fill(seed, share)
            loss.backward_from(seed)
            if total is None:
                total = Tensor(k.empty((), loss.dtype))
                k.axpy(loss.data, total.data, share)
            else:
                k.axpy(loss.data, total.data, share, 1.0)
        assert total is not None
        self.optimizer.launch(total)
        if self.ema is not None:
            self.ema.launch()
        return total

    def _next(self) -> int:
        """Feed the micro-batches of a step; returns how many targets they hold."""
        count = 0
        self._first = self._consumed()
        for buffers in self._buffers:
            if self._block is None or self._row == len(self._block.tokens):
                self._data_state = self.train.state()
                size = self.train.batch_size * self.train.block_size
                self._block, self._row = self.train.next_many(max(1, min(AHEAD, AHEAD_TOKENS // size))), 0
            self.objective.feed(buffers, self._block, self._row)
            count += int(self._block.n_targets[self._row])
            self._row += 1
        return count

    def run(self) -> None:
        """Train to the last step, or until stopped. Raises NonFiniteError naming step and batch."""
        limits = self.limits
        stepping = [each for each in self.callbacks if type(each).step is not Callback.step]
        pause = math.gcd(limits.eval_every, limits.sample_every, limits.save_every)  # one look a step is enough
        clock, clock_tokens, self._aside = time.perf_counter(), self.tokens, 0.0
        try:
            if self._owed or self._sample_owed:
                improved = self._owed and self._validate()
                self._sample()
                if not self._owed:
                    self._checkpoint(improved)
            self._out_of_patience()
            while self.step < limits.steps and not self.stopping:
                rate = self.lr * self.schedule(self.step)
                self._train(rate)
                last = self.step == limits.steps
                if self.step % limits.log_every == 0 or last:
                    now = time.perf_counter()
                    speed = (self.tokens - clock_tokens) / max(now - clock - self._aside, 1e-9)
                    clock, clock_tokens, self._aside = now, self.tokens, 0.0
                    self._log(rate, speed)
                for callback in stepping:
                    callback.step(self)
                if last or self.stopping or self._save_asked or (pause and self.step % pause == 0):
                    with self._apart():
                        self._between(last)
            if self.stopping and self._saved != self.step:  # asked just after the last step had looked
                self._checkpoint(False)
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is KeyboardInterrupt:
                raise KeyboardInterrupt(f"after step {self.step}") from None
            raise
        finally:
            for callback in self.callbacks:
                callback.close()

    def _train(self, rate: float) -> None:
        """One step."""
        self.tokens += self._next()
        self.optimizer.feed(self.step + 1, rate)
        if self.ema is not None:
            self.ema.feed(self.step + 1)
        self._loss = self._program()
        if not self.optimizer.finite():
            self._stop_not_finite(self._loss.item())
        self.step += 1

    def _due(self, every: int, last: bool = False) -> bool:
        return every > 0 and (last or self.step % every == 0)

    def _save_due(self, last: bool) -> bool:
        return last or self._save_asked or self.stopping is not None or self._due(self.limits.save_every)

    def _between(self, last: bool) -> None:
        """What may follow a step: validation, a sample, a checkpoint."""
        improved = False
        if self._due(self.limits.eval_every, last) and self.validation:
            improved = self._validate()
        if self.sample and self._due(self.limits.sample_every):
            self._sample_owed = True
            self._sample()
        if improved or self._save_due(last):  # the best weights are kept whenever they come
            self._checkpoint(improved)

    def _sample(self) -> None:
        """The sample that is due, unless there is no time for it."""
        if self.sample and self._sample_owed and not self.hurry:
            self.sample(self.step)
            self._sample_owed = False

    def _checkpoint(self, improved: bool) -> None:
        self._save_asked = False
        if self.save:
            self.save(self.step, improved)
        self._saved = self.step

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Time spent inside does not count as training."""
        started = time.perf_counter()
        yield
        self._aside += time.perf_counter() - started

    def _log(self, rate: float, speed: float) -> None:
        loss = self._loss.item()
        self.losses.append(loss)
        self._report(
            {
                "step": self.step,
                "loss": loss,
                "lr": rate,
                "grad_norm": self.optimizer.grad_norm(),
                "tokens": self.tokens,
                "tokens_per_second": round(speed, 1),
                "epoch": round(self._consumed() / self.train.windows, 4),
                **(self.measure(speed) if self.measure else {}),
            }
        )

    def _report(self, values: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.record(values)

    def _stop_not_finite(self, loss: float) -> None:
        norm = self.optimizer.grad_norm()
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
        raise NonFiniteError(
            f"step {self.step + 1}: {what} (sequences {self._first} to {self._consumed() - 1} of the data order); the "
            "weights are those of the step before. Try a lower lr or clip, or look at that batch"
        )

    # -- validation ----------------------------------------------------------------------------------------------
    def evaluate(self) -> float | None:
        """Mean loss in nats over the validation batches (at most eval_batches), weighted by their targets.

        It is that of the averaged weights where there are some. None when the run must end in a hurry.
        """
        assert self.validation is not None
        total, targets = 0.0, 0
        with self.averaged():
            if self._eval_program is None:
                self._eval_buffers = self.objective.buffers()
                self._eval_program = Program(self._eval_loss)
            for block in self.validation.once(self.limits.eval_batches):
                for row in range(len(block.tokens)):
                    self.objective.feed(self._eval_buffers, block, row)
                    seen = int(block.n_targets[row])
                    total += self._eval_program().item() * seen
                    targets += seen
                    if self.hurry:
                        return None
        return total / max(1, targets)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has the weights that are validated, sampled from and published."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied()

    def _eval_loss(self) -> Tensor:
        with no_grad():
            return self.objective.loss(self._eval_buffers, None)

    def _validate(self) -> bool:
        """Whether the loss is the best so far."""
        value = self.evaluate()
        self._owed = value is None
        if value is None:
            return False
        improved = value < self.best
        self.best = min(self.best, value)
        self.waited = 0 if improved else self.waited + 1
        self.val_loss = (self.step, value)
        self._report({"step": self.step, **self.objective.validation_record(value)})
        self._out_of_patience()
        return improved

    def _out_of_patience(self) -> None:
        if 0 < self.limits.patience <= self.waited:
            self.request_stop(f"no better validation loss than {self.best:.4f} in {self.waited} validations")

    # -- resume --------------------------------------------------------------------------------------------------
    def _consumed(self) -> int:
        """Sequences trained on so far; those prepared ahead do not count."""
        if self._block is None or not self._row:
            return int(self._data_state["consumed"])
        return int(self._block.consumed[self._row - 1])

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides weights and optimizer state, JSON-able."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "best": None if math.isinf(self.best) else self.best,
            "waited": self.waited,
            "owed": self._owed,
            "sample_owed": self._sample_owed,
            "data": {**self._data_state, "skip": self._row},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from state(). Raises DataError if the data changed, CheckpointError if the state is not one."""
        try:
            self.step, self.tokens = int(state["step"]), int(state["tokens"])
            self.best = math.inf if state["best"] is None else float(state["best"])
            self.waited, self._owed = int(state.get("waited", 0)), bool(state.get("owed", False))
            self._sample_owed = bool(state.get("sample_owed", False))
            data = dict(state["data"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"trainer state is damaged: {error!r}") from None
        self._saved = self.step
        self.train.restore(data)
        self._data_state, self._block, self._row = self.train.state(), None, 0


def checkpoint_bytes(trainer: Trainer, vocab_size: int) -> int:
    """Bytes of a checkpoint, at most, for the free-space check before training; the tokenizer is a file of it too."""
    optimizer = trainer.optimizer
    item = 8 if optimizer.arenas.dtype == "float64" else 4
    copies = 1 + len(optimizer.state) + (trainer.ema is not None) + (optimizer.arenas.rounded is not None)
    return optimizer.arenas.size * item * copies + 100 * vocab_size + (1 << 16)


def read_state(folder: Path) -> dict[str, Any]:
    """trainer_state.json of a checkpoint."""
    return read_json(folder / "trainer_state.json")

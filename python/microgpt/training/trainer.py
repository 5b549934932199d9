"""Trainer: feeds batches to a recorded step, validates, reports, saves, resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _kernels as k
from ..autograd import no_grad
from ..data.batches import BatchBlock, Batches, Stream
from ..errors import CheckpointError, NonFiniteError
from ..optim import Optimizer, Schedule
from ..program import Program
from ..tensor import Tensor
from .logger import Callback
from .objective import Objective

AHEAD = 256  # micro-batches prepared at a time: NumPy's cost per batch falls to about a microsecond


@dataclass(frozen=True)
class Limits:
    """How long to train and how often to do what; 0 switches a thing off."""

    steps: int
    accumulate: int = 1
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 50
    save_every: int = 0


class Trainer:
    """Trains what the objective knows on `train` batches. `save(step, best)` is called when a checkpoint is due.

    A step is `accumulate` micro-batches, their mean loss and gradient, clipping and the update; it is recorded once
    and replayed. A loss or gradient that is not finite raises NonFiniteError and leaves the weights as they were.
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
        callbacks: Sequence[Callback] = (),
        save: Callable[[int, bool], None] | None = None,
    ) -> None:
        self.objective = objective
        self.train = train
        self.optimizer = optimizer
        self.schedule = schedule
        self.limits = limits
        self.lr = lr
        self.validation = validation
        self.callbacks = list(callbacks)
        self.save = save
        self.step = 0
        self.tokens = 0  # targets seen
        self.best = math.inf
        self.losses: list[float] = []  # of the logged steps
        self._buffers = [objective.buffers() for _ in range(limits.accumulate)]
        self._block: BatchBlock | None = None
        self._row = 0
        self._first = 0  # sequence of this step
        self._data_state = train.state()
        self._program: Program[Tensor] = Program(self._step)
        self._eval_buffers: Any = None
        self._eval_program: Program[Tensor] | None = None

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
        return total

    def _next(self) -> int:
        """Feed the micro-batches of a step; returns how many targets they hold."""
        count = 0
        self._first = self._consumed()
        for buffers in self._buffers:
            if self._block is None or self._row == len(self._block.tokens):
                self._data_state = self.train.state()
                self._block, self._row = self.train.next_many(AHEAD), 0
            self.objective.feed(buffers, self._block, self._row)
            count += int(self._block.n_targets[self._row])
            self._row += 1
        return count

    def run(self) -> None:
        """Train to the last step. Raises NonFiniteError naming step and batch; saves what is good before that."""
        limits = self.limits
        clock, clock_tokens = time.perf_counter(), self.tokens
        try:
            while self.step < limits.steps:
                rate = self.lr * self.schedule(self.step)
                self.tokens += self._next()
                self.optimizer.feed(self.step + 1, rate)
                loss = self._program()
                if not self.optimizer.finite():
                    self._stop_not_finite(loss.item())
                self.step += 1
                last = self.step == limits.steps
                if self.step % limits.log_every == 0 or last:
                    now = time.perf_counter()
                    speed = (self.tokens - clock_tokens) / max(now - clock, 1e-9)
                    clock, clock_tokens = now, self.tokens
                    self._log(loss.item(), rate, speed)
                improved = False
                if limits.eval_every and (self.step % limits.eval_every == 0 or last) and self.validation:
                    improved = self._validate()
                    clock = time.perf_counter()
                if self.save and (last or (limits.save_every and self.step % limits.save_every == 0)):
                    self.save(self.step, improved)
                    clock = time.perf_counter()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"after step {self.step}") from None
        finally:
            for callback in self.callbacks:
                callback.close()

    def _log(self, loss: float, rate: float, speed: float) -> None:
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
    def evaluate(self) -> float:
        """Mean loss in nats over the validation batches (at most eval_batches), weighted by their targets."""
        assert self.validation is not None
        if self._eval_program is None:
            self._eval_buffers = self.objective.buffers()

            def loss() -> Tensor:
                with no_grad():
                    return self.objective.loss(self._eval_buffers, None)

            self._eval_program = Program(loss)
        total, targets = 0.0, 0
        for block in self.validation.once(self.limits.eval_batches):
            for row in range(len(block.tokens)):
                self.objective.feed(self._eval_buffers, block, row)
                seen = int(block.n_targets[row])
                total += self._eval_program().item() * seen
                targets += seen
        return total / max(1, targets)

    def _validate(self) -> bool:
        value = self.evaluate()
        improved = value < self.best
        self.best = min(self.best, value)
        self._report({"step": self.step, "val_loss": value})
        return improved

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
            "data": {**self._data_state, "skip": self._row},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from state(). Raises DataError if the data changed, CheckpointError if the state is not one."""
        try:
            self.step, self.tokens = int(state["step"]), int(state["tokens"])
            self.best = math.inf if state["best"] is None else float(state["best"])
            data = dict(state["data"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"trainer state is damaged: {error!r}") from None
        self.train.restore(data)
        self._data_state, self._block, self._row = self.train.state(), None, 0


def checkpoint_bytes(optimizer: Optimizer) -> int:
    """Bytes of a checkpoint, for the free-space check before training."""
    item = 8 if optimizer.arenas.dtype == "float64" else 4
    return optimizer.arenas.size * item * (1 + len(optimizer.state)) + (1 << 20)


def read_state(folder: Path) -> dict[str, Any]:
    """trainer_state.json of a checkpoint."""
    from ..models.pretrained import read_json

    return read_json(folder / "trainer_state.json")

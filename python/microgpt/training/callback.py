"""Callbacks: code of the user's that a training run calls."""

from __future__ import annotations

from typing import Any, Protocol


class Control(Protocol):
    """What a callback may ask of the run."""

    step: int  # steps done

    def request_stop(self, reason: str) -> None:
        """End the run after this step, with a checkpoint."""

    def request_save(self) -> None:
        """Save a checkpoint after this step."""


class Callback:
    """Override what you need. An exception in a callback ends the run; the checkpoints before it stay.

    class StopBelow(microgpt.Callback):
        def record(self, values):
            self.loss = values.get("loss", 9.9)

        def step(self, control):
            if control.step % 10 == 0 and self.loss < 2.0:
                control.request_stop("loss below 2")

    microgpt.train(data="names", callbacks=[StopBelow()])
    """

    def record(self, values: dict[str, Any]) -> None:
        """One record of metrics.jsonl: `step`, and loss, lr, grad_norm, tokens_per_second... or val_loss."""

    def step(self, control: Control) -> None:
        """After every step, its record and before validation and saving; what is asked here is done in this step."""

    def close(self) -> None:
        """The run is over, for whatever reason."""

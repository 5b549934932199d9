"""Where a run reports to: metrics.jsonl for scripts, a live line for people."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import StorageError


class Callback(Protocol):
    """Is told of every record: step, loss, lr, tokens_per_second, grad_norm, or val_loss."""

    def record(self, values: dict[str, Any]) -> None:
        """One record."""

    def close(self) -> None:
        """The run is over."""


class JsonLines:
    """Appends records to a file, one JSON object a line; records after `resume_step` of an earlier try are dropped."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        kept = []
        try:
            if path.exists():
                kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= resume_step]
            self._file: IO[str] = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed by close)
            self._file.write("".join(line + "\n" for line in kept))
        except OSError as error:
            raise StorageError(f"writing {path} failed: {error.strerror or error}") from error

    def record(self, values: dict[str, Any]) -> None:
        """One line, flushed: a killed run keeps what it reported."""
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"writing {self.path} failed: {error.strerror or error}") from error

    def close(self) -> None:
        """See Callback."""
        self._file.close()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # half a line from a killed writer


class Progress:
    """The live line: step of steps, loss, tokens/s, time left (tqdm). Silent when `show` is False."""

    def __init__(self, first: int, total: int, show: bool) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        self._bar = tqdm(
            total=total,
            initial=first,
            disable=not show,
            unit="step",
            file=sys.stderr,
            mininterval=0.1 if sys.stderr.isatty() else 5.0,
            dynamic_ncols=True,
            bar_format="step {n_fmt}/{total_fmt} {bar:20}{postfix} [{elapsed}<{remaining}]",
            ascii=not _unicode(),
        )
        self._shown: dict[str, str] = {}

    def record(self, values: dict[str, Any]) -> None:
        """Update the line."""
        for key, text in (("loss", "{:.4f}"), ("val_loss", "{:.4f}"), ("tokens_per_second", "{:,.0f} tok/s")):
            if key in values:
                self._shown[key] = text.format(values[key])
        names = {"loss": "loss ", "val_loss": "val ", "tokens_per_second": ""}
        self._bar.set_postfix_str("  ".join(names[k] + v for k, v in self._shown.items()), refresh=False)
        self._bar.update(values["step"] - self._bar.n)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.close()


def _unicode() -> bool:
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    return "utf" in encoding.lower() and os.environ.get("TERM") != "dumb"

"""Where a run reports to: metrics.jsonl for scripts, a live line for people."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from .. import system
from ..errors import MissingExtraError
from ..io.files import storage_error
from .callback import Callback


class JsonLines(Callback):
    """Appends records to a file, one JSON object a line; records after `resume_step` of an earlier try are dropped."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        kept: list[bytes] = []
        try:
            # Steps only rise, so what is dropped is the end of the file; nothing before it is written again.
            self._file: IO[bytes] = open(path, "ab+", opener=_opener)  # noqa: SIM115 (closed by close)
            self._file.seek(0)
            for line in self._file:
                if _number(line, "step", sys.maxsize) > resume_step:
                    break
                kept.append(line)
            self._file.truncate(sum(map(len, kept)))
        except OSError as error:
            raise storage_error("writing metrics", path, error) from error
        self.elapsed = max([0.0, *(_number(line, "elapsed", 0.0) for line in kept)])  # seconds of the earlier tries

    def record(self, values: dict[str, Any]) -> None:
        """One line, flushed: a killed run keeps what it reported."""
        try:
            self._file.write(json.dumps(values).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise storage_error("writing metrics", self.path, error) from error

    def close(self) -> None:
        """See Callback."""
        with contextlib.suppress(OSError):  # of a line that a full disk refused, which was told when it happened
            self._file.close()


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | system.flags("NOFOLLOW", "CLOEXEC"), 0o666)


class Samples(Callback):
    """Appends samples to a file (None keeps none): step, prompt, text."""

    def __init__(self, path: Path | None, resume_step: int) -> None:
        self._lines = None if path is None else JsonLines(path, resume_step)

    def write(self, step: int, prompt: str, text: str) -> None:
        """One sample."""
        if self._lines is not None:
            self._lines.record({"step": step, "prompt": prompt, "text": text})

    def close(self) -> None:
        """See Callback."""
        if self._lines is not None:
            self._lines.close()


def _number(line: bytes, name: str, otherwise: float) -> float:
    try:
        return float(json.loads(line)[name]) if line.endswith(b"\n") else otherwise  # half a line from a killed writer
    except (ValueError, KeyError, TypeError):
        return otherwise


class TensorBoard(Callback):
    """Writes every number of a record as a scalar, with tensorboardX (extra `track`)."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as error:
            raise MissingExtraError(
                "tensorboard: tensorboardX is not installed: pip install 'microgpt[track]'"
            ) from error
        # What an earlier try wrote after the checkpoint is hidden by the reader.
        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def record(self, values: dict[str, Any]) -> None:
        """One scalar a number."""
        for name, value in values.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """See Callback."""
        self._writer.close()


class Progress(Callback):
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

    def write(self, line: str) -> None:
        """A line above the live one."""
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.close()


def _unicode() -> bool:
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    return "utf" in encoding.lower() and os.environ.get("TERM") != "dumb"

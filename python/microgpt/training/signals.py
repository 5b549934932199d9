"""SIGINT and SIGTERM end a run in order: the step is finished, a checkpoint saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from ..errors import UsageError

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal came while there was nothing yet to save."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Inside `with`, the first signal asks the attached run to stop; a second one ends the process at once.

    With no run attached the first raises Interrupted. Only the main thread may use it (UsageError elsewhere); a signal
    that the process ignores stays ignored.
    """

    def __init__(self) -> None:
        self.received = 0
        self._ask: Callable[[str], None] | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("handle_signals: only the main thread receives signals")
        for number in HANDLED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def attach(self, ask: Callable[[str], None] | None) -> None:
        """From now on a signal calls ask(name of the signal); None attaches nothing."""
        self._ask = ask

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        if self._ask is None:
            raise Interrupted(number)
        self._ask(signal.Signals(number).name)

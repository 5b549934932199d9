"""Record a function's kernel calls once and replay them: training steps without Python in between.

What changes from call to call (tokens, targets, lengths, learning rate, step number) lives in buffers that are fed
before the replay. Everything else, shapes and Python numbers included, is frozen at the recording.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from . import _kernels as k

T = TypeVar("T")


def replay_enabled() -> bool:
    """False when MICROGPT_REPLAY=0 asks for eager execution; the results are the same bits."""
    return os.environ.get("MICROGPT_REPLAY", "1") != "0"


class Program(Generic[T]):
    """A function recorded at its first call and replayed after that.

    `fn` takes nothing and returns what callers want to look at (tensors, arrays); replays write to the same memory, and
    return the same objects. Raises RecordingError when `fn` touches data outside an op. With MICROGPT_REPLAY=0 every
    call runs `fn`.
    """

    def __init__(self, fn: Callable[[], T]) -> None:
        self._fn = fn
        self._program: Any = None
        self._result: T | None = None

    def __call__(self) -> T:
        if not replay_enabled():
            return self._fn()
        if self._program is not None:
            self._program.run()
            return self._result  # type: ignore[return-value]
        program = k.Program()
        program.begin()
        try:
            self._result = self._fn()
        except BaseException:
            program.abandon()
            raise
        program.end()
        self._program = program
        return self._result

    def __len__(self) -> int:
        return 0 if self._program is None else len(self._program)

    @property
    def bytes(self) -> int:
        """Memory held for replays."""
        return 0 if self._program is None else int(self._program.bytes)

    @property
    def live_bytes(self) -> int:
        """The most bytes that were alive at one moment of the recording: a lower bound of `bytes`."""
        return 0 if self._program is None else int(self._program.live_bytes)

    @property
    def host_nodes(self) -> int:
        """Nodes that call back into Python."""
        return 0 if self._program is None else int(self._program.host_nodes)

    def kernels(self) -> list[str]:
        """The kernel of each node, in order."""
        return [] if self._program is None else list(self._program.names())

    def profile(self, repeats: int = 10) -> dict[str, float]:
        """Seconds spent in each kind of kernel in one replay, nodes one after the other: the smallest of `repeats`."""
        if self._program is None:
            return {}
        runs = [self._program.profile() for _ in range(repeats)]
        shares: dict[str, float] = {}
        for name, seconds in zip(self._program.names(), map(min, zip(*runs, strict=True)), strict=True):
            shares[name] = shares.get(name, 0.0) + seconds
        return shares

    def dump(self) -> str:
        """One line a node: number, kernel, shares, scratch bytes, and beside which node it runs, if beside one."""
        return "" if self._program is None else str(self._program.dump())

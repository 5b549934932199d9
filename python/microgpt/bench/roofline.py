"""The machine's limits, measured: float32 multiply-adds, the fastest bfloat16 product, reading and copying memory.

They are loops of our own (csrc/kernels/peak.inl.h) on all threads, so that a share of the roofline is a share of what
this machine did in this run, clock, neighbours and all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from .. import _kernels as k
from ..api import info
from .peers.serve import Handler

BYTES = 192 << 20  # beyond every cache
PEAK_SECONDS = 0.002  # of arithmetic at a time
LIMITS = {
    "float32": "GFLOP/s",  # fma
    "bfloat16": "GFLOP/s",  # the product of pairs, or of tiles, where there is one
    "read": "GB/s",
    "copy": "GB/s",  # from one array to another: reading, and writing lines that were fetched for it
    "update": "GB/s",  # in place
}  # fmt: skip


def _times(step: Callable[[], object], budget: float) -> list[float]:
    """Seconds of each of the calls that `budget` seconds allow, after one that is not counted."""
    step()
    times: list[float] = []
    end = time.perf_counter() + budget
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return times


class Probes:
    """measure(limit, seconds) for each name of LIMITS. Memory is allocated at the first use and kept.

    Of arithmetic the best time counts: whatever is slower was disturbed. Between the rounds of a case (`turn`) it is
    the mean, which is also what a turn of the case gives: the clock is no more the same from call to call. Of memory
    the median: neighbours share its bandwidth, and what it reaches for a moment is not what a kernel finds.
    """

    def __init__(self) -> None:
        self._arrays: tuple[k.Array, k.Array, k.Array] | None = None
        self._y: k.Array | None = None

    def _memory(self) -> tuple[k.Array, k.Array, k.Array]:
        if self._arrays is None:
            x, y = k.empty((BYTES // 4,)), k.empty((BYTES // 4,))
            k.fill(x, 1.0)
            k.fill(y, 1.0)
            self._arrays = x, y, k.empty((-(-x.size // k.READ_GRAIN),), "float64")
        return self._arrays

    def _chains(self) -> k.Array:
        if self._y is None:
            one = k.empty((1,))
            shares = max(1, int(PEAK_SECONDS / min(_times(lambda: k.peak_fma(one), 0.01)))) * k.num_threads()
            self._y = k.empty((shares,))
        return self._y

    def measure(self, limit: str, seconds: float, turn: bool = False) -> float:
        """FLOP/s or bytes/s."""
        if limit in ("float32", "bfloat16"):
            y = self._chains()
            run = k.peak_fma if limit == "float32" else k.peak_bf16
            times = _times(lambda: run(y), seconds)
            return float(y.size * k.PEAK_GRAIN / (statistics.fmean(times) if turn else min(times)))
        x, y, partial = self._memory()
        if limit == "read":
            return x.nbytes / statistics.median(_times(lambda: k.read(x, partial), seconds))
        source = x if limit == "copy" else y
        return 2 * x.nbytes / statistics.median(_times(lambda: k.axpy(source, y), seconds))

    def handlers(self) -> dict[str, Handler]:
        """For a child: {"do": "probe", "limit", "seconds", "turn" or not} -> {"rate"}."""

        def probe(request: dict[str, Any]) -> dict[str, Any]:
            return {"rate": self.measure(request["limit"], request["seconds"], request.get("turn", False))}

        return {"probe": probe}


def hello() -> dict[str, Any]:
    """What our child says first: the machine, as it sees it."""
    found = info()
    return {key: found[key] for key in ("microgpt", "cpu", "isa", "threads", "threads_why", "openmp", "platform")}

"""What a run costs: the machine's peak, the process's memory, and the figures made of them."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import numpy as np

from .. import _kernels as k

SIDE = 512  # of the square product: 268 MFLOP, in the caches, large enough for every thread
SECONDS = 0.1
TRAINING = 3  # FLOPs of a training step per FLOP of its forward: the backward has two products for each one


@functools.lru_cache(maxsize=16)
def _peak(dtype: str, threads: int, isa: str) -> float:
    values = np.random.default_rng(0).standard_normal((SIDE, SIDE))
    if dtype == "bfloat16":
        import ml_dtypes

        values = values.astype(ml_dtypes.bfloat16)
    x, y = k.from_numpy(values.astype(dtype) if dtype != "bfloat16" else values), k.empty((SIDE, SIDE), dtype)
    best = float("inf")
    end = time.perf_counter() + SECONDS
    while best == float("inf") or time.perf_counter() < end:
        started = time.perf_counter()
        k.gemm(x, x, y, SIDE, SIDE, SIDE, trans_b=True)
        best = min(best, time.perf_counter() - started)
    return 2.0 * SIDE**3 / best


def peak_flops(dtype: str) -> float:
    """FLOP/s of the fastest 512 x 512 x 512 product of 100 ms; measured once in a process."""
    return _peak(dtype, k.num_threads(), k.isa())


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


class Meter:
    """Adds to a record: `elapsed` seconds of all tries of the run, `memory` in bytes, `flops_utilisation`.

    Utilisation is the FLOPs that the targets of a second need (recomputation and padding do not count) over
    peak_flops().
    """

    def __init__(self, flops_per_token: float, dtype: str, before: float = 0.0) -> None:
        self.flops_per_token = flops_per_token
        self.peak = peak_flops(dtype)
        self._started = time.perf_counter() - before

    def __call__(self, tokens_per_second: float) -> dict[str, float]:
        """The figures now."""
        return {
            "flops_utilisation": round(tokens_per_second * self.flops_per_token / self.peak, 4),
            "memory": resident_bytes(),
            "elapsed": round(time.perf_counter() - self._started, 3),
        }

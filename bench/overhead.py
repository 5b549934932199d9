"""What a call costs beyond its kernel: ops without and with tape, shared nodes, replay.

    python bench/overhead.py

Prints medians and 99th percentiles in microseconds, and one JSON line. Each figure is of many bursts; a burst is timed
as a whole, so that the clock itself does not count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from microgpt import Tensor, no_grad, ops
from microgpt import _kernels as k
from microgpt.program import Program


def measure(run: Callable[[], object], calls: int, bursts: int) -> tuple[float, float]:
    """Median and 99th percentile of microseconds per call."""
    for _ in range(3):
        run()
    times = []
    for _ in range(bursts):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return float(np.median(times)), float(np.percentile(times, 99))


def chain(x: k.Array, y: k.Array, nodes: int) -> Program[k.Array]:
    """A program of `nodes` copies, recorded."""

    def record() -> k.Array:
        for _ in range(nodes // 2):
            k.axpy(x, y)
            k.axpy(y, x)
        return x

    program = Program(record)
    program()
    return program


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bursts", type=int, default=300, help="bursts for each figure (default: 300)")
    bursts = parser.parse_args().bursts
    small = np.ones(64, np.float32)
    x, y = k.from_numpy(small), k.from_numpy(small)
    plain, taped = Tensor(small), Tensor(small, requires_grad=True)
    large = k.from_numpy(np.zeros(2 * 16384, np.float32))  # two shares: handed to the team
    other = k.empty_like(large)
    figures: dict[str, tuple[float, float]] = {}
    figures["kernel alone (axpy of 64, from Python)"] = measure(lambda: k.axpy(x, y), 200, bursts)

    def without_tape() -> None:
        with no_grad():
            ops.exp(plain)

    figures["op of 64 without tape (no gradient wanted)"] = measure(lambda: ops.exp(plain), 200, bursts)
    figures["the same inside no_grad()"] = measure(without_tape, 200, bursts)
    figures["op of 64 with tape"] = measure(lambda: ops.exp(taped), 200, bursts)
    figures["op with tape, and its backward"] = measure(lambda: ops.exp(taped).sum().backward(), 100, bursts)
    figures["kernel of two shares"] = measure(lambda: k.axpy(large, other), 100, bursts)

    serial = chain(x, y, 100)
    figures["replay of 100 small nodes, each node"] = tuple(value / 100 for value in measure(serial, 20, bursts))  # type: ignore[assignment]
    shared = chain(large, other, 100)
    per_node = measure(shared, 5, bursts)
    figures["replay of 100 nodes of two shares (16,384 floats each), each node"] = (
        per_node[0] / 100,
        per_node[1] / 100,
    )
    threads = k.num_threads()
    k.set_num_threads(1)
    alone = measure(shared, 5, bursts)
    k.set_num_threads(threads)
    figures["the same on one thread"] = (alone[0] / 100, alone[1] / 100)

    def eager() -> None:
        for _ in range(50):
            k.axpy(x, y)
            k.axpy(y, x)

    figures["100 small nodes launched eagerly, each node"] = tuple(value / 100 for value in measure(eager, 5, bursts))  # type: ignore[assignment]
    figures["recording 100 small nodes, each node"] = tuple(
        value / 100 for value in measure(lambda: chain(x, y, 100), 2, bursts)
    )  # type: ignore[assignment]
    print(f"{k.cpu_model()}, {k.isa()}, {threads} threads; microseconds")
    print(f"{'':70} median     p99")
    for name, (median, high) in figures.items():
        print(f"{name:70} {median:6.3f} {high:7.3f}")
    machine = {"cpu": k.cpu_model(), "isa": k.isa(), "threads": threads}
    print(json.dumps({"bench": "overhead", **machine, "microseconds": figures}))


if __name__ == "__main__":
    main()

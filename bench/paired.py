"""Runs rivals in warm child processes of their own, in turns, and compares their times pairwise.

Each child reads a line "run SECONDS" and answers with seconds per step; one library a process, because thread pools
disturb each other. The ratio of a pair is unaffected by slow drift of the machine.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field


@dataclass
class Child:
    """One rival: its name and command. `info` is the JSON line that it prints when it is ready."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start the process and wait until it is warm. Raises RuntimeError with its last words if it ends."""
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )
        self.info = json.loads(self._line())
        self.times: list[float] = []

    def run(self, seconds: float) -> float:
        """Seconds per step, over about `seconds`."""
        assert self._process.stdin
        self._process.stdin.write(f"run {seconds}\n")
        self._process.stdin.flush()
        taken = float(self._line())
        self.times.append(taken)
        return taken

    def stop(self) -> None:
        """End the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=30)

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self._process.wait()}")
        return line


def serve(info: dict[str, object], step: object) -> None:
    """The child's side: announce, then time `step()` whenever asked."""
    print(json.dumps(info), flush=True)
    for line in sys.stdin:
        seconds = float(line.split()[1])
        start = time.perf_counter()
        count, now = 0, start
        while now - start < seconds:
            burst = max(1, count // 4)
            for _ in range(burst):
                step()  # type: ignore[operator]
            count += burst
            now = time.perf_counter()
        print((now - start) / count, flush=True)


def busy_elsewhere() -> float:
    """CPU seconds used on this machine so far, by everybody."""
    with open("/proc/stat") as file:
        fields = [int(x) for x in file.readline().split()[1:9]]
    return sum(fields[i] for i in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")


def compare(ours: Child, peer: Child, rounds: int, seconds: float) -> dict[str, float]:
    """Alternate the two; the median times (s), the median of the paired ratios peer/ours and its 95 % interval."""
    ratios = []
    for number in range(rounds):
        pair = (ours, peer) if number % 2 == 0 else (peer, ours)
        for child in pair:
            child.run(seconds)
        ratios.append(peer.times[-1] / ours.times[-1])
    rng = random.Random(0)
    draws = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "ours": statistics.median(ours.times),
        "ours_min": min(ours.times),
        "ours_max": max(ours.times),
        "peer": statistics.median(peer.times),
        "peer_min": min(peer.times),
        "peer_max": max(peer.times),
        "ratio": statistics.median(ratios),
        "ratio_low": draws[50],
        "ratio_high": draws[1949],
    }

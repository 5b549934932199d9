"""Rivals in warm child processes of their own, run in turns and compared pairwise.

One library a process, because thread pools disturb each other; turns, because slow drift of the machine does not touch
the ratio of two neighbours in time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ChildError

OURS = "microgpt"
PEERS_FOLDER = Path(__file__).parent / "peers"
REST = 0.2  # seconds given to a thread pool after its turn: OpenBLAS spins for tens of milliseconds before it sleeps
LAST_WORDS = 300
LEAST_ROUNDS = 3  # of a contest whose budget is spent: fewer have no median
DISTURBED = 0.08  # of the machine used by others, above which a figure is marked


class Child:
    """A process that answers JSON lines (peers/serve.py). `hello` is what it said when it was ready.

    Raises ChildError, with its last words, when it ends, or is silent for `timeout` seconds.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 300.0
    ) -> None:
        self.name, self.timeout = name, timeout
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        self._lines: queue.Queue[str | None] = queue.Queue()
        try:
            self._process = subprocess.Popen(
                [*command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                text=True,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we end the child
            )
        except OSError as error:
            self._words.close()
            raise ChildError(f"{name}: cannot start {command[0]}: {error.strerror or error}") from error
        self.pid = self._process.pid
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.hello = self._answer()
        except BaseException:
            self.stop()
            raise

    def _listen(self) -> None:
        assert self._process.stdout
        with contextlib.suppress(ValueError):  # closed under our hands
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; {"error": text} if it failed there."""
        assert self._process.stdin
        with contextlib.suppress(OSError):  # a child that is gone is noticed by its silence
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def need(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that must not fail."""
        answer = self.ask(request)
        if "error" in answer:
            raise ChildError(f"{self.name}: {request['do']} failed: {answer['error']}")
        return answer

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self.timeout)
        except queue.Empty:
            raise ChildError(f"{self.name}: no answer for {self.timeout:g} s{self.last_words()}") from None
        if line is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
            code = self._process.returncode
            how = (
                f"killed by {signal.Signals(-code).name}"
                if code is not None and code < 0
                else f"ended with code {code}"
            )
            raise ChildError(f"{self.name}: {how}{self.last_words()}")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ChildError(f"{self.name}: expected a JSON object, got {line[:80]!r}{self.last_words()}")
        return answer

    def settle(self) -> None:
        """Wait until no thread of the process runs, so that the next one has the machine; REST seconds at most."""
        end, quiet = time.perf_counter() + REST, 0
        while time.perf_counter() < end and quiet < 3:
            time.sleep(0.002)
            quiet = 0 if self._running() else quiet + 1

    def _running(self) -> bool:
        try:
            for path in Path(f"/proc/{self.pid}/task").iterdir():
                if (path / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                    return True
        except (OSError, IndexError):
            return not Path("/proc/self/task").is_dir()  # elsewhere one can only wait
        return False

    def last_words(self) -> str:
        """What it wrote to stderr last, for messages."""
        self._words.seek(0)
        text = self._words.read().decode("utf-8", "replace").split("\n")
        words = [" ".join(line.split()) for line in text if line.strip()]
        return f"; it said: {words[-1][-LAST_WORDS:]}" if words else ""

    def stop(self) -> None:
        """End the process and what it started."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                assert self._process.stdin
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        self._words.close()


def our_command(module: str) -> list[str]:
    """The command of a child of ours: microgpt.bench.`module`."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
            f"from microgpt.bench import {module}; {module}.main()"]  # fmt: skip


def peer_command(python: str, module: str) -> list[str]:
    """The command of a peer's child: peers/`module`, with any Python that has the peer."""
    return [python, str(PEERS_FOLDER), module]


def thread_settings(threads: int) -> dict[str, str]:
    """Environment that gives every library the same number of threads."""
    names = ("MICROGPT_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


class Rivals:
    """The children of a comparison by name, ours first; leaving the `with` ends them all."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Rivals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self.children.values():
            child.stop()

    def start(self, name: str, command: Sequence[str], threads: int, timeout: float) -> Child:
        """Start one more."""
        self.children[name] = Child(name, command, thread_settings(threads), timeout)
        return self.children[name]

    def drop(self, name: str) -> None:
        """End one for good."""
        self.children.pop(name).stop()

    @property
    def ours(self) -> Child:
        return self.children[OURS]


class Elsewhere:
    """How much of the machine processes other than this one and `pids` use; None where /proc does not tell."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = ("self", *map(str, pids))
        self._start = self._now()

    def _now(self) -> tuple[float, float, float] | None:
        try:
            fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
            busy = sum(fields[i] for i in (0, 1, 2, 5, 6, 7))  # all but idle and waiting for disks; stolen time counts
            own = 0
            for pid in self._pids:
                # The name in field 2 may hold spaces; utime, stime, cutime and cstime are fields 14 to 17.
                rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                own += int(rest[11]) + int(rest[12])
                if pid == "self":  # and of processes that it started and that have ended
                    own += int(rest[13]) + int(rest[14])
        except (OSError, ValueError, IndexError):
            return None
        tick = os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy / tick, own / tick

    def share(self) -> float | None:
        """Since the beginning: 0.5 means half of the machine's CPU time."""
        now = self._now()
        if now is None or self._start is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, busy - own) / max(1e-9, wall * (os.cpu_count() or 1))


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % of the medians of resampled ratios (bootstrap) lie between these."""
    rng = random.Random(0)
    draws = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return draws[50], draws[1949]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def contest(
    children: Mapping[str, Any],
    rounds: int,
    seconds: float,
    probe: str | None = None,
    probe_seconds: float = 0.02,
    budget: float = math.inf,
) -> tuple[dict[str, dict[str, Any]], float | None, float | None]:
    """Run the steps that `children` (or what answers as they do) have set up in turns; the first of a round changes.

    After `budget` seconds no further round begins, once there have been LEAST_ROUNDS.

    Returns for each the median, min and max seconds, and for each but ours the paired ratio to ours with its interval
    (above 1: ours is faster); the median rate of our `probe` between the rounds; what others used of the machine. A
    child whose step fails has {"error": text} instead.
    """
    times: dict[str, list[float]] = {name: [] for name in children}
    failed: dict[str, str] = {}
    rates: list[float] = []
    elsewhere = Elsewhere([child.pid for child in children.values()])
    names = list(children)
    for child in children.values():
        child.settle()
    start = time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - start > budget:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if name in failed:
                continue
            answer = children[name].ask({"do": "run", "seconds": seconds})
            if "error" in answer:
                failed[name] = answer["error"]
                continue
            times[name].append(answer["seconds"])
            children[name].settle()
        if probe is not None:
            request = {"do": "probe", "limit": probe, "seconds": probe_seconds, "turn": True}
            rates.append(children[OURS].need(request)["rate"])
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in failed:
            results[name] = {"error": failed[name]}
            continue
        results[name] = {**spread(times[name]), "rounds": len(times[name])}
        if name != OURS and OURS not in failed:
            ratios = [theirs / ours for theirs, ours in zip(times[name], times[OURS], strict=True)]
            low, high = interval(ratios)
            results[name].update(ratio=statistics.median(ratios), ratio_low=low, ratio_high=high)
    return results, statistics.median(rates) if rates else None, elsewhere.share()

"""Threads where processors are scarce: too many threads, several processes, busy pools beside ours, a quota.

Bounds are for collapse, not for speed. A team whose threads wait for one that is not running takes hundreds of times as
long (a time slice of milliseconds for a node of microseconds); what remains on a shared machine is a small factor.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import no_grad, ops
from microgpt.program import Program

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
BOUND = 6.0  # times what one thread takes under the same conditions


def work() -> Program[Any]:
    """120 nodes, most of them of several shares, 10 to 100 us each: how a small training step looks to the team."""
    rng = np.random.default_rng(0)
    x, weight = (k.from_numpy(rng.standard_normal((192, 192), dtype=np.float32) / 16) for _ in range(2))

    def body() -> Any:
        y: Any = x
        for _ in range(40):
            y = ops.softmax(ops.activation(ops.linear(y, weight), "gelu"))
        return y

    program = Program(body)
    with no_grad():
        program()
    return program


def seconds(program: Callable[[], object], budget: float = 0.3) -> float:
    """Median of a replay."""
    times = []
    end = time.perf_counter() + budget
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        program()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def one_and(threads: int, budget: float = 0.3) -> tuple[float, float]:
    """Replay times on one thread and on `threads`, in turns; and the bits are the same."""
    program = work()
    times: dict[int, list[float]] = {1: [], threads: []}
    bits = set()
    before = k.num_threads()
    try:
        for _ in range(3):
            for count, each in times.items():
                k.set_num_threads(count)
                bits.add(program().numpy().tobytes())
                each.append(seconds(program, budget / 3))
    finally:
        k.set_num_threads(before)
    assert len(bits) == 1
    return statistics.median(times[1]), statistics.median(times[threads])


CHILD = """
import json, os, sys
from tests.test_threads import one_and
from microgpt import _kernels as k
print(json.dumps([*one_and(int(sys.argv[1]), float(sys.argv[2])), k.thread_choice()[0]]), flush=True)
os._exit(0)  # threads of other libraries may still be at work: leaving in order is not what is tested
"""


def start(threads: int, budget: float, before: str = "", **environment: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", before + CHILD, str(threads), str(budget)],
        cwd=root, text=True, stdout=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip


def answer(child: subprocess.Popen[str]) -> tuple[float, float, int]:
    out, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    one, many, choice = json.loads(out)
    return one, many, choice


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that keep `count` processors busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_more_threads_than_processors(factor: int) -> None:
    one, many = one_and(max(2, factor * CPUS))
    print(f"{factor} threads a processor: {many / one:.2f} times one thread")
    assert many <= BOUND * one


@pytest.mark.soak
@pytest.mark.parametrize("neighbours", [1, CPUS, 2 * CPUS])
def test_beside_busy_processes(neighbours: int) -> None:
    with busy(neighbours):
        one, many = one_and(max(2, CPUS), 3.0)
    print(f"{neighbours} neighbours: {many / one:.2f} times one thread")
    assert many <= BOUND * one


@pytest.mark.soak
def test_several_processes_at_once() -> None:
    alone, _, _ = answer(start(max(2, CPUS), 1.0))
    count = CPUS + 1
    children = [start(max(2, CPUS), 3.0) for _ in range(count)]
    for one, many, _ in map(answer, children):
        print(f"{count} processes: {one / alone:.2f} and {many / alone:.2f} times one thread alone")
        assert many <= BOUND * one
        assert many <= BOUND * alone * count / CPUS


def test_beside_a_pool_of_numpy() -> None:
    """OpenBLAS's threads spin for a while after a product: our team must not wait for a processor that they hold."""
    a = np.ones((384, 384), np.float32)
    program = work()
    times: dict[int, list[float]] = {1: [], max(2, CPUS): []}
    before = k.num_threads()
    try:
        for _ in range(10):
            for count, each in times.items():
                k.set_num_threads(count)
                program()
                for _ in range(3):
                    a @ a
                    begin = time.perf_counter()
                    program()
                    each.append(time.perf_counter() - begin)
    finally:
        k.set_num_threads(before)
    one, many = map(statistics.median, times.values())
    print(f"after a product of NumPy: {many / one:.2f} times one thread")
    assert many <= BOUND * one


@pytest.mark.soak
def test_beside_busy_threads_of_numpy_and_pytorch() -> None:
    """Products in other Python threads of the same process all the while."""
    before = (
        "import threading, numpy as np\n"
        "def spin(a):\n"
        "    while True: a @ a\n"
        "threading.Thread(target=spin, args=(np.ones((512, 512), np.float32),), daemon=True).start()\n"
    )
    peers = {"NumPy": before}
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0:
        peers["PyTorch"] = before.replace("numpy as np", "torch as np").replace(
            "np.ones((512, 512), np.float32)", "np.ones(512, 512)"
        )
    for name, text in peers.items():
        one, many, _ = answer(start(max(2, CPUS), 2.0, text))
        print(f"beside products of {name}: {many / one:.2f} times one thread")
        assert many <= BOUND * one


@contextmanager
def quota(cpus: float) -> Iterator[Path]:
    """A cgroup (v2, or v1) that grants `cpus` processors; a test that cannot make one is skipped."""
    for root, unified in ((Path("/sys/fs/cgroup/cpu"), False), (Path("/sys/fs/cgroup"), True)):
        try:
            folder = Path(tempfile.mkdtemp(prefix="microgpt-test-", dir=root))
        except OSError:
            continue
        try:
            if unified:
                (folder / "cpu.max").write_text(f"{int(cpus * 100000)} 100000")
            else:
                (folder / "cpu.cfs_period_us").write_text("100000")
                (folder / "cpu.cfs_quota_us").write_text(str(int(cpus * 100000)))
        except OSError:
            folder.rmdir()
            continue
        try:
            yield folder
        finally:
            for _ in range(50):  # a group is busy until its last process is quite gone
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
        return
    pytest.skip("no cgroup can be made here (needs root and a writable cpu controller)")


@pytest.mark.soak
@pytest.mark.parametrize("cpus", [0.5, 1.0, 1.5])
def test_under_a_quota(cpus: float) -> None:
    """Spinning would burn the quota: the process would stand still for the rest of every period."""
    with quota(cpus) as folder:
        enter = f"open({str(folder / 'cgroup.procs')!r}, 'w').write('0')\n"
        one, many, choice = answer(start(max(2, CPUS), 3.0, enter))
    print(f"{cpus} CPUs granted: {choice} threads chosen, {many / one:.2f} times one thread with {max(2, CPUS)}")
    assert choice == min(CPUS, max(1, int(cpus)))
    assert many <= BOUND * one

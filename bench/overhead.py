"""What microgpt costs beyond its kernels: calls, the tape, nodes, recordings, memory plans, and busy neighbours.

    python bench/overhead.py
    python bench/overhead.py --only calls --neighbours 0,1,2

Sections: calls (an op of 64 floats from Python, less its kernel's own time), nodes (replay, serial and shared), record
(eager step, recording, replay), memory (the plan of a recording beside the most bytes ever alive), scaling (one and two
threads), and with --neighbours steps beside that many busy processes. Prints median, mean and 99th percentile, and one
JSON line. A figure of microseconds is of many bursts, each timed as a whole, so that the clock itself does not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from microgpt import Tensor, no_grad, ops
from microgpt import _kernels as k
from microgpt.bench.ours_train import initial_model
from microgpt.bench.peers.configs import CONFIGS
from microgpt.nn import Ctx, Layout
from microgpt.optim import AdamW, Optimizer, decay_groups
from microgpt.program import Program

SECTIONS = ("calls", "nodes", "record", "memory", "scaling")
Figure = dict[str, float]


def summary(times: list[float], scale: float = 1.0) -> Figure:
    """Median, mean and 99th percentile of times in seconds, times `scale`."""
    t = np.array(times) * scale
    return {"median": float(np.median(t)), "mean": float(t.mean()), "p99": float(np.percentile(t, 99))}


def show(name: str, figure: Figure, unit: str, digits: int = 3) -> None:
    """One line."""
    print(f"{name:62}" + "".join(f" {figure[key]:9.{digits}f}" for key in ("median", "mean", "p99")) + f" {unit}")


def bursts(run: Callable[[], object], calls: int, seconds: float) -> list[float]:
    """Seconds per call of each burst of `calls`."""
    run()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - start) / calls)
    return times


def recorded(run: Callable[[], object], times: int = 1) -> Program[None]:
    """A program of `times` calls."""

    def body() -> None:
        for _ in range(times):
            run()

    program = Program(body)
    program()
    return program


def calls(seconds: float) -> dict[str, Figure]:
    """An op from Python less its kernel: what a replayed node of the same kernel takes."""
    rng = np.random.default_rng(0)
    flat = rng.random(64, dtype=np.float32) + 1
    rows, weight, gain = (rng.random(shape, dtype=np.float32) for shape in ((4, 16), (16, 16), (16,)))
    found: dict[str, Figure] = {}
    x, y = k.from_numpy(flat), k.from_numpy(flat)
    kernel = np.median(bursts(recorded(lambda: k.axpy(x, y), 100), 20, seconds)) / 100
    found["kernel call: axpy"] = summary([t - kernel for t in bursts(lambda: k.axpy(x, y), 200, seconds)], 1e6)
    cases: dict[str, tuple[Any, ...]] = {
        "exp": (flat,), "add": (flat, flat), "rms_norm": (rows, gain), "glu": (rows, rows), "linear": (rows, weight),
    }  # fmt: skip
    for name, arrays in cases.items():
        op = getattr(ops, name)
        for tape in (False, True):
            inputs = [Tensor(each, requires_grad=tape) for each in arrays]
            alone = np.median(bursts(recorded(lambda op=op, inputs=inputs: op(*inputs), 50), 20, seconds)) / 50
            times = bursts(lambda op=op, inputs=inputs: op(*inputs), 100, seconds)
            found[f"op {name}, {'with' if tape else 'without'} tape"] = summary([t - alone for t in times], 1e6)
    plain, taped = Tensor(flat), Tensor(flat, requires_grad=True)

    def without() -> None:
        with no_grad():
            ops.exp(plain)

    found["exp inside no_grad(), kernel included"] = summary(bursts(without, 100, seconds), 1e6)
    found["exp, sum and their backward, kernels included"] = summary(
        bursts(lambda: ops.exp(taped).sum().backward(), 50, seconds), 1e6
    )
    for name, figure in found.items():
        show(name, figure, "us")
    return found


def nodes(seconds: float) -> dict[str, Figure]:
    """Nodes of shares that do nothing."""
    found: dict[str, Figure] = {}
    for name, shares in (("serial node", 1), ("node of two shares", 2), ("node of eight shares", 8)):
        program = recorded(lambda shares=shares: k.launch_nothing(shares), 1000)
        found[name] = summary([t / 1000 for t in bursts(program, 1, seconds)], 1e9)
    for name, figure in found.items():
        show(f"{name}, replayed", figure, "ns", 1)
    return found


def make_step(name: str) -> Callable[[], Tensor]:
    """A training step of CONFIGS: forward, loss, backward, clipping, AdamW."""
    config = CONFIGS[name]
    block, batch = config["block"], config["batch"]
    model = initial_model(config)
    optimizer = Optimizer(model, AdamW(0.9, 0.95, 1e-8), decay_groups(0.1), 1.0)
    ids = np.random.default_rng(0).integers(0, config["vocab"], (2, block * batch), dtype=np.int32)
    tokens, targets = k.from_numpy(ids[0]), k.from_numpy(ids[1])
    layout = Layout.packed([block] * batch)
    optimizer.feed(1, 1e-3)

    def step() -> Tensor:
        loss = model.loss(tokens, targets, Ctx(layout))
        loss.backward()
        optimizer.launch(loss)
        return loss

    return step


def record(seconds: float) -> dict[str, Any]:
    """Eager steps, recordings and replays in turns."""
    found: dict[str, Any] = {}
    for name in ("a", "b"):
        step = make_step(name)
        step()
        times: dict[str, list[float]] = {"eager": [], "record": [], "replay": []}
        end = time.perf_counter() + 4 * seconds
        while len(times["eager"]) < 5 or time.perf_counter() < end:
            program = Program(step)
            for kind, run in (("eager", step), ("record", program), ("replay", program)):
                start = time.perf_counter()
                run()
                times[kind].append(time.perf_counter() - start)
        found[name] = {kind: summary(each, 1e3) for kind, each in times.items()}
        found[name]["record / eager"] = found[name]["record"]["median"] / found[name]["eager"]["median"]
        for kind in times:
            show(f"step {name}, {kind}", found[name][kind], "ms")
        print(f"step {name}: recording takes {found[name]['record / eager']:.2f} eager steps")
    return found


def memory(seconds: float) -> dict[str, Any]:
    """The memory of recorded steps beside the most bytes that ever lived at once."""
    found: dict[str, Any] = {}
    for name in CONFIGS:
        program = Program(make_step(name))
        program()
        ratio = program.bytes / program.live_bytes
        found[name] = {"nodes": len(program), "bytes": program.bytes, "live_bytes": program.live_bytes, "ratio": ratio}
        print(
            f"step {name}: {len(program)} nodes, plan {program.bytes:,} bytes, live {program.live_bytes:,}: {ratio:.4f}"
        )
        del program
        k.trim_pool()
    return found


def in_turns(program: Program[Any], seconds: float, rounds: int) -> dict[str, Figure]:
    """Milliseconds of a replay on one thread and on all, in turns."""
    threads = k.num_threads()
    times: dict[int, list[float]] = {1: [], threads: []}
    for _ in range(rounds):
        for count, each in times.items():
            k.set_num_threads(count)
            each += bursts(program, 1, seconds)
    k.set_num_threads(threads)
    return {str(count): summary(each, 1e3) for count, each in times.items()}


def scaling(seconds: float) -> dict[str, Any]:
    """One thread against all."""
    found: dict[str, Any] = {}
    threads = str(k.num_threads())
    for name in ("b", "c", "d"):
        program = Program(make_step(name))
        program()
        found[name] = {"threads": in_turns(program, 2 * seconds, 2)}
        one, all_ = (found[name]["threads"][count]["median"] for count in ("1", threads))
        found[name]["speed-up"] = one / all_
        print(f"step {name}: {one:.2f} ms on one thread, {all_:.2f} on {threads}: {one / all_:.2f} times as fast")
    return found


def beside_neighbours(counts: list[int], seconds: float) -> dict[str, Any]:
    """Steps on one thread and on all beside busy processes."""
    programs: dict[str, Program[Any]] = {name: Program(make_step(name)) for name in ("a", "b")}
    programs["100 nodes of two shares"] = recorded(lambda: k.launch_nothing(2), 100)
    found: dict[str, Any] = {}
    threads = str(k.num_threads())
    for count in counts:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            time.sleep(0.3)
            for name, program in programs.items():
                times = in_turns(program, 2 * seconds, 3)
                ratio = {key: times[threads][key] / times["1"][key] for key in ("median", "mean", "p99")}
                found[f"{name} beside {count}"] = {"threads": times, "ratio": ratio}
                for each, figure in times.items():
                    show(f"{name}, {count} neighbours, {each} threads", figure, "ms")
                show(f"{name}, {count} neighbours: {threads} threads / 1", ratio, "")
        finally:
            for process in busy:
                process.kill()
                process.wait()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each figure (default: 0.2)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated (default: all)")
    parser.add_argument("--neighbours", default="", help="numbers of busy processes, such as 0,1,2 (default: none)")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else []
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"unknown sections {unknown}; known: {', '.join(SECTIONS)}")
    machine = {"cpu": k.cpu_model(), "isa": k.isa(), "threads": k.num_threads()}
    print(f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads")
    print(f"{'':62} {'median':>9} {'mean':>9} {'p99':>9}")
    results: dict[str, Any] = {}
    for section in (calls, nodes, record, memory, scaling):
        if section.__name__ in wanted:
            results[section.__name__] = section(args.seconds)
    if args.neighbours:
        results["neighbours"] = beside_neighbours([int(each) for each in args.neighbours.split(",")], args.seconds)
    print(json.dumps({"bench": "overhead", **machine, "results": results}))


if __name__ == "__main__":
    main()

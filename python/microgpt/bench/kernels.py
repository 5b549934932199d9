"""`microgpt bench kernels`: our kernels, NumPy, PyTorch and the roofline, case by case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ChildError
from . import report, rivals
from .cases import Case, cases
from .paired import DISTURBED, OURS, Rivals, contest, our_command, peer_command
from .roofline import LIMITS

PEERS = {"numpy": "numpy", "torch": "torch"}  # peer -> package
DTYPES = ("float32", "bfloat16")
ITEM = {"float32": 4, "bfloat16": 2}
# How far results may lie apart, as |a - b| over |a| of the sampled numbers. Sums of K terms of random signs differ by
# about sqrt(K) roundings of float32 (K is up to 16,384 here, so 2^-24 * 128) and as much again in gradients; bfloat16
# results carry their own rounding, 2^-9 each, and gradients go through a few of them.
ALLOWED = {"float32": 1e-3, "bfloat16": 3e-2}
UNCOMPARED = ("dropout",)  # its mask is random


@dataclass(frozen=True)
class Settings(rivals.Settings):
    """And which cases."""

    groups: tuple[str, ...]
    quick: bool
    budget: float  # seconds of a case after which no further round begins


def last_level_cache() -> int:
    """Bytes of the largest cache that this processor tells of; 32 MiB where it does not."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
        except (OSError, ValueError, IndexError):
            continue
    return max(sizes, default=32 << 20)


def takes_part(peer: str, case: Case, dtype: str) -> bool:
    """Whether the peer has this case at all."""
    return peer != "numpy" or (case.kind == "gemm" and dtype == "float32")


def moved(case: Case, dtype: str) -> int:
    """Bytes if each array moves once. Optimizer state and gradients are float32 in either type."""
    wide = case.kind in ("adamw", "gradient_norm")
    extra = case.sizes["rows"] * case.sizes["cols"] * 2 if case.kind == "adamw" and dtype == "bfloat16" else 0
    return (case.reads + case.writes) * (4 if wide else ITEM[dtype]) + extra


def limit_of(case: Case, dtype: str, limits: dict[str, float], cache: int) -> str:
    """Which of the machine's limits bounds the case: the one that takes longer."""
    if case.group == "elementwise" and case.memory:
        return "update" if case.kind == "adamw" else "copy" if case.writes else "read"
    nbytes = moved(case, dtype)
    in_memory = case.memory or nbytes > cache
    return "read" if in_memory and nbytes / limits["read"] > case.flops / limits[dtype] else dtype


def share_of(found: dict[str, Any], case: Case, dtype: str, limit: str, reached: float) -> None:
    """Add rates and the share of the limit to a result."""
    found["flops_per_second"] = case.flops / found["median"]
    found["bytes_per_second"] = moved(case, dtype) / found["median"]
    mine = found["flops_per_second"] if limit in DTYPES else found["bytes_per_second"]
    found["share"] = mine / reached


def differences(samples: dict[str, list[float]], results: dict[str, dict[str, Any]], allowed: float) -> None:
    """Add how far each peer's result lies from ours, and whether that is rounding."""
    ours = np.asarray(samples[OURS], np.float64)
    for name, values in samples.items():
        if name != OURS and "error" not in results[name]:
            apart = np.linalg.norm(np.asarray(values, np.float64) - ours) / max(float(np.linalg.norm(ours)), 1e-30)
            agrees = bool(apart <= allowed)
            results[name].update(difference=float(apart), allowed=allowed, agrees=agrees)


def measure_case(rivals: Rivals, case: Case, dtype: str, settings: Settings, limits: dict[str, float],
                 cache: int) -> report.Row:  # fmt: skip
    """Set the case up everywhere, run it in turns, compare."""
    taking = {name: child for name, child in rivals.children.items() if takes_part(name, case, dtype)}
    failed: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[float]] = {}
    for name, child in [*taking.items()]:
        answer = child.ask(case.request(dtype))
        if "error" in answer and name == OURS:
            raise ChildError(f"{OURS}: {case.name} in {dtype} failed: {answer['error']}")
        if "error" in answer:
            failed[name] = {"error": answer["error"]}
            del taking[name]
        else:
            samples[name] = answer["sample"]
    limit = limit_of(case, dtype, limits, cache)
    results, near, others = contest(taking, settings.rounds, settings.seconds, limit, budget=settings.budget)
    if "error" in results[OURS]:
        raise ChildError(f"{OURS}: {case.name} in {dtype} failed: {results[OURS]['error']}")
    reached = limits[limit] if near is None else near  # clock and memory drift: the probe between the rounds
    for found in results.values():
        if "error" not in found:
            share_of(found, case, dtype, limit, reached)
    if case.kind not in UNCOMPARED:
        differences(samples, results, ALLOWED[dtype])
    return {"case": case.name, "group": case.group, "dtype": dtype, "flops": case.flops, "bytes": moved(case, dtype),
            "limit": limit, "limit_rate": reached, "results": {**results, **failed}, "others": others}  # fmt: skip


WIDTHS = "{:<44} {:<4} {:<32} {:>16} {:>5}  {}"
TITLES = WIDTHS.format(" rows x inner x columns", "type", "microgpt, median [min, max]", "rate", "roof",
                       "a peer's time over ours [95 %]")  # fmt: skip


def line(row: report.Row) -> str:
    """A row for people."""
    ours = row["results"][OURS]
    limit = row["limit"]
    mine = ours["flops_per_second"] if limit in DTYPES else ours["bytes_per_second"]
    mark = "!" if (row["others"] or 0.0) > DISTURBED else " "
    peers = "  ".join(report.against(name, found) for name, found in row["results"].items() if name != OURS)
    short = {"float32": "f32", "bfloat16": "bf16"}[row["dtype"]]
    share, speed = report.percent(ours["share"]), report.rate(limit, mine)
    return WIDTHS.format(mark + row["case"], short, report.times(ours), speed, share, peers).rstrip()


def measure(settings: Settings, say: Callable[[str], None], progress: Callable[[Sequence[Any]], Any]) -> dict[str, Any]:
    """Everything; lines go to `say` as they come, `progress` wraps the list of cases. The result is plain JSON."""
    todo = [
        (case, dtype)
        for case in cases(settings.groups, settings.quick)
        for dtype in settings.dtypes
        if dtype in case.dtypes
    ]
    cache = last_level_cache()
    rows: list[report.Row] = []
    with Rivals() as rivals:
        ours = rivals.start(OURS, our_command("ours_kernels"), settings.threads, settings.timeout)
        seconds = 0.15 if settings.quick else 1.0
        limits = {name: ours.need({"do": "probe", "limit": name, "seconds": seconds})["rate"] for name in LIMITS}
        for name in settings.peers:
            rivals.start(name, peer_command(settings.python, f"{name}_kernels"), settings.threads, settings.timeout)
        machine = ours.hello
        for text in (*report.header(machine, settings.peers, limits), TITLES.rstrip()):
            say(text)
        for case, dtype in progress(todo):
            rows.append(measure_case(rivals, case, dtype, settings, limits, cache))
            for text in (line(rows[-1]), *report.failures(rows[-1])):
                say(text)
    summary, overall = report.summarize(rows, ("group", "dtype")), report.summarize(rows, ("dtype",))
    disturbed = report.disturbance([row["others"] for row in rows])
    told = [*report.summary_lines(summary, ("group", "dtype"))]
    if len(summary) > len(overall):
        told += report.summary_lines(overall, ("dtype",))
    for text in (*told, report.disturbance_line(disturbed)):
        say(text)
    return {
        "bench": "kernels", "machine": machine, "peers": settings.peers, "threads": settings.threads,
        "quick": settings.quick, "rounds": settings.rounds, "seconds": settings.seconds, "roofline": limits,
        "rows": rows, "summary": summary, "overall": overall, "disturbance": disturbed,
    }  # fmt: skip

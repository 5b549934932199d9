"""`microgpt bench train`: whole training steps beside PyTorch's, eager and compiled, and the roofline."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ChildError
from . import report, rivals
from .paired import DISTURBED, OURS, Rivals, contest, our_command, peer_command
from .peers.configs import CONFIGS
from .roofline import LIMITS

PEERS = {"torch": "torch", "torch-compile": "torch"}  # peer -> package
DTYPES = ("float32", "bfloat16")
# Losses of the first steps, relative: float32 differs by orders of summation, which AdamW's division amplifies; in
# bfloat16 autocast rounds at other places than we do (it keeps norms, residuals and logits in float32).
ALLOWED = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Settings(rivals.Settings):
    """And which cases."""

    configs: tuple[str, ...]
    per_op: bool


def _set_up(rivals: Rivals, name: str, dtype: str, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Ours writes its initial weights, which the peers load. Our answer, and the peers' answers or errors."""
    weights = str(folder / f"{name}-{dtype}.npz")
    request = {"do": "train", "config": name, "dtype": dtype, "weights": weights}
    ours = rivals.ours.need(request)
    answers = {}
    for peer, child in [*rivals.children.items()]:
        if peer != OURS:
            answers[peer] = child.ask({**request, "compile": peer == "torch-compile"})
    Path(weights).unlink()
    return ours, answers


def drift(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest relative difference of two courses of losses."""
    return max(abs(a - b) / max(abs(a), 1e-30) for a, b in zip(ours, theirs, strict=True))


def measure_step(rivals: Rivals, name: str, dtype: str, settings: Settings, peak: float, folder: Path) -> report.Row:
    """One configuration in one type."""
    config = CONFIGS[name]
    ours, answers = _set_up(rivals, name, dtype, folder)
    taking = {peer: child for peer, child in rivals.children.items() if "error" not in answers.get(peer, {})}
    results, _, others = contest(taking, settings.rounds, settings.seconds)
    if "error" in results[OURS]:
        raise ChildError(f"{OURS}: the step of {name} in {dtype} failed: {results[OURS]['error']}")
    tokens = config["batch"] * config["block"]
    for peer, found in results.items():
        if "error" in found:
            continue
        found.update(tokens_per_second=tokens / found["median"], flops_per_second=ours["flops"] / found["median"])
        found["share"] = found["flops_per_second"] / peak
        if peer != OURS:
            apart = drift(ours["losses"], answers[peer]["losses"])
            found.update(difference=apart, allowed=ALLOWED[dtype], agrees=apart <= ALLOWED[dtype])
    results.update({peer: {"error": answer["error"]} for peer, answer in answers.items() if "error" in answer})
    row: report.Row = {
        "case": f"{name} {dtype}", "config": name, "dtype": dtype, "layers": config["layers"], "width": config["width"],
        "heads": config["heads"], "block_size": config["block"], "batch_size": config["batch"],
        "vocab_size": config["vocab"], "parameters": ours["parameters"], "nodes": ours["nodes"], "flops": ours["flops"],
        "tokens": tokens, "losses": ours["losses"], "limit": dtype, "limit_rate": peak, "results": results,
        "others": others,
    }  # fmt: skip
    if settings.per_op:
        row["kernels"] = kernels(rivals.ours.need({"do": "profile", "repeats": 20 if ours["flops"] < 1e10 else 3}))
    return row


def kernels(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Each kernel's calls, seconds and share in a step, the largest first."""
    total = sum(profile["seconds"].values())
    return [
        {"kernel": name, "calls": profile["calls"][name], "seconds": seconds, "share": seconds / total}
        for name, seconds in sorted(profile["seconds"].items(), key=lambda item: -item[1])
    ]


TITLES = "a step, median [min, max]; its FLOPs over the peak; a peer's time over ours [95 %]; losses of the first steps"


def lines(row: report.Row) -> list[str]:
    """A row for people."""
    ours, mark = row["results"][OURS], "!" if (row["others"] or 0.0) > DISTURBED else " "
    found = [
        f"{mark}{row['case']}: {row['layers']} layers, {row['width']} wide, {row['heads']} heads, block "
        f"{row['block_size']}, batch {row['batch_size']}, {row['parameters']:,} parameters"
    ]
    for name, each in row["results"].items():
        if "error" in each:
            continue
        text = (f"    {name:<14} {report.times(each):<34} {each['tokens_per_second']:>11,.0f} tokens/s "
                f"{report.percent(each['share']):>5} of {report.rate(row['limit'], row['limit_rate'])}")  # fmt: skip
        if name != OURS:
            text += f"  {each['ratio']:.2f}x [{each['ratio_low']:.2f}, {each['ratio_high']:.2f}]"
            text += f"  losses within {each['difference']:.1e}" + ("" if each["agrees"] else " DIFFERS")
        found.append(text)
    found += report.failures(row)
    if "kernels" in row:
        whole = sum(each["seconds"] for each in row["kernels"])
        step = report.duration(ours["median"])
        found.append(f"    kernels of our step, each at its fastest: {report.duration(whole)} of {step}")
        for each in row["kernels"]:
            taken = report.duration(each["seconds"])
            found.append(f"      {each['kernel']:<24} {each['calls']:>5} calls {taken:>10} {each['share']:>6.1%}")
    return found


def measure(settings: Settings, say: Callable[[str], None], progress: Callable[[Sequence[Any]], Any]) -> dict[str, Any]:
    """Everything; lines go to `say` as they come, `progress` wraps the list of steps. The result is plain JSON."""
    todo = [(name, dtype) for name in settings.configs for dtype in settings.dtypes]
    rows: list[report.Row] = []
    with tempfile.TemporaryDirectory() as folder, Rivals() as rivals:
        ours = rivals.start(OURS, our_command("ours_train"), settings.threads, settings.timeout)
        limits = {name: ours.need({"do": "probe", "limit": name, "seconds": 0.5})["rate"] for name in LIMITS}
        for name in settings.peers:
            rivals.start(name, peer_command(settings.python, "torch_train"), settings.threads, settings.timeout)
        machine = ours.hello
        for text in (*report.header(machine, settings.peers, limits), TITLES):
            say(text)
        for name, dtype in progress(todo):
            # Taken again beside each step; the best counts, because a peer that has just begun may hold a core.
            for child in rivals.children.values():
                child.settle()
            again = ours.need({"do": "probe", "limit": dtype, "seconds": 0.1})["rate"]
            peak = limits[dtype] = max(limits[dtype], again)
            rows.append(measure_step(rivals, name, dtype, settings, peak, Path(folder)))
            for text in lines(rows[-1]):
                say(text)
    summary = report.summarize(rows, ("dtype",))
    disturbed = report.disturbance([row["others"] for row in rows])
    for text in (*report.summary_lines(summary, ("dtype",)), report.disturbance_line(disturbed)):
        say(text)
    return {
        "bench": "train", "machine": machine, "peers": settings.peers, "threads": settings.threads,
        "rounds": settings.rounds, "seconds": settings.seconds, "roofline": limits, "rows": rows, "summary": summary,
        "disturbance": disturbed,
    }  # fmt: skip

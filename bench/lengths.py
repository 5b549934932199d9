r"""How the time of a sequence grows with its length: attention beside recurrences, forward, and forward and backward.

    python bench/lengths.py --plot docs/pictures/lengths.png

What mixers of a 768 wide model do between their projections, float32: causal attention (12 heads of 64), Mamba's
selective scan (1,536 channels of 16 states), Mamba-2's state-space duality (24 heads of 64, 128 states), the gated
delta rule (6 heads of 128) and a linear recurrence (768). Each figure is the fastest of a few. Ends with a JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from microgpt import Tensor, ops
from microgpt import _kernels as k
from microgpt.autograd import no_grad

LENGTHS = [2**n for n in range(8, 15)]
Case = tuple[list[Tensor], Callable[[], Tensor]]


def tensors(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Random inputs that want gradients."""
    return [Tensor((rng.standard_normal(shape) / 4).astype(np.float32), requires_grad=True) for shape in shapes]


def starts(rows: int) -> Any:
    """One sequence."""
    return k.from_numpy(np.array([0, rows], np.int32))


def attention(rows: int, rng: np.random.Generator) -> Case:
    """Attention."""
    q, keys, values = tensors(rng, *[(rows, 12, 64)] * 3)
    first, length = (k.from_numpy(np.array([each], np.int32)) for each in (0, rows))
    return [q, keys, values], lambda: ops.attention(q, keys, values, starts(rows), first, length)


def scan(rows: int, rng: np.random.Generator) -> Case:
    """Mamba."""
    given = tensors(rng, (rows, 1536), (rows, 1536), (1536, 16), (rows, 16), (rows, 16), (1536,), (rows, 1536), (1536,))
    given[2].numpy()[...] = -np.exp(given[2].numpy())
    return given, lambda: ops.selective_scan(*given, q_start=starts(rows), softplus=True)


def duality(rows: int, rng: np.random.Generator) -> Case:
    """Mamba-2."""
    given = tensors(rng, (rows, 24, 64), (rows, 24), (24,), (rows, 1, 128), (rows, 1, 128), (24,), (24,))
    given[2].numpy()[...] = -np.exp(given[2].numpy())
    return given, lambda: ops.ssd(*given, q_start=starts(rows), softplus=True)


def delta(rows: int, rng: np.random.Generator) -> Case:
    """Gated DeltaNet."""
    given = tensors(rng, *[(rows, 6, 128)] * 3, (rows, 6), (rows, 6))
    given[3].numpy()[...] = -np.abs(given[3].numpy())
    given[4].numpy()[...] = np.abs(given[4].numpy())
    return given, lambda: ops.gated_delta(*given, q_start=starts(rows), normalize=True)


def recurrence(rows: int, rng: np.random.Generator) -> Case:
    """RG-LRU."""
    x, gate = tensors(rng, (rows, 768), (rows, 768))
    gate.numpy()[...] = 1.0 - np.abs(gate.numpy()) / 8
    return [x, gate], lambda: ops.linear_recurrence(x, gate, q_start=starts(rows))


CASES = {"attention": attention, "selective scan": scan, "state-space duality": duality, "gated delta rule": delta,
         "linear recurrence": recurrence}  # fmt: skip


def seconds(call: Callable[[], object], budget: float) -> float:
    """The fastest of as many calls as the budget holds, three at least."""
    times: list[float] = []
    call()
    while len(times) < 3 or (sum(times) < budget and len(times) < 50):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def measure(name: str, rows: int, budget: float) -> tuple[float, float]:
    """Seconds forward, and forward and backward."""
    given, call = CASES[name](rows, np.random.default_rng(0))

    def both() -> None:
        for tensor in given:
            tensor.zero_grad()
        call().sum().backward()

    def forward() -> None:
        with no_grad():
            call()

    return seconds(forward, budget), seconds(both, budget)


def draw(found: dict[str, list[tuple[float, float]]], lengths: list[int], path: Path) -> None:
    """Microseconds a token over the length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, way, title in zip(figure.subplots(1, 2), (0, 1), ("forward", "forward and backward"), strict=True):
        for name, times in found.items():
            axes.plot(
                lengths, [1e6 * each[way] / rows for rows, each in zip(lengths, times, strict=True)], "o-", label=name
            )
        axes.set(yscale="log", xlabel="tokens of the sequence", ylabel="microseconds a token", title=title)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{rows:,}" for rows in lengths], fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each figure")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    lengths = [int(each) for each in args.lengths.split(",")]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    print(f"{'microseconds a token':24}" + "".join(f"{rows:>16,}" for rows in lengths))
    for name, times in found.items():
        times += [measure(name, rows, args.budget) for rows in lengths]
        cells = (f"{1e6 * f / rows:8.3f}{1e6 * b / rows:8.3f}" for rows, (f, b) in zip(lengths, times, strict=True))
        print(f"{name:24}" + "".join(cells), flush=True)
    if args.plot is not None:
        draw(found, lengths, args.plot)
    print(json.dumps({"lengths": lengths, "seconds": found}))


if __name__ == "__main__":
    main()

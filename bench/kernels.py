"""Time ops at the shapes of real layers: microseconds, GFLOP/s and GB/s from the op's own cost, part of the roofline.

    python bench/kernels.py [--op NAME] [--op-cases]

--op-cases adds the tests' own table (tests/opcases): the cases that are cut into several shares.

The roofline is measured in the same run: the fastest square product (FLOP/s) and a large copy (bytes/s). A case is
limited by whichever of the two its cost needs longer for; arrays that stay in the caches go beyond 100 % of memory
bandwidth. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from microgpt import Tensor, no_grad, ops
from microgpt import _kernels as k

Floats = np.ndarray[Any, Any]


def normal(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def ids(count: int, below: int) -> k.Array:
    return k.from_numpy(np.random.default_rng(1).integers(0, below, count).astype(np.int32))


def sequences(count: int, length: int) -> tuple[k.Array, k.Array, k.Array]:
    starts = (np.arange(count + 1) * length).astype(np.int32)
    return k.from_numpy(starts), k.from_numpy(starts[:-1]), k.from_numpy(np.full(count, length, np.int32))


def cases() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """(op, arguments, settings) at the shapes of a small and of a GPT-2 layer."""
    found: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for tokens, width in ((768, 128), (1024, 768)):
        x, wide = normal(tokens, width), normal(tokens, 4 * width)
        norm = (normal(width), normal(width))
        heads, size = width // 64, 64
        q = normal(tokens, heads, size)
        found += [
            ("linear", (x, normal(4 * width, width), normal(4 * width)), {}),
            ("linear", (x, normal(4 * width, width), normal(4 * width)), {"act": "gelu_tanh"}),
            ("linear", (wide, normal(width, 4 * width), normal(width), x), {}),
            ("layer_norm", (x, *norm), {}),
            ("rms_norm", (x, norm[0]), {}),
            ("activation", (wide,), {"act": "gelu"}),
            ("glu", (wide, wide), {}),
            ("softmax", (x,), {}),
            ("embedding", (normal(5000, width), ids(tokens, 5000)), {}),
            ("attention", (q, q, q, *sequences(1, tokens)), {}),
            ("linear_cross_entropy", (x, normal(5000, width), ids(tokens, 5000)), {}),
            ("add", (x, x), {}),
        ]
    found += [
        ("linear", (normal(1, 768), normal(3072, 768)), {}),
        ("linear", (normal(1024, 1024), normal(1024, 1024)), {}),
    ]
    return found


def op_cases() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """The cases of the tests' table that are large enough to be shared out."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.opcases import CASES

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(each) for each in value]
        return Tensor(value.astype(np.float32)) if value.dtype.kind == "f" else k.from_numpy(value)

    return [
        (case.op, (), {**{name: convert(v) for name, v in case.inputs().items()}, **case.options})
        for case in CASES
        if case.shares
    ]


def best(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the median call."""
    run()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", help="only this op")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each case (default: 0.3)")
    parser.add_argument("--op-cases", action="store_true", help="the tests' table too")
    args = parser.parse_args()
    table = cases() + (op_cases() if args.op_cases else [])
    known = sorted({name for name, _, _ in table})
    if args.op and args.op not in known:
        parser.error(f"no case for op {args.op!r}; there are: {', '.join(known)}")
    a, c = normal(1024, 1024).data, k.empty((1024, 1024))
    flops = 2 * 1024**3 / best(lambda: k.gemm(a, a, c, 1024, 1024, 1024), 1.0)
    big = k.from_numpy(np.zeros(32 << 20, np.float32))
    copy = k.empty_like(big)
    bandwidth = 2 * big.nbytes / best(lambda: k.axpy(big, copy), 1.0)
    print(
        f"{k.cpu_model()}, {k.isa()}, {k.num_threads()} threads: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s"
    )
    print(f"{'op':22} {'shapes':40} {'us':>10} {'GFLOP/s':>9} {'GB/s':>7} {'roof':>6}")
    rows = []
    for name, inputs, settings in table:
        if args.op and name != args.op:
            continue
        op = ops.OPS.get(name)
        assert op.cost_fn is not None
        cost = op.cost_fn(*inputs, **settings)

        def call(op: Any = op, inputs: Any = inputs, settings: Any = settings) -> None:
            with no_grad():
                op(*inputs, **settings)

        seconds = best(call, args.seconds)
        limit = max(cost.flops / flops, cost.bytes / bandwidth)
        given = [*inputs, *settings.values()]
        shapes = ["x".join(map(str, each.shape)) for each in given if isinstance(each, Tensor)]
        text = " ".join([*shapes, *(str(each) for each in given if isinstance(each, str | float | int))])
        row = {"op": name, "shapes": text.strip(), "us": seconds * 1e6, "gflops": cost.flops / seconds / 1e9,
               "gbs": cost.bytes / seconds / 1e9, "roofline": limit / seconds}  # fmt: skip
        rows.append(row)
        print(f"{name:22} {text:40.40} {row['us']:10.1f} {row['gflops']:9.1f} {row['gbs']:7.1f} {limit / seconds:6.0%}")
    machine = {"cpu": k.cpu_model(), "isa": k.isa(), "threads": k.num_threads()}
    print(json.dumps({"bench": "kernels", **machine, "gflops": flops / 1e9, "gbs": bandwidth / 1e9, "rows": rows}))


if __name__ == "__main__":
    main()

"""NumPy in `bench kernels`: matrix products in float32. NumPy has neither attention nor fused layers to compare."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .inputs import COLD_BYTES, Floats, sample, uniform
from .serve import Server


def main() -> None:
    """Serve."""

    def case(request: dict[str, Any]) -> dict[str, Any]:
        server.step = None
        sizes = request["sizes"]
        m, n, inner = sizes["m"], sizes["n"], sizes["k"]
        uniform.cache_clear()
        x = uniform(1, inner, m).T if sizes["trans_a"] else uniform(1, m, inner)
        first = uniform(2, *((n, inner) if sizes["trans_b"] else (inner, n)))
        count = -(-COLD_BYTES // first.nbytes) if sizes["cold"] else 1
        stored = [first, *(first.copy() for _ in range(count - 1))]
        weights = itertools.cycle([w.T for w in stored] if sizes["trans_b"] else stored)
        y: Floats = np.empty((m, n), np.float32)

        def step() -> None:
            np.matmul(x, next(weights), out=y)

        server.prepare(step)
        return {"sample": sample(y)}

    server = Server({"version": np.__version__}, {"case": case})
    server.serve()

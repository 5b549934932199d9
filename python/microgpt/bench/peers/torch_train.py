"""PyTorch in `bench train`, eager or compiled: bfloat16 is autocast over float32 masters."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found,unused-ignore]

from .configs import ADAMW, COMPARED, CONFIGS, data
from .serve import Server
from .torch_gpt import adamw, load, loss


def main() -> None:
    """Serve."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))

    def train(request: dict[str, Any]) -> dict[str, Any]:
        server.step = None
        config = CONFIGS[request["config"]]
        weights = load(request["weights"])
        optimizer = adamw(weights, ADAMW)
        narrow = request["dtype"] == "bfloat16"
        forward = loss
        if request["compile"]:
            torch.compiler.reset()
            forward = torch.compile(loss)
        ids = torch.from_numpy(data(config).astype(np.int64))
        number = 0

        def step() -> float:
            nonlocal number
            batch = ids[number % len(ids)]
            number += 1
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                value = forward(config, weights, batch[:, :-1], batch[:, 1:])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            return float(value.item())

        losses = [step() for _ in range(COMPARED)]
        server.prepare(step)
        return {"losses": losses}

    server = Server({"version": torch.__version__, "threads": torch.get_num_threads()}, {"train": train})
    server.serve()

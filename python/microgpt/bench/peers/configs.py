"""The training steps that are compared: models, batches, optimizer. The same for every side."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CONFIGS: dict[str, dict[str, Any]] = {
    # Karpathy's microgpt: one document of 16 tokens a step
    "a": {"model": "micro", "layers": 1, "width": 16, "heads": 4, "block": 16, "batch": 1, "vocab": 27},
    # small and medium character models
    "b": {"model": "gpt", "layers": 4, "width": 128, "heads": 4, "block": 64, "batch": 12, "vocab": 65},
    "c": {"model": "gpt", "layers": 6, "width": 384, "heads": 6, "block": 256, "batch": 16, "vocab": 65},
    # GPT-2, 124 million parameters, with its 1,024 positions
    "d": {"model": "gpt", "layers": 12, "width": 768, "heads": 12, "block": 64, "batch": 4, "vocab": 50257,
          "positions": 1024},
}  # fmt: skip
ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
COMPARED = 20  # steps whose losses are compared
BATCHES = 64  # different ones; then they repeat


def data(config: dict[str, Any]) -> npt.NDArray[np.int32]:
    """(BATCHES, batch, block + 1) ids."""
    shape = (BATCHES, config["batch"], config["block"] + 1)
    return np.random.default_rng(0).integers(0, config["vocab"], shape, dtype=np.int32)

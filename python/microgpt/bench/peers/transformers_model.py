"""transformers in `bench MODEL`: the same prompts and tokens with its own cache, eagerly, in bfloat16."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found,unused-ignore]
import transformers  # type: ignore[import-not-found,import-untyped,unused-ignore]

from .serve import Server


def prepare(model: Any, kind: str, tokens: int, sequences: int, past: int) -> Callable[[], None]:
    """As ours_model.prepare."""
    shape = (sequences, past + tokens)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, model.config.vocab_size, shape))

    def prompt() -> None:
        model(ids, use_cache=True, logits_to_keep=1)

    if kind == "prompt":
        return prompt
    start = transformers.DynamicCache(config=model.config)
    if past:
        model(ids[:, :past], past_key_values=start, use_cache=True, logits_to_keep=1)

    def generate() -> None:
        cache = copy.deepcopy(start)
        for at in range(past, past + tokens):
            model(ids[:, at : at + 1], past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    return generate


def main() -> None:
    """Serve."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    torch.set_grad_enabled(False)
    model: Any = None

    def load(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal model
        model = transformers.AutoModelForCausalLM.from_pretrained(
            request["path"], dtype=getattr(torch, request["dtype"]), local_files_only=True
        ).eval()
        return {}

    def case(request: dict[str, Any]) -> dict[str, Any]:
        server.step = None
        sizes = (int(request[name]) for name in ("tokens", "sequences", "past"))
        server.prepare(prepare(model, request["kind"], *sizes))
        return {}

    server = Server({"version": transformers.__version__, "threads": torch.get_num_threads()},
                    {"load": load, "case": case})  # fmt: skip
    server.serve()

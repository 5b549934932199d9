"""The child of `bench MODEL`: a model's prompts and tokens, each case a step that is timed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.generate import forward_cached
from ..engine.sampler import Draws, Sampling
from ..engine.step import Steps
from ..models.decoder import Decoder
from ..models.pretrained import open_checkpoint, take
from ..models.quantized import KEPT, Scheme, weights_of
from ..nn.ffn.moe import Moe
from ..state.contiguous import ContiguousStates
from . import roofline
from .peers.serve import Server


def read_bytes(model: Decoder, tokens: int = 1) -> int:
    """Bytes of weights that a step of so many tokens reads: all but tables of which it takes rows, and of experts those
    that as many tokens reach, on the average of any choice."""
    total = sum(weight.nbytes for weight in weights_of(model).values())
    total += sum(parameter.data.nbytes for parameter in model.parameters())
    tables = [model.positions, *([model.embed] if model.head is not None else [])]
    total -= sum(_bytes(table.weight) for table in tables if table is not None)
    for moe in (module for _, module in model.named_modules() if isinstance(module, Moe)):
        idle = (1.0 - moe.spec.chosen / moe.spec.experts) ** tokens
        total -= int(idle * sum(_bytes(each.weight) for each in (moe.gate, moe.up, moe.down) if each is not None))
    return total


def _bytes(weight: Any) -> int:
    size = weight.nbytes if hasattr(weight, "nbytes") else weight.data.nbytes
    return int(size)


def peak_resident() -> int | None:
    """The most memory that this process has had, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def kind_of(model: Decoder) -> str:
    """What most of its numbers are: a quantized type with its group, or the model's own."""
    found: dict[str, int] = {}
    for weight in weights_of(model).values():
        name = weight.type.name if weight.type.channel else f"{weight.type.name} group {weight.group}"
        found[name] = found.get(name, 0) + weight.size
    return max(found, key=lambda name: found[name]) if found else model.dtype


def prepare(model: Decoder, kind: str, tokens: int, sequences: int, past: int) -> Callable[[], None]:
    """A step of one case: a prompt of so many tokens, or so many tokens of each sequence behind `past` others."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (sequences, past + tokens)).tolist()
    states = ContiguousStates(model.state_specs(), sequences, past + tokens)

    def prompt() -> None:
        states.rollback(0, 0)
        forward_cached(model, [ids[0]], states)

    if kind == "prompt":
        return prompt
    rows = list(range(sequences))
    draws = Draws(Sampling(0.0), [[]] * sequences, past + tokens)
    steps = Steps(model, states, draws)
    if past:
        forward_cached(model, [row[:past] for row in ids], states)
        for row in rows:
            states.keep(row)

    def generate() -> None:
        for row in rows:
            states.rollback(row, past)
        for at in range(past, past + tokens):
            steps.draw(rows, [row[at] for row in ids])

    return generate


def main() -> None:
    """Serve."""
    probes = roofline.Probes()
    model: Decoder | None = None

    def load(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal model
        name = request["quantize"]
        scheme = None if name in (None, KEPT) else Scheme.named(name)
        model = take(open_checkpoint(Path(request["path"])), None, scheme, name == KEPT)
        model.kv_dtype = request["kv_dtype"]
        config = model.config
        return {
            "family": config.family, "parameters": config.num_parameters(), "layers": len(config.blocks),
            "width": config.width, "context": config.max_positions, "kind": kind_of(model), "bytes": read_bytes(model),
            "resident": peak_resident(),
        }  # fmt: skip

    def case(request: dict[str, Any]) -> dict[str, Any]:
        if model is None:
            raise RuntimeError("no model is loaded")
        server.step = None
        tokens, sequences, past = (int(request[name]) for name in ("tokens", "sequences", "past"))
        step = prepare(model, request["kind"], tokens, sequences, past)
        server.prepare(step)
        middle = past + math.ceil(tokens / 2)
        flops = tokens * sequences * model.config.flops_per_token(middle)
        weights, cache = read_bytes(model, sequences), sequences * model.state_bytes(middle)
        return {"flops": flops, "weight_bytes": weights, "cache_bytes": cache}

    server = Server(roofline.hello(), {"load": load, "case": case, **probes.handlers()})
    server.serve()


if __name__ == "__main__":
    main()

"""Training steps beside PyTorch eager: same shapes, same initial weights, same data, AdamW, float32.

    python bench/train_step.py --torch-python .venv-parity/bin/python

Configurations: a is Karpathy's microgpt (1 layer, width 16, 4 heads, one document of 16 tokens a step), b a character
model of 4 layers, 4 heads, width 128, block 64, batch 12. Prints medians, the paired ratio with its 95 % interval, and
one JSON line. The losses of the first 20 steps are compared too: equal work, not only equal shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from paired import Child, compare, serve

CONFIGS: dict[str, dict[str, Any]] = {
    "a": {"model": "micro", "layers": 1, "width": 16, "heads": 4, "block": 16, "batch": 1, "vocab": 27},
    "b": {"model": "gpt", "layers": 4, "width": 128, "heads": 4, "block": 64, "batch": 12, "vocab": 65},
    "c": {"model": "gpt", "layers": 6, "width": 384, "heads": 6, "block": 256, "batch": 16, "vocab": 65},
}
ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def data(config: dict[str, Any], steps: int) -> np.ndarray[Any, Any]:
    """(steps, batch, block + 1) ids, the same for both."""
    return np.random.default_rng(0).integers(
        0, config["vocab"], (steps, config["batch"], config["block"] + 1), dtype=np.int32
    )


def our_spec(config: dict[str, Any]) -> Any:
    """The ModelConfig of a configuration."""
    from microgpt.models.zoo import MODELS

    sizes = (config["width"], config["layers"], config["heads"], config["block"])
    return MODELS.get(config["model"])(config["vocab"], *sizes, 0.0)


def our_model(config: dict[str, Any]) -> Any:
    """The initial model; its weights are the peer's too."""
    from microgpt.models.decoder import Decoder

    return Decoder(our_spec(config), seed=1)


def run_ours(config: dict[str, Any]) -> None:
    """The child that trains with microgpt."""
    from microgpt import _kernels as k
    from microgpt.nn import Ctx, Layout
    from microgpt.optim import AdamW, Optimizer, decay_groups
    from microgpt.program import Program

    model = our_model(config)
    optimizer = Optimizer(
        model, AdamW(ADAMW["beta1"], ADAMW["beta2"], ADAMW["eps"]), decay_groups(ADAMW["weight_decay"])
    )
    ids = data(config, 64)
    batch, block = config["batch"], config["block"]
    inputs = [np.ascontiguousarray(each[:, :-1]).reshape(-1) for each in ids]
    outputs = [np.ascontiguousarray(each[:, 1:]).reshape(-1) for each in ids]
    tokens, targets = k.from_numpy(inputs[0]), k.from_numpy(outputs[0])
    layout = Layout.packed([block] * batch)

    def record() -> Any:
        loss = model.loss(tokens, targets, Ctx(layout))
        loss.backward()
        optimizer.launch(loss)
        return loss

    program = Program(record)
    number = 0

    def step() -> float:
        nonlocal number
        tokens.copy_from(inputs[number % len(inputs)])
        targets.copy_from(outputs[number % len(inputs)])
        number += 1
        optimizer.feed(number, ADAMW["lr"])
        return program().item()

    losses = [step() for _ in range(20)]
    serve({"losses": losses, "threads": k.num_threads(), "isa": k.isa(), "nodes": len(program)}, step)


def run_torch(config: dict[str, Any], weights: str) -> None:
    """The child that trains with PyTorch eager: fused AdamW and scaled_dot_product_attention, its best on a CPU."""
    import torch

    from torch_gpt import Model, adamw

    model = Model(config, weights)
    optimizer = adamw(model, ADAMW)
    ids = torch.from_numpy(data(config, 64).astype(np.int64))
    number = 0

    def step() -> float:
        nonlocal number
        batch = ids[number % len(ids)]
        number += 1
        loss = model(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    losses = [step() for _ in range(20)]
    serve({"losses": losses, "threads": torch.get_num_threads(), "version": torch.__version__}, step)


def main() -> None:
    """Driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="a,b", help="comma-separated, of a, b, c (default: a,b)")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has PyTorch (default: this one)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads for each (default: all)")
    parser.add_argument("--rounds", type=int, default=9, help="paired rounds (default: 9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds a round (default: 1)")
    parser.add_argument("--child", choices=["ours", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.configs.split(",")
    if unknown := [name for name in names if name not in CONFIGS]:
        parser.error(f"unknown configurations {unknown}; known: {', '.join(CONFIGS)}")
    if args.child == "ours":
        run_ours(CONFIGS[names[0]])
        return
    if args.child == "torch":
        run_torch(CONFIGS[names[0]], args.weights)
        return
    results = {}
    threads = {"OMP_NUM_THREADS": str(args.threads), "MICROGPT_NUM_THREADS": str(args.threads)}
    # OpenBLAS stands idle in both children; a coarse kernel choice for it must not slow NumPy elsewhere.
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            weights = str(Path(folder) / "weights.npz")
            np.savez(weights, **our_model(CONFIGS[name]).arrays())
            here = [str(Path(__file__)), "--configs", name, "--weights", weights]
            ours = Child("microgpt", [sys.executable, *here, "--child", "ours"], threads)
            peer = Child("torch", [args.torch_python, *here, "--child", "torch"], threads)
            ours.start()
            peer.start()
            drift = max(abs(a - b) for a, b in zip(ours.info["losses"], peer.info["losses"], strict=True))
            found = compare(ours, peer, args.rounds, args.seconds)
            ours.stop()
            peer.stop()
        tokens = CONFIGS[name]["batch"] * CONFIGS[name]["block"]
        results[name] = {**found, "loss_difference_20_steps": drift, "tokens_per_second": tokens / found["ours"]}
        print(
            f"{name}: microgpt {found['ours'] * 1e3:.3f} ms "
            f"[{found['ours_min'] * 1e3:.3f}, {found['ours_max'] * 1e3:.3f}]"
            f"  torch {found['peer'] * 1e3:.3f} ms [{found['peer_min'] * 1e3:.3f}, {found['peer_max'] * 1e3:.3f}]"
            f"  ratio {found['ratio']:.2f} [{found['ratio_low']:.2f}, {found['ratio_high']:.2f}]"
            f"  losses differ by {drift:.1e}"
        )
    machine = {"threads": args.threads, "isa": ours.info["isa"], "torch": peer.info["version"]}
    print(json.dumps({"bench": "train_step", **machine, "results": results}))


if __name__ == "__main__":
    main()

r"""Architectures beside each other: models of equal size trained on the same text, and what decoding remembers.

    python bench/architectures.py --size 5m --steps 600 --out curves --plot docs/pictures/architectures.png

Trains each model on the standard library's source (tokenized once into OUT/tokens), one after the other on all
threads, then draws validation loss over tokens, training speed, and the memory that one sequence's decoding needs over
its context. Each run folder is OUT/NAME, so `microgpt viz OUT/*` draws the losses too; a run that is there already is
not trained again. Speeds are those of short runs in turns, two of each, after all training. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import microgpt
from microgpt.models.sizes import dimensions
from microgpt.models.zoo import maker

MODELS = ("llama", "mamba", "mamba2", "griffin", "jamba", "moe")
CONTEXTS = [2**n for n in range(8, 18)]
COLOURS = dict(zip(MODELS, ("#1f77b4", "#d62728", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b"), strict=True))
VOCABULARY = 4096


def train(name: str, tokens: Path, folder: Path, size: str, steps: int, block: int, batch: int) -> None:
    """Train one model unless its folder is there."""
    if (folder / "metrics.jsonl").exists():
        return
    microgpt.train(
        model=name, size=size, data=str(tokens), block_size=block, batch_size=batch, steps=steps,
        eval_every=max(1, steps // 15), eval_batches=20, log_every=1, lr=2e-3, warmup=max(1, steps // 10), out=folder,
        show=True,
    )  # fmt: skip


def speed(name: str, tokens: Path, size: str, block: int, batch: int) -> list[float]:
    """Tokens a second of 25 steps, without the first five."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        microgpt.train(model=name, size=size, data=str(tokens), block_size=block, batch_size=batch, steps=25,
                       eval_every=0, log_every=1, out=folder)  # fmt: skip
        return [each["tokens_per_second"] for each in records(folder) if "tokens_per_second" in each][5:]


def tokenized(folder: Path) -> Path:
    """The standard library's source in tokens, made at the first call."""
    if not folder.exists():
        command = [sys.executable, "-m", "microgpt", "tokenize", "--train", "--data", "stdlib", "--vocab-size",
                   str(VOCABULARY), "--out", str(folder)]  # fmt: skip
        subprocess.run(command, check=True)
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    """What a run reported."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def measure(name: str, folder: Path, block: int, size: str, speeds: list[float]) -> dict[str, Any]:
    """Curve, speed and memory of a run that has ended. Memory is what the decoder's state specs ask for, in float32."""
    found = records(folder)
    shape = dimensions(name, size, VOCABULARY, block)
    config = maker(name)(VOCABULARY, shape.width, shape.layers, shape.heads, block, 0.0)
    seen = {each["step"]: each["tokens"] for each in found if "tokens" in each}
    curve = [(seen[each["step"]], each["val_loss"]) for each in found if "val_loss" in each]
    return {
        "model": name, "parameters": config.num_parameters(), "layers": shape.layers, "width": shape.width,
        "loss": curve[-1][1], "tokens": curve[-1][0], "tokens_per_second": statistics.median(speeds), "curve": curve,
        "state_bytes": [4 * (config.state_numbers() * n + config.fixed_state_numbers()) for n in CONTEXTS],
    }  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Three panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for row in rows:
        colour = COLOURS.get(row["model"])
        tokens, losses = zip(*row["curve"], strict=True)
        left.plot([each / 1e6 for each in tokens], losses, color=colour, label=row["model"])
        right.plot(CONTEXTS, [each / 2**20 for each in row["state_bytes"]], color=colour, label=row["model"])
    left.set(xlabel="million tokens", ylabel="validation loss (nats)", title="Training on the standard library")
    names = [row["model"] for row in rows]
    middle.barh(names, [row["tokens_per_second"] for row in rows], color=[COLOURS.get(each) for each in names])
    middle.invert_yaxis()
    middle.set(xlabel="tokens/s", title="Training speed")
    right.set(xlabel="context (tokens)", ylabel="MiB a sequence, float32", title="What decoding remembers",
              xscale="log", yscale="log")  # fmt: skip
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--size", default="5m")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    names, tokens = args.models.split(","), tokenized(args.out / "tokens")
    for name in names:
        train(name, tokens, args.out / name, args.size, args.steps, args.block_size, args.batch_size)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(2):
        for name in names:
            speeds[name] += speed(name, tokens, args.size, args.block_size, args.batch_size)
    rows = []
    for name in names:
        row = measure(name, args.out / name, args.block_size, args.size, speeds[name])
        rows.append(row)
        print(f"{name:10}{row['parameters']:>11,} parameters, {row['layers']} x {row['width']}: loss {row['loss']:.3f} "
              f"after {row['tokens']:,} tokens, {row['tokens_per_second']:,.0f} tokens/s", flush=True)  # fmt: skip
    if args.plot is not None:
        draw(rows, args.plot)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

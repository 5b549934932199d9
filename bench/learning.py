r"""Learning curves beside PyTorch: same initial weights, same batches in the same order, same AdamW and schedule.

    python bench/learning.py --data tinyshakespeare.txt --config b --steps 2000 \
        --out curves --torch-python .venv-parity/bin/python

Characters of one text file; the last tenth validates, all of it each time. Each rival writes OUT/NAME/metrics.jsonl as
a training run does, so `microgpt viz OUT/* --out curves.svg` draws them. Ends with one JSON line: final validation
losses in nats and their differences.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# As a package of its own: the Python that has PyTorch need not have microgpt.
sys.path.append(str(Path(__file__).resolve().parents[1] / "python" / "microgpt" / "bench"))
from peers.configs import CONFIGS

ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
WARMUP, CLIP = 100, 1.0
RIVALS = {"microgpt-f32": "float32", "microgpt-bf16": "bfloat16", "torch-f32": "float32"}

Ids = npt.NDArray[np.int32]


def windows(ids: Ids, block: int) -> Ids:
    """(n, block + 1): stretches that follow one another, each with the token after it."""
    count = (len(ids) - 1) // block
    return ids[np.arange(count)[:, None] * block + np.arange(block + 1)]


def prepare(text: str, config: dict[str, Any], steps: int, seed: int) -> tuple[Ids, Ids, int]:
    """Training batches (steps, B, block + 1), validation windows (n, block + 1), vocabulary."""
    letters = sorted(set(text))
    ids = np.searchsorted(letters, list(text)).astype(np.int32)
    cut = len(ids) * 9 // 10
    train, validation = windows(ids[:cut], config["block"]), windows(ids[cut:], config["block"])
    order, size = np.empty(0, np.int64), steps * config["batch"]
    rng = np.random.default_rng(seed)
    while len(order) < size:
        order = np.concatenate([order, rng.permutation(len(train))])
    shape = (steps, config["batch"], config["block"] + 1)
    return train[order[:size]].reshape(shape), validation, len(letters)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak."""
    if step < WARMUP:
        return ADAMW["lr"] * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return ADAMW["lr"] * (0.1 + 0.45 * (1.0 + float(np.cos(np.pi * progress))))


def run(out: Path, steps: int, every: int, train: Callable[[int], float], validate: Callable[[], float]) -> None:
    """The loop both rivals go through; metrics.jsonl in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            loss = train(step - 1)
            if step % 10 == 0 or step == steps:
                file.write(json.dumps({"step": step, "loss": loss}) + "\n")
            if step % every == 0 or step == steps:
                file.write(json.dumps({"step": step, "val_loss": validate()}) + "\n")
                file.flush()


def run_ours(config: dict[str, Any], place: Path, out: Path, dtype: str, every: int) -> None:
    """The child that trains with microgpt."""
    from microgpt import _kernels as k
    from microgpt.autograd import no_grad
    from microgpt.bench.ours_train import spec
    from microgpt.models.decoder import Decoder
    from microgpt.nn import Ctx, Layout
    from microgpt.optim import AdamW, Optimizer, decay_groups
    from microgpt.program import Program

    batches, validation = np.load(place / "train.npy"), np.load(place / "validation.npy")
    model = Decoder(spec(config), dtype=dtype)
    model.load_arrays(dict(np.load(place / "weights.npz")))
    rule = AdamW(ADAMW["beta1"], ADAMW["beta2"], ADAMW["eps"])
    optimizer = Optimizer(model, rule, decay_groups(ADAMW["weight_decay"]), CLIP)

    def program(rows: int, learn: bool) -> tuple[Callable[[Ids], None], Program[Any]]:
        tokens, targets = (k.empty((rows * config["block"],), "int32") for _ in range(2))
        layout = Layout.packed([config["block"]] * rows)

        def feed(window: Ids) -> None:
            tokens.copy_from(np.ascontiguousarray(window[:, :-1]).reshape(-1))
            targets.copy_from(np.ascontiguousarray(window[:, 1:]).reshape(-1))

        def record() -> Any:
            if not learn:
                with no_grad():
                    return model.loss(tokens, targets, Ctx(layout))
            loss = model.loss(tokens, targets, Ctx(layout))
            loss.backward()
            optimizer.launch(loss)
            return loss

        return feed, Program(record)

    feed, step_program = program(config["batch"], True)
    look, look_program = program(config["batch"], False)

    def train(step: int) -> float:
        feed(batches[step])
        optimizer.feed(step + 1, rate(step, len(batches)))
        return step_program().item()

    def validate() -> float:
        total = []
        for start in range(0, len(validation) - config["batch"] + 1, config["batch"]):
            look(validation[start : start + config["batch"]])
            total.append(look_program().item())
        return float(np.mean(total))

    run(out, len(batches), every, train, validate)


def run_torch(config: dict[str, Any], place: Path, out: Path, every: int) -> None:
    """The child that trains with PyTorch eager."""
    import torch
    from peers.torch_gpt import adamw, load, loss

    batches = torch.from_numpy(np.load(place / "train.npy").astype(np.int64))
    validation = torch.from_numpy(np.load(place / "validation.npy").astype(np.int64))
    weights = load(str(place / "weights.npz"))
    optimizer = adamw(weights, ADAMW)

    def train(step: int) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate(step, len(batches))
        value = loss(config, weights, batches[step, :, :-1], batches[step, :, 1:])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
        optimizer.step()
        return float(value.item())

    def validate() -> float:
        whole = range(0, len(validation) - config["batch"] + 1, config["batch"])
        with torch.no_grad():
            rows = [validation[start : start + config["batch"]] for start in whole]
            return float(np.mean([float(loss(config, weights, each[:, :-1], each[:, 1:])) for each in rows]))

    run(out, len(batches), every, train, validate)


def main() -> None:
    """Driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a UTF-8 text file")
    parser.add_argument("--config", choices=sorted(CONFIGS), default="b", help="of `microgpt bench train` (default: b)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--eval-every", type=int, default=250)
    parser.add_argument("--rivals", default=",".join(RIVALS), help="comma-separated (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="folder for the curves")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has PyTorch (default: this one)")
    parser.add_argument("--child", choices=sorted(RIVALS), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = dict(CONFIGS[args.config])
    if args.child:
        config["vocab"] = json.loads((args.place / "vocab.json").read_text())
        out = args.out / args.child
        if args.child.startswith("torch"):
            run_torch(config, args.place, out, args.eval_every)
        else:
            run_ours(config, args.place, out, RIVALS[args.child], args.eval_every)
        return
    from microgpt.bench.ours_train import initial_model

    names = args.rivals.split(",")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        train, validation, vocab = prepare(args.data.read_text(encoding="utf-8"), config, args.steps, seed=0)
        np.save(place / "train.npy", train)
        np.save(place / "validation.npy", validation)
        (place / "vocab.json").write_text(json.dumps(vocab))
        np.savez(place / "weights.npz", **initial_model({**config, "vocab": vocab}).arrays())
        for name in names:
            python = args.torch_python if name.startswith("torch") else sys.executable
            here = [python, str(Path(__file__)), *sys.argv[1:], "--child", name, "--place", str(place)]
            subprocess.run(here, check=True)
    final = {}
    for name in names:
        records = [json.loads(line) for line in (args.out / name / "metrics.jsonl").read_text().splitlines()]
        curve = {record["step"]: record["val_loss"] for record in records if "val_loss" in record}
        final[name] = curve[args.steps]
        print(name, " ".join(f"{step}: {value:.4f}" for step, value in curve.items()))
    first = final[names[0]]
    differences = {name: round(value - first, 5) for name, value in final.items()}
    print(json.dumps({"bench": "learning", "config": args.config, "steps": args.steps, "validation_loss": final,
                      "minus_first": differences}))  # fmt: skip


if __name__ == "__main__":
    main()

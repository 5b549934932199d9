"""What the tests of training share."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy.typing as npt

import microgpt
from microgpt.io.checkpoint import RunFolder
from microgpt.training.pretrain import Run

ROOT = Path(__file__).parents[1]
# A model that learns something in a few steps and takes a few milliseconds.
SMALL: dict[str, Any] = {
    "layers": 1, "heads": 2, "width": 16, "block_size": 8, "batch_size": 4, "warmup": 2, "log_every": 1,
    "eval_every": 0, "steps": 10,
}  # fmt: skip


def small(**settings: Any) -> Run:
    """Train SMALL with changes."""
    chosen = {**SMALL, **settings}
    if "epochs" in settings:
        chosen["steps"] = None
    return microgpt.train(**chosen)


def weights(run: Run) -> dict[str, npt.NDArray[Any]]:
    """A copy of the final weights."""
    return {name: array.copy() for name, array in run.model.arrays().items()}


def same(a: dict[str, npt.NDArray[Any]], b: dict[str, npt.NDArray[Any]]) -> bool:
    """Bit for bit, names included."""
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of the files of the newest checkpoint that depend on nothing but settings and data."""
    place, problems = RunFolder(run).latest()
    assert problems == []
    names = ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "config.json"]
    names += ["ema.safetensors"] * (place / "ema.safetensors").exists()
    return {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in names}


def words(path: Path, count: int = 60, length: int | None = None) -> Path:
    """A file of made-up words, one a line; all of `length` letters where that is given."""
    rng = random.Random(5)
    lines = ["".join(rng.choices("abcdefgh", k=length or rng.randint(1, 12))) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with this package; asserts nothing."""
    import microgpt

    paths = [str(Path(microgpt.__file__).parents[1]), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

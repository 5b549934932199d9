"""What opening a model costs: seconds to load, seconds to the first token, and the peak of memory, in fresh processes.

    python bench/start.py models/llama-3.2-1b-int4 models/llama-3.2-1b-q4_0.gguf --rounds 5

Files are read once before (a warm file cache). For each model: from the start of the process to the model (`import`
and `load` apart), to the first token after a prompt of 16, and the peak of resident memory after 64 tokens, beside
1.10 x weights + keys and values + 60 MB. GGUF files are opened with quantize="keep". Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, TOKENS = 16, 64
BESIDE = 60e6  # bytes of a process that are not the model: Python, NumPy, the package, activations

CHILD = """
import sys, time
started = float(sys.argv[1])
import json, resource
import microgpt
microgpt.load  # what names need is imported when they are first used
imported = time.time()
path = sys.argv[2]
model = microgpt.load(path, quantize="keep" if path.endswith(".gguf") else None)
loaded = time.time()
from microgpt.engine.generate import forward_cached
from microgpt.engine.step import Steps
from microgpt.models.quantized import weights_of
from microgpt.state.contiguous import ContiguousStates
prompt, tokens = int(sys.argv[3]), int(sys.argv[4])
decoder = model.decoder
states = ContiguousStates(decoder.state_specs(), 1, prompt + tokens)
token = int(forward_cached(decoder, [list(range(1, prompt + 1))], states)[0].argmax())
first = time.time()
steps = Steps(decoder, states)
for _ in range(tokens - 1):
    token = int(steps.run([0], [token])[0].argmax())
done = time.time()
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
weights = sum(w.nbytes for w in weights_of(decoder).values()) + sum(a.nbytes for a in decoder.arrays().values())
print(json.dumps({
    "import": imported - started, "load": loaded - imported, "ready": loaded - started, "first": first - started,
    "rate": (tokens - 1) / (done - first), "peak": peak, "weights": weights,
    "kv": decoder.state_bytes(prompt + tokens),
}))
"""  # fmt: skip


def measure(path: Path) -> dict[str, Any]:
    """One fresh process."""
    started = time.time()
    done = subprocess.run([sys.executable, "-c", CHILD, repr(started), str(path), str(PROMPT), str(TOKENS)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{path}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def warm(path: Path) -> None:
    """Read all files of a model once."""
    for file in [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file()):
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[Path, list[dict[str, Any]]] = {path: [] for path in arguments.models}
    for path in found:
        warm(path)
    for _ in range(arguments.rounds):  # by turns
        for path, rows in found.items():
            rows.append(measure(path))
    print(f"{'model':28s} {'weights':>9s} {'import':>7s} {'load':>7s} {'ready':>7s} {'1st tok':>8s} {'tokens/s':>8s} "
          f"{'peak':>9s} {'bound':>9s}")  # fmt: skip
    for path, rows in found.items():
        row = {name: statistics.median(each[name] for each in rows) for name in rows[0]}
        row["bound"] = 1.1 * row["weights"] + row["kv"] + BESIDE
        if arguments.json:
            print(json.dumps({"model": path.name, **row}))
            continue
        print(f"{path.name:28s} {row['weights'] / 1e6:6,.0f} MB {row['import']:5.2f} s {row['load']:5.2f} s "
              f"{row['ready']:5.2f} s {row['first']:6.2f} s {row['rate']:8.1f} {row['peak'] / 1e6:6,.0f} MB "
              f"{row['bound'] / 1e6:6,.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()

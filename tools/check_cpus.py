"""Use microgpt on processors that this machine is not, under qemu's user mode (Linux, x86-64).

Runs the Python that runs this script, with the installed microgpt, on each processor: `microgpt doctor`, the choice of
instruction set and the refusal of one that is missing, 20 training steps, op cases against float64. qemu traps what the
processor lacks. It knows none with AVX-512.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Processor, the instruction set that must be chosen there, one that must be refused.
PROCESSORS = [("Nehalem", "scalar", "avx2"), ("SandyBridge", "scalar", "avx2"), ("Haswell", "avx2", "avx512")]
# A few of every kind of kernel, in both storage types: emulation costs a factor of 20 to 50.
OPS = "against_float64_on_every_isa and not shares and (linear-3 or softmax or norm or attention-small)"

CHOICE = """
import sys
from microgpt import _kernels as k
assert k.isa() == sys.argv[1], k.isa()
try:
    k.set_isa(sys.argv[2])
except Exception as error:
    assert type(error).__name__ == "IsaError", error
    print(k.isa(), "|", k.cpu_features(), "|", error)
else:
    raise SystemExit(f"{sys.argv[2]} was not refused")
"""
TRAIN = """
import sys
import microgpt
run = microgpt.train(data="names", steps=20, out=sys.argv[1])
text = microgpt.load(sys.argv[1]).generate("an", seed=1).text
assert isinstance(text, str) and text, text
print(repr(text))
"""


def run(processor: str, *command: str | Path) -> str:
    """Output of a Python command on a processor; its failure ends the check."""
    emulator = ["qemu-x86_64", "-cpu", processor, sys.executable]
    environment = {name: value for name, value in os.environ.items() if name != "MICROGPT_ISA"}
    done = subprocess.run([*emulator, *map(str, command)], text=True, capture_output=True, env=environment)
    if done.returncode != 0:
        why = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        sys.exit(f"{processor}: {why}: {' '.join(map(str, command))[:200]}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def main() -> int:
    """0 if microgpt works on every processor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", default=OPS, help="which tests of tests/test_ops.py, as pytest's -k")
    ops = parser.parse_args().ops
    if not shutil.which("qemu-x86_64"):
        print("qemu-x86_64 is not installed (Debian's package is qemu-user)", file=sys.stderr)
        return 2
    tests = Path(__file__).parents[1] / "tests" / "test_ops.py"
    for processor, isa, missing in PROCESSORS:
        start = time.monotonic()
        print(processor, "|", run(processor, "-c", CHOICE, isa, missing).strip(), flush=True)
        run(processor, "-m", "microgpt", "doctor")
        with tempfile.TemporaryDirectory() as folder:
            print(
                processor, "| trained:", run(processor, "-c", TRAIN, Path(folder) / "run").splitlines()[-1], flush=True
            )
        report = run(processor, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", ops)
        print(processor, "|", report.splitlines()[-1], f"| {time.monotonic() - start:.0f} s in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rounding mode and flush-to-zero of the caller: left alone, and without influence on what kernels compute."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LAYOUTS = {"x86_64": "x86_64", "aarch64": "aarch64"}
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in LAYOUTS or platform.libc_ver()[0] != "glibc",
    reason="needs the layout of fenv_t: glibc on x86-64 or AArch64",
)

# Reads and sets the control bits of the calling thread by fegetenv and fesetenv. On x86-64 fenv_t is 32 bytes, MXCSR
# the last (flags are its six lowest bits); on AArch64 FPCR and FPSR.
CONTROL = """
import ctypes, ctypes.util, json, platform, struct, sys
libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
X86 = platform.machine() == "x86_64"
FLUSH, UPWARD, ZERO = (0x8040, 0x4000, 0x6000) if X86 else (1 << 24, 1 << 22, 3 << 22)
def control():
    state = ctypes.create_string_buffer(32)
    assert libm.fegetenv(state) == 0
    return struct.unpack_from("I", state.raw, 28)[0] & ~0x3F if X86 else struct.unpack_from("I", state.raw)[0]
def set_control(bits):
    state = ctypes.create_string_buffer(32)
    assert libm.fegetenv(state) == 0
    struct.pack_into("I", state, 28 if X86 else 0, bits)
    assert libm.fesetenv(state) == 0
USUAL = control()
SETTINGS = {"usual": 0, "flush": FLUSH, "upward": UPWARD, "toward zero, flush": ZERO | FLUSH}
asked = USUAL | SETTINGS[sys.argv[1]]
"""

KERNELS = """
set_control(asked)
import microgpt
imported = control()
from microgpt import _kernels as k, ops
set_control(USUAL)  # NumPy's own arithmetic is the caller's
import numpy as np
draw = np.random.default_rng(0).standard_normal
x, w, tiny = (draw(s).astype(np.float32) for s in ((300, 200), (500, 200), (40, 40)))
tiny *= np.float32(1e-39)
q = draw((96, 4, 32)).astype(np.float32)
lengths = np.array([0, 96], np.int32)
ones = np.ones(40, np.float32)
found, kept = {}, True
for threads in (1, 2):
    k.set_num_threads(threads)
    for name, call in {
        "linear": lambda: ops.linear(x, w),
        "tiny": lambda: ops.mul(tiny, ones),
        "softmax": lambda: ops.softmax(x),
        "layer_norm": lambda: ops.layer_norm(x),
        "exp": lambda: ops.exp(x),
    }.items():
        set_control(asked)
        y = call()
        kept = kept and control() == asked
        set_control(USUAL)
        found[f"{name} {threads}"] = y.numpy().tobytes().hex()
small = np.float32(1e-40) * np.float32(1.0)
print(json.dumps({"imported": imported == asked, "kept": bool(kept), "denormals": float(small) > 0, "found": found}))
"""

TRAINING = """
set_control(asked)
import microgpt
run = microgpt.train(data="names", steps=20, out=sys.argv[2])
kept = control() == asked
set_control(USUAL)
import hashlib, pathlib
weights = pathlib.Path(sys.argv[2], "step-20", "model.safetensors").read_bytes()
print(json.dumps({"kept": kept, "found": hashlib.sha256(weights).hexdigest()}))
"""


def child(code: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", CONTROL + code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_kernels_neither_see_nor_change_it() -> None:
    usual = child(KERNELS, "usual")
    assert usual["denormals"]  # importing has not switched the process to flush-to-zero
    for setting in ("flush", "upward", "toward zero, flush"):
        other = child(KERNELS, setting)
        assert other["imported"] and other["kept"], setting
        for name, bits in usual["found"].items():
            assert other["found"][name] == bits, f"{name} with {setting}"


def test_training_neither_sees_nor_changes_it(tmp_path: Path) -> None:
    """Flush-to-zero only: rounding would change the learning rates, which are Python floats."""
    usual, flush = (child(TRAINING, name, str(tmp_path / name)) for name in ("usual", "flush"))
    assert usual["kept"] and flush["kept"]
    assert usual["found"] == flush["found"]

"""What gguf-py makes of blocks and rows: live in test_gguf.py, and for the golden files that `make test` reads.

`python -m tests.parity.gguf_files` writes tests/golden/ggml.npz (a block of each type, what it means; a row, its bytes)
and tests/golden/gguf_py.gguf (a file with every type of metadata). Needs the package `gguf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from microgpt.io import ggml

GOLDEN = Path(__file__).parents[1] / "golden"
# gguf-py writes these the same way, byte for byte.
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0")


def reference(name: str) -> gguf.GGMLQuantizationType:
    """gguf-py's type of a name."""
    return gguf.GGMLQuantizationType[name]


def blocks(name: str, count: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(count, block bytes) of any bits, with what they mean: NaN and infinite scales included."""
    return rng.integers(0, 256, (count, ggml.NAMED[name].block_bytes), dtype=np.uint8)


def meaning(name: str, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Their float32 by gguf-py, as bits."""
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, reference(name)).reshape(-1).view(np.uint32)


def known() -> list[str]:
    """Types that gguf-py turns into numbers: all of ours but the integers and F64."""
    return [name for name in ggml.NAMED if name not in ("I8", "I16", "I32", "I64", "F64")]


def row(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(4, 32) float32: normal numbers, zeros, one large, halves that round."""
    x = rng.standard_normal((4, 32)).astype(np.float32)
    x[1] = 0.0
    x[2, 7] = 300.0
    x[3] = np.arange(32) / 2 - 8
    return x


def write_golden() -> None:
    """The two files."""
    rng = np.random.default_rng(5)
    stored: dict[str, Any] = {"row": row(rng)}
    for name in known():
        if not ggml.NAMED[name].plain:
            raw = blocks(name, 1, rng)
            stored[f"raw.{name}"], stored[f"bits.{name}"] = raw, meaning(name, raw)
    for name in WRITTEN[2:]:
        stored[f"bytes.{name}"] = gguf.quantize(stored["row"], reference(name)).reshape(-1).view(np.uint8)
    np.savez_compressed(GOLDEN / "ggml.npz", **stored)
    write_file(GOLDEN / "gguf_py.gguf")


def write_file(path: Path) -> None:
    """A small file with every type of metadata and tensors of several types, by gguf-py."""
    rng = np.random.default_rng(6)
    writer = gguf.GGUFWriter(path, "llama")
    for kind, value in [
        ("uint8", 200), ("int8", -100), ("uint16", 60000), ("int16", -30000), ("uint32", 4_000_000_000),
        ("int32", -2_000_000_000), ("uint64", 2**63), ("int64", -(2**62)), ("float32", 0.1), ("float64", 0.1),
        ("bool", True), ("string", "ünïcode"),
    ]:  # fmt: skip
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_array("b.strings", ["", "a", "βγ"])
    writer.add_array("b.ints", [1, -2, 3])
    writer.add_array("b.floats", [0.5, -1.5])
    writer.add_array("b.bools", [True, False])
    writer.add_tensor("x.f32", rng.standard_normal((3, 5)).astype(np.float32))
    writer.add_tensor("x.f16", rng.standard_normal((2, 3, 4)).astype(np.float16))
    for name in ("Q8_0", "BF16"):
        values = gguf.quantize(rng.standard_normal((2, 64)).astype(np.float32), reference(name))
        writer.add_tensor(f"x.{name.lower()}", values, raw_dtype=reference(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_golden()

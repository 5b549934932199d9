"""gpt-oss's MXFP4: NAME_blocks and NAME_scales, the experts of a layer together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...errors import FormatError
from ..ggml import NAMED, dequantize
from ..stored import Stored


def opened(weights: Mapping[str, Stored], where: str) -> Mapping[str, Stored]:
    """Each pair NAME_blocks, NAME_scales as one tensor NAME. Raises FormatError for parts that do not fit."""
    names = [name.removesuffix("_blocks") for name in weights if name.endswith("_blocks")]
    if not names:
        return weights
    result = dict(weights)
    for name in names:
        blocks, scales = result.pop(f"{name}_blocks"), result.pop(f"{name}_scales", None)
        if scales is None:
            raise FormatError(f"{where}: {name} expected blocks and scales")
        shape = blocks.shape
        whole = len(shape) == 4 and shape[3] == 16 and scales.shape == shape[:3]
        if blocks.dtype != "uint8" or scales.dtype != "uint8" or not whole:
            raise FormatError(f"{where}: {name}: expected blocks (experts, out, groups, 16) and scales (experts, out, "
                              f"groups), uint8, got {blocks.dtype} {shape}, {scales.dtype} {scales.shape}")  # fmt: skip
        result[name] = _mxfp4(blocks, scales)
    return result


def _mxfp4(blocks: Stored, scales: Stored) -> Stored:
    """Groups of 32 numbers 2^(scale - 127) * E2M1, two in a byte, the lower half first (OCP Microscaling, 2023). Stored
    are matrices (experts, out, in); the name stands for (experts, in, out)."""
    experts, rows, groups, _ = blocks.shape

    def turned(expert: int) -> Stored:
        def raw(start: int, stop: int) -> npt.NDArray[np.uint8]:
            return _gguf_blocks(_rows(blocks, expert, start, stop), _rows(scales, expert, start, stop))

        def numbers(start: int, stop: int) -> npt.NDArray[np.float32]:
            return dequantize(raw(start, stop).reshape(-1), NAMED["MXFP4"], (stop - start, groups * 32))

        return Stored((rows, groups * 32), "float32", lambda: numbers(0, rows), numbers, blocks=("MXFP4", raw))

    def array() -> npt.NDArray[np.float32]:
        return np.stack([turned(e).array() for e in range(experts)]).swapaxes(1, 2)

    return Stored((experts, groups * 32, rows), "float32", array, turned=turned)


def _rows(stored: Stored, expert: int, start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Rows of one expert, out of bytes (experts, out, ...)."""
    part = None if stored.part is None else stored.part(expert)
    rows: npt.NDArray[np.uint8]
    rows = stored.array()[expert, start:stop] if part is None or part.rows is None else part.rows(start, stop)
    return rows


def _gguf_blocks(codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The same groups as blocks of GGUF (rows, bytes): a scale, then bytes of which the i-th holds numbers i and
    i + 16 where here it holds 2i and 2i + 1."""
    made = np.empty((*scales.shape, 17), np.uint8)
    made[..., 0] = scales
    first, second = codes[..., :8], codes[..., 8:]
    made[..., 1::2] = (first & 15) | (second << 4)
    made[..., 2::2] = (first >> 4) | (second & 0xF0)
    return made.reshape(len(made), -1)

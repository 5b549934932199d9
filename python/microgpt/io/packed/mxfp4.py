"""gpt-oss's MXFP4: NAME_blocks and NAME_scales, the experts of a layer together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...errors import FormatError
from ..ggml import MXFP4_VALUES
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

    def array() -> npt.NDArray[np.float32]:
        raw, exponents = blocks.array(), scales.array()
        out = np.empty((experts, rows, groups, 16, 2), np.float32)
        for e in range(experts):
            scale = np.ldexp(np.float32(0.5), exponents[e].astype(np.int32) - 127)[:, :, None]  # the table is doubled
            out[e, ..., 0] = MXFP4_VALUES[raw[e] & 15] * scale
            out[e, ..., 1] = MXFP4_VALUES[raw[e] >> 4] * scale
        return out.reshape(experts, rows, groups * 32).swapaxes(1, 2)

    return Stored((experts, groups * 32, rows), "float32", array)

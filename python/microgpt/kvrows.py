"""KVRows: cached keys or values of a type of their own, as attention reads them (csrc/kernels/attention.inl.h)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import _kernels as k
from .errors import ConfigError

Array = k.Array


class KVRows:
    """Cached keys or values (rows, heads, width), of a type that need not be the queries': attention looks at it.

    `dtype` float32, bfloat16, or int8: codes -127..127 with a float32 scale max |x| / 127 for each row and head. What
    is written is rounded to nearest. It takes no gradient. Raises ConfigError for another type.
    """

    __slots__ = ("data", "dtype", "scales", "shape")

    slot = None
    ndim = 3

    def __init__(self, shape: tuple[int, int, int], dtype: str) -> None:
        if dtype not in ("float32", "bfloat16", "int8"):
            raise ConfigError(f"a cache of keys and values: expected float32, bfloat16 or int8, got {dtype!r}")
        rows, heads, _ = self.shape = shape
        self.dtype = dtype
        self.data: Array = k.empty(shape, "uint8" if dtype == "int8" else dtype)
        self.scales: Array | None = k.empty((heads, rows + k.KV_PAD), "float32") if dtype == "int8" else None

    def put(self, x: Array, places: Array) -> None:
        """Row t of x (T, heads, width) becomes row places[t] (int32) of the cache."""
        k.kv_put(x, places, self.data, self.shape[1], self.shape[2], self.scales)

    def copy_rows(self, source: int, target: int, count: int) -> None:
        """Rows target .. target + count - 1 become those from `source` on."""
        data = self.data.numpy()
        data[target : target + count] = data[source : source + count]
        if self.scales is not None:
            scales = self.scales.numpy()
            scales[:, target : target + count] = scales[:, source : source + count]

    def numbers(self) -> npt.NDArray[np.float64]:
        """What it holds, as float64."""
        data = self.data.numpy()
        if self.scales is None:
            return data.astype(np.float64)
        scales = self.scales.numpy()[:, : self.shape[0]].T.astype(np.float64)
        return data.view(np.int8).astype(np.float64) * scales[:, :, None]

    @property
    def nbytes(self) -> int:
        """Memory of numbers and scales."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

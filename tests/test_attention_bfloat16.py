"""Attention in bfloat16 against the float64 truth of the same inputs: root mean square errors within derived bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt.tensor import numpy_dtype

BF16 = numpy_dtype("bfloat16")
ISAS = [name for name, supported in k.isas() if supported]
U = 2.0**-9  # the largest relative error of a rounding to bfloat16
Numbers = np.ndarray[Any, Any]


def normal(rng: np.random.Generator, *shape: int) -> Numbers:
    return rng.standard_normal(shape).astype(np.float32).astype(BF16)


def rms(x: Numbers) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("length", "width", "causal"), [(33, 20, True), (200, 64, True), (130, 7, False)])
def test_errors_are_those_of_rounding_factors_and_results(length: int, width: int, causal: bool, isa: str) -> None:
    """Each rounded factor x of a sum of x y adds an error of at most U sqrt(sum (x y)^2) in the mean square, each result U.

    Factors that are rounded: probabilities (output, dv) and gradients of scores (dq, dk). The output that the forward
    rounded reaches dq and dk through delta = sum(dout * out), an error that all keys of a row share. Sums are in float32,
    2^-24 a step: nothing beside U. Errors are independent, so their squares add; rounding is U / sqrt(3) in the mean, the
    slack that is left.
    """
    k.set_isa(isa)
    rng = np.random.default_rng(length)
    heads = 2
    q, key, value, dout = (normal(rng, length, heads, width) for _ in range(4))
    arrays = [k.from_numpy(x) for x in (q, key, value, dout)]
    out, lse = k.empty_like(arrays[0]), k.empty((heads, length), "float32")
    grads = [k.empty_like(arrays[0]) for _ in range(3)]
    settings: dict[str, Any] = {
        "q_start": k.from_numpy(np.array([0, length], np.int32)),
        "k_start": k.from_numpy(np.array([0], np.int32)),
        "k_len": k.from_numpy(np.array([length], np.int32)),
        "heads": heads,
        "kv_heads": heads,
        "k_dim": width,
        "v_dim": width,
        "scale": 1 / math.sqrt(width),
        "causal": causal,
    }
    k.attention(*arrays[:3], out, lse=lse, **settings)
    k.attention_backward(*arrays[:3], out, lse, arrays[3], *grads, **settings)
    got = [each.numpy().astype(np.float64) for each in (out, *grads)]
    scale = settings["scale"]
    for h in range(heads):
        query, keys, values, d = (x[:, h].astype(np.float64) for x in (q, key, value, dout))
        scores = scale * query @ keys.T
        if causal:
            scores[np.triu_indices(length, 1)] = -np.inf
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        o = p @ values
        ds = p * (d @ values.T - (d * o).sum(1, keepdims=True))
        delta = np.square(d * o).sum(1, keepdims=True)  # mean square error of delta, in U^2
        want = [o, scale * ds @ keys, scale * ds.T @ query, p.T @ d]
        square = [
            o**2 + np.square(p) @ np.square(values),
            want[1] ** 2 + scale**2 * (np.square(ds) @ np.square(keys) + delta * np.square(p @ keys)),
            want[2] ** 2 + scale**2 * (np.square(ds).T @ np.square(query) + np.square(p).T @ (delta * np.square(query))),
            want[3] ** 2 + np.square(p).T @ np.square(d),
        ]
        for name, a, b, s in zip(("out", "dq", "dk", "dv"), got, want, square, strict=True):
            assert rms(a[:, h] - b) <= U * math.sqrt(float(np.mean(s))), name

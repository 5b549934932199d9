"""Attention in bfloat16 against the float64 truth of the same inputs: root mean square errors within derived bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt.tensors import numpy_dtype

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
    """A rounded factor x of a sum of x y adds an error of at most U sqrt(sum (x y)^2) in the mean square, a result U.

    Factors that are rounded: probabilities (output, dv) and gradients of scores (dq, dk). The output that the forward
    rounded reaches dq and dk through delta = sum(dout * out), an error that all keys of a row share. Sums are in
    float32, 2^-24 a step: nothing beside U. Errors are independent, so their squares add; rounding is U / sqrt(3) in
    the mean, the slack that is left.
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
            want[2] ** 2
            + scale**2 * (np.square(ds).T @ np.square(query) + np.square(p).T @ (delta * np.square(query))),
            want[3] ** 2 + np.square(p).T @ np.square(d),
        ]
        for name, a, b, s in zip(("out", "dq", "dk", "dv"), got, want, square, strict=True):
            assert rms(a[:, h] - b) <= U * math.sqrt(float(np.mean(s))), name


def int32(numbers: Any) -> k.Array:
    return k.from_numpy(np.array(numbers, np.int32))


def attend(
    isa: str, arrays: list[Numbers], rows: list[int], keys: list[int], backward: bool = True, **options: Any
) -> list[Numbers]:
    """out, and with `backward` dq, dk, dv, for packed sequences of these query rows and keys; 4 heads on 2."""
    k.set_isa(isa)
    q, key, value, dout = (k.from_numpy(np.ascontiguousarray(x)) for x in arrays)
    settings: dict[str, Any] = {
        "q_start": int32(np.cumsum([0, *rows])),
        "k_start": int32(np.cumsum([0, *keys])[:-1]),
        "k_len": int32(keys),
        "heads": 4,
        "kv_heads": 2,
        "k_dim": q.shape[2],
        "v_dim": value.shape[2],
        "scale": 0.3,
        **options,
    }
    out, lse = k.empty_like(dout), k.empty((4, q.shape[0]), "float32")
    dq, dk, dv = k.empty_like(q), k.empty_like(key), k.empty_like(value)
    k.attention(q, key, value, out, lse=lse, **settings)
    if not backward:
        return [out.numpy()]
    k.attention_backward(q, key, value, out, lse, dout, dq, dk, dv, **settings)
    return [each.numpy() for each in (out, dq, dk, dv)]


def problem(length: int, exponent: int = 0) -> list[Numbers]:
    """Normal numbers; values and output gradients times 2^exponent, queries and keys times its root."""
    rng = np.random.default_rng(length)
    made = [normal(rng, length, heads, width) for heads, width in ((4, 21), (2, 21), (2, 35), (4, 35))]
    scales = (exponent // 2, exponent // 2, exponent, exponent)
    return [np.ldexp(x.astype(np.float32), e).astype(BF16) for x, e in zip(made, scales, strict=True)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [-1, 17])
@pytest.mark.parametrize("exponent", [0, -126])  # sums of normal and of denormal size
def test_rows_have_the_same_bits_alone_packed_and_decoded(exponent: int, window: int, isa: str) -> None:
    lengths = [3, 70, 1, 65, 29]
    parts = [problem(length, exponent) for length in lengths]
    packed = attend(isa, [np.concatenate(each) for each in zip(*parts, strict=True)], lengths, lengths, window=window)
    at = 0
    for part, length in zip(parts, lengths, strict=True):
        for alone, whole in zip(attend(isa, part, [length], [length], window=window), packed, strict=True):
            assert alone.tobytes() == whole[at : at + length].tobytes()
        at += length
    q, key, value, dout = parts[1]
    whole = attend(isa, parts[1], [70], [70], window=window)[0]
    for step in (1, 3, 11):
        for begin in range(0, 70 - step, step):
            end = begin + step
            decoded = attend(
                isa, [q[begin:end], key[:end], value[:end], dout[begin:end]], [step], [end], window=window
            )[0]
            assert decoded.tobytes() == whole[begin:end].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [-1, 17, 600])
def test_rows_have_the_same_bits_where_keys_are_cut_over_shares(window: int, isa: str) -> None:
    length = 1100
    q, key, value, dout = problem(length)
    whole = attend(isa, [q, key, value, dout], [length], [length], window=window)[0]
    for row in (5, 63, 64, 511, 512, 700, 1023, 1024, 1099):
        one = slice(row, row + 1)
        cache = [np.concatenate([x, np.full_like(x[:9], np.nan)]) for x in (key, value)]  # more than has been stored
        decoded = attend(isa, [q[one], *cache, dout[one]], [1], [row + 1], window=window)[0]
        assert decoded.tobytes() == whole[one].tobytes()
    # Sequences that share their keys: more stretches than there is room for parts.
    rows = [1099, 1098, 1030, 1025, 900, 1024]
    ends = {"k_start": int32([0] * 6), "k_len": int32([row + 1 for row in rows])}
    shared = attend(isa, [q[rows], key, value, dout[rows]], [1] * 6, [0] * 6, window=window, backward=False, **ends)[0]
    assert shared.tobytes() == whole[rows].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [0, 5, 62, 63, 64, 98])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_reaches_the_rows_that_see_it_and_no_others(which: int, bad: int, isa: str) -> None:
    length = 99
    arrays = problem(length)
    clean = attend(isa, arrays, [length], [length])
    broken = [x.copy() for x in arrays]
    broken[which][bad] = np.nan
    out, dq = attend(isa, broken, [length], [length])[:2]
    for row in range(length):
        if row == bad if which == 0 else row >= bad:
            assert np.isnan(out[row].astype(np.float32)).all()
            assert np.isnan(dq[row].astype(np.float32)).all()
        else:
            assert out[row].tobytes() == clean[0][row].tobytes()
            assert dq[row].tobytes() == clean[1][row].tobytes()

"""How far two roundings of the same real number may lie apart: the pieces that the tables' tolerances are made of.

u is the unit roundoff (2^-8 for bfloat16, 2^-24 for float32, 2^-53 for float64). A bound is an array of the output's
shape: the worst that the rounding errors of a sensible evaluation can add up to, to first order in u. No bound is
tuned: where a constant stands it counts roundings, or doubles (1 ulp <= 2u) an error in ulp stated in csrc/simd/math.h.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

U16, U32, U64 = 2.0**-8, 2.0**-24, 2.0**-53
# One elementary function: at most 2.4 ulp (sigmoid), so 5u, and one rounding of its argument or its result.
ELEMENTARY = 6.0
# exp(-90) is 0 in float32 (csrc/simd/math.h), and products of small numbers underflow.
UNDERFLOW = 2.0**-120


def gamma(n: float, u: float) -> float:
    """Relative error of a sum of n products in any order: n u (Higham 2002, theorem 3.1), or what a random walk of n
    roundings reaches, 8 sqrt(n) u at eight standard deviations, where that is less (inputs here are random).

    bfloat16 is summed in float32: what is rounded to bfloat16 is a factor that was stored before, and the result.
    """
    if u == U16:
        return gamma(n, U32) + 2 * U16
    return min(float(n), 8.0 * math.sqrt(max(n, 0.0))) * u


def sum_to(x: Numbers, shape: tuple[int, ...]) -> Numbers:
    """The sum over the axes that broadcasting made."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and x.shape[i] != 1)
    return x.sum(axes, keepdims=True) if axes else x


def terms(x: Numbers, shape: tuple[int, ...]) -> int:
    """How many elements sum_to adds for one element of the result."""
    size = math.prod(shape)
    return x.size // size if size else 0


erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Numbers) -> Numbers:
    """1 / (1 + e^-x) without overflow and, for negative x, without cancellation."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


# act -> |act'| at most, |act''| at most, functions of |z|
SLOPE = {
    "none": lambda z: np.ones_like(z),
    "relu": lambda z: np.ones_like(z),
    "relu2": lambda z: 2.0 * np.abs(z),
    "gelu": lambda z: np.full_like(z, 1.13),
    "gelu_tanh": lambda z: np.full_like(z, 1.13),
    "silu": lambda z: np.full_like(z, 1.1),
}
CURVE = {"none": 0.0, "relu": 0.0, "relu2": 2.0, "gelu": 0.8, "gelu_tanh": 0.81, "silu": 0.5}


def act(z: Numbers, name: str) -> Numbers:
    """The activations from their definitions."""
    if name == "none":
        return z
    if name == "relu":
        return np.maximum(z, 0.0)
    if name == "relu2":
        return np.maximum(z, 0.0) ** 2
    if name == "silu":
        return z * sigmoid(z)
    if name == "gelu":
        return 0.5 * z * (1.0 + erf(z / math.sqrt(2.0)))
    return 0.5 * z * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


def act_slope(z: Numbers, name: str) -> Numbers:
    """d act / dz; 0 at the kink of relu."""
    if name == "none":
        return np.ones_like(z)
    if name == "relu":
        return (z > 0).astype(z.dtype)
    if name == "relu2":
        return 2.0 * np.maximum(z, 0.0)
    if name == "silu":
        s = sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    if name == "gelu":
        return 0.5 * (1.0 + erf(z / math.sqrt(2.0))) + z * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    c = math.sqrt(2.0 / math.pi)
    t = np.tanh(c * (z + 0.044715 * z**3))
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * c * (1.0 + 3 * 0.044715 * z * z)


def act_error(z: Numbers, error_z: Numbers | float, name: str, u: float) -> Numbers:
    """Error of act(z) where z itself is off by error_z."""
    own = 0.0 if name in ("none", "relu") else (2 * ELEMENTARY if name != "relu2" else 2.0) * u
    return SLOPE[name](z) * error_z + CURVE[name] * np.square(error_z) + own * np.abs(act_size(z, name))


def act_size(z: Numbers, name: str) -> Numbers:
    """What an evaluation's roundings are relative to: |z|, as 1 + erf cancels for negative z."""
    return z * z if name == "relu2" else np.abs(z)


def slope_error(z: Numbers, error_z: Numbers | float, name: str, u: float) -> Numbers:
    """Error of act'(z) where z is off by error_z: a term of size 1 and one of size |z| (times a bell), 2 ELEMENTARY
    roundings each; next to the kink of relu the slope may be that of the other side.
    """
    if name == "none":
        return np.zeros_like(z)
    if name == "relu":
        return (np.abs(z) <= error_z).astype(z.dtype)
    own = 2 * u * np.abs(z) if name == "relu2" else 2 * ELEMENTARY * u * (1.0 + np.minimum(np.abs(z), 4.0))
    return CURVE[name] * error_z + own


def softmax_relative(scores: Numbers, error: Numbers | float, u: float) -> Numbers:
    """Relative error of softmax(scores) over the last axis, scores being off by `error`: one exponential, the sum."""
    top = scores.max(-1, keepdims=True)
    one = error + u * np.abs(scores - top) + ELEMENTARY * u
    return one + np.max(one, -1, keepdims=True) + gamma(scores.shape[-1] + 2, u)

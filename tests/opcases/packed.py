"""Attention of q, k and v from one projection: attention's own cases, joined, and its bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError

from . import attention
from .bounds import Numbers
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array

_RULE = attention.RULES["attention"]


def _joined(make: Callable[[np.random.Generator], Inputs]) -> Callable[[np.random.Generator], Inputs]:
    def made(rng: np.random.Generator) -> Inputs:
        inputs = make(rng)
        return {"qkv": np.concatenate([inputs.pop(name) for name in ("q", "keys", "values")], 1), **inputs}

    return made


def _apart(i: Inputs, o: Any) -> Inputs:
    g = o["kv_heads"]
    q, keys, values = np.split(i["qkv"], [i["qkv"].shape[1] - 2 * g, i["qkv"].shape[1] - g], 1)
    return {**i, "q": q, "keys": keys, "values": values}


def _forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    return _RULE.forward(_apart(i, o), o, y, u)


def _gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    bounds = _RULE.gradients(_apart(i, o), o, y, dy, u)
    return {"qkv": np.concatenate([bounds[name] for name in ("q", "keys", "values")], 1)}


def _case(label: str, lengths: list[int], heads: int, kv_heads: int, width: int, gap: int = 0, alibi: bool = False,
          small: bool = False, shares: bool = False, **options: Any) -> Case:  # fmt: skip
    make = _joined(attention.packed(lengths, lengths, heads, kv_heads, width, gap=gap, alibi=alibi))
    return Case("packed_attention", label, make, {"kv_heads": kv_heads, **options}, small=small, shares=shares)


CASES: list[Case] = [
    _case("one", [1], 1, 1, 1, small=True),
    _case("small", [3, 2], 2, 1, 3, small=True),
    _case("small-full-cap", [4], 2, 2, 2, small=True, causal=False, soft_cap=1.5),
    _case("none", [], 2, 1, 4),
    _case("empty-between", [3, 0, 4], 2, 1, 5),
    *(_case(f"edge{n}", [n], 2, 2, 16) for n in (15, 17, 33, 65, 129)),
    *(_case(f"width{n}", [9], 4, 2, n) for n in (7, 16, 33)),
    _case("everything", [70, 12], 6, 2, 24, alibi=True, window=50, soft_cap=5.0, scale=0.3),
    _case("shares", [65, 1, 100], 4, 2, 32, shares=True),
]
RULES = {"packed_attention": Rule(_forward, _gradients)}


def _call(qkv: Any = None, kv_heads: int = 2, q_start: Any = (0, 3), k_len: Any = (3,), **options: Any) -> Any:
    layout = (q_start, (0,), k_len)
    return ops.packed_attention(
        array((3, 8, 4)) if qkv is None else qkv,
        kv_heads,
        *(int32_array(*each) if isinstance(each, tuple) else each for each in layout),
        **options,
    )


def _error(label: str, pattern: str, error: type[Exception] = ShapeError, **arguments: Any) -> ErrorCase:
    return ErrorCase(
        "packed_attention", label, lambda: _call(**{n: a() if callable(a) else a for n, a in arguments.items()}), error,
        pattern,
    )  # fmt: skip


_HEADS = r"packed_attention: `kv_heads` expected G of 8 = H \+ 2 G heads, H a multiple of G, got "
ERRORS: list[ErrorCase] = [
    _error("axes", r"packed_attention: `qkv` expected three axes .*\(3, 32\)", qkv=lambda: array((3, 32))),
    _error("no-keys", _HEADS + "0", kv_heads=0),
    _error("negative", _HEADS + "-1", kv_heads=-1),
    _error("no-queries", _HEADS + "4", kv_heads=4),
    _error("group", _HEADS + "3", kv_heads=3),
    _error("window", "packed_attention: `window` expected at least 1, got 0", window=0),
    _error(
        "int64", "packed_attention: `k_len` expected int32, got int64", DTypeError, k_len=lambda: array((1,), "int64")
    ),
    _error("integers", "packed_attention", DTypeError, qkv=lambda: array((3, 8, 4), "int32")),
    _error("end", "`q_start` must run from 0 to the 3 query rows", q_start=(0, 2)),
    _error("keys", r"sequence 0 has keys 0\.\.4 of 3", k_len=(4,)),
]

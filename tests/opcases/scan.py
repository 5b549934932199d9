"""Ops that walk packed sequences: selective scan, causal convolution, linear recurrence.

Bounds follow the recurrences themselves: an error that a row makes decays as its value does. On the way kernels round
to float32 where bfloat16 is stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from microgpt import ops
from microgpt.errors import ConfigError, DTypeError, ShapeError, UsageError
from microgpt.tensors import Tensor

from .bounds import U16, U32, Numbers, act, act_error, act_slope, gamma, sigmoid, slope_error
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array

CASES: list[Case] = []
RULES: dict[str, Rule] = {}
ERRORS: list[ErrorCase] = []


def inner(u: float) -> float:
    """The roundoff of what is computed on the way."""
    return U32 if u == U16 else u


def starts(lengths: Sequence[int]) -> Numbers:
    return np.cumsum([0, *lengths]).astype(np.int32)


def rows_of(q_start: Numbers) -> Iterator[slice]:
    for first, last in itertools.pairwise(q_start):
        if last > first:
            yield slice(int(first), int(last))


# -- selective scan ----------------------------------------------------------------------------------------------------
def _scan(lengths: Sequence[int], channels: int, states: int, fused: bool = True) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        tokens = sum(lengths)
        made = {
            "u": rng.standard_normal((tokens, channels)),
            "delta": rng.uniform(-3.0, 1.0, (tokens, channels))
            if fused
            else rng.uniform(0.01, 0.8, (tokens, channels)),
            "a": -np.exp(rng.uniform(-1.0, 2.5, (channels, states))),
            "b": rng.standard_normal((tokens, states)),
            "c": rng.standard_normal((tokens, states)),
        }
        if fused:
            made["skip"] = rng.standard_normal(channels)
            made["z"] = rng.standard_normal((tokens, channels))
            made["delta_bias"] = rng.uniform(-1.0, 1.0, channels)
        made["q_start"] = starts(lengths)
        return made

    return make


class Walk(NamedTuple):
    """What forward and backward share, with errors: (T, C) or (T, C, N)."""

    raw: Numbers
    d: Numbers
    error_d: Numbers
    decay: Numbers
    error_decay: Numbers  # relative
    before: Numbers
    h: Numbers
    error_before: Numbers
    error_h: Numbers
    y: Numbers  # before the gate
    error_y: Numbers


def _walk(i: Inputs, o: Any, u: float) -> Walk:
    raw = i["delta"] + i.get("delta_bias", 0.0)
    d, error_d = raw, u * np.abs(raw)
    if o.get("softplus"):  # e^-|raw| is off by 2 |raw| + 3 roundings; the twin also rounds 1 + e
        d = np.maximum(raw, 0.0) + np.log1p(np.exp(-np.abs(raw)))
        error_d = error_d * sigmoid(raw) + u * (d * (2 * np.abs(raw) + 12) + 1)
    exponent = d[:, :, None] * i["a"]
    decay = np.exp(exponent)
    error_decay = np.abs(i["a"]) * error_d[:, :, None] + u * (3 * np.abs(exponent) + 5)
    added = (d * i["u"])[:, :, None] * i["b"][:, None, :]
    error_added = (error_d * np.abs(i["u"]))[:, :, None] * np.abs(i["b"][:, None, :]) + 3 * u * np.abs(added)
    h, before, error_h, error_before = (np.zeros_like(decay) for _ in range(4))
    for rows in rows_of(i["q_start"]):
        now, error = np.zeros(decay.shape[1:]), np.zeros(decay.shape[1:])
        for t in range(rows.start, rows.stop):
            before[t], error_before[t] = now, error
            error = decay[t] * (error + np.abs(now) * (error_decay[t] + 2 * u)) + error_added[t]
            now = decay[t] * now + added[t]
            error = error + u * np.abs(now)
            h[t], error_h[t] = now, error
    c = i["c"][:, None, :]
    skip = i["skip"] * i["u"] if "skip" in i else np.zeros_like(i["u"])
    y = (h * c).sum(2) + skip
    error_y = (error_h * np.abs(c)).sum(2) + gamma(c.shape[2] + 3, u) * (np.abs(h * c).sum(2) + np.abs(skip))
    return Walk(raw, d, error_d, decay, error_decay, before, h, error_before, error_h, y, error_y)


def _gate(i: Inputs, u: float) -> tuple[Numbers, Numbers]:
    if "z" not in i:
        return np.ones_like(i["u"]), np.zeros_like(i["u"])
    return act(i["z"], "silu"), act_error(i["z"], 0.0, "silu", u)


def _scan_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    walk = _walk(i, o, inner(u))
    gate, error_gate = _gate(i, inner(u))
    return walk.error_y * np.abs(gate) + np.abs(walk.y) * (error_gate + inner(u) * np.abs(gate)) + u * np.abs(y)


def _scan_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    r = inner(u)
    w = _walk(i, o, r)
    gate, error_gate = _gate(i, r)
    d_y = dy * gate
    error_d_y = np.abs(dy) * error_gate + 2 * r * np.abs(d_y)
    tokens, channels, states = w.h.shape
    b, c, a = i["b"][:, None, :], i["c"][:, None, :], i["a"]
    g, error_g = np.zeros_like(w.h), np.zeros_like(w.h)
    for rows in rows_of(i["q_start"]):
        later, error = np.zeros(w.h.shape[1:]), np.zeros(w.h.shape[1:])
        for t in range(rows.stop - 1, rows.start - 1, -1):
            own = d_y[t][:, None] * c[t]
            g[t] = own + later
            error_g[t] = error + error_d_y[t][:, None] * np.abs(c[t]) + 2 * r * (np.abs(own) + np.abs(later))
            later = w.decay[t] * g[t]
            error = w.decay[t] * error_g[t] + np.abs(later) * (w.error_decay[t] + r)
    d, x, big = w.d[:, :, None], i["u"][:, :, None], np.abs
    du = d * x
    error_du = w.error_d[:, :, None] * big(x) + r * big(du)
    slope = g * w.decay * w.before
    error_slope = w.decay * (error_g * big(w.before) + big(g) * w.error_before) + big(slope) * (w.error_decay + 3 * r)
    gb, error_gb = (g * b).sum(2), (error_g * big(b)).sum(2) + gamma(states + 2, r) * big(g * b).sum(2)
    skip = np.abs(i.get("skip", np.zeros(channels)))
    d_u = gb * w.d + i.get("skip", 0.0) * d_y
    error_u = error_gb * w.d + big(gb) * w.error_d + skip * error_d_y + 3 * r * (big(gb) * w.d + skip * big(d_y))
    dd = (slope * a).sum(2) + gb * i["u"]
    error_dd = (error_slope * big(a)).sum(2) + gamma(states + 4, r) * (big(slope * a).sum(2) + big(gb * i["u"]))
    error_dd = error_dd + error_gb * big(i["u"])
    bend = sigmoid(w.raw) if o.get("softplus") else np.ones_like(w.raw)
    error_delta = bend * (error_dd + big(dd) * r * (3 * big(w.raw) + 14))
    ddelta = dd * bend
    out = {
        "u": error_u + u * big(d_u),
        "delta": error_delta + u * big(ddelta),
        "a": (error_slope * d + big(slope) * w.error_d[:, :, None]).sum(0)
        + gamma(tokens + 3, r) * big(slope * d).sum(0),
        "b": (error_g * big(du) + big(g) * error_du).sum(1) + gamma(channels + 3, r) * big(g * du).sum(1),
        "c": (error_d_y[:, :, None] * big(w.h) + big(d_y)[:, :, None] * w.error_h).sum(1)
        + gamma(channels + 3, r) * big(d_y[:, :, None] * w.h).sum(1),
    }
    if "skip" in i:
        out["skip"] = (error_d_y * big(i["u"])).sum(0) + gamma(tokens + 2, r) * big(d_y * i["u"]).sum(0)
        out["delta_bias"] = error_delta.sum(0) + gamma(tokens + 2, r) * big(ddelta).sum(0)
        slope_z = act_slope(i["z"], "silu")
        off = big(slope_z) * w.error_y + big(w.y) * (slope_error(i["z"], 0.0, "silu", r) + 3 * r * big(slope_z))
        out["z"] = big(dy) * off + u * big(dy * w.y * slope_z)
    return out


SOFT = {"softplus": True}
CASES += [
    Case("selective_scan", "one", _scan([1], 1, 1), SOFT, small=True),
    Case("selective_scan", "small", _scan([4], 2, 3), SOFT, small=True),
    Case("selective_scan", "small-two", _scan([2, 0, 3], 2, 2), SOFT, small=True),
    Case("selective_scan", "small-plain", _scan([3], 3, 2, fused=False), small=True),
    Case("selective_scan", "plain", _scan([33], 17, 5, fused=False)),
    *(Case("selective_scan", f"channels{n}", _scan([9], n, 4), SOFT) for n in (15, 16, 17, 33, 63, 65)),
    *(Case("selective_scan", f"states{n}", _scan([5], 18, n), SOFT) for n in (1, 2, 3, 7, 16, 17, 33)),
    *(Case("selective_scan", f"rows{n}", _scan([n], 5, 3), SOFT) for n in (31, 32, 33, 64, 65, 97)),
    Case("selective_scan", "packed", _scan([31, 1, 0, 64, 33], 34, 8), SOFT),
    Case("selective_scan", "shares", _scan([40, 7], 150, 16), SOFT, shares=True),
]
RULES["selective_scan"] = Rule(_scan_forward, _scan_gradients)


# -- causal convolution ------------------------------------------------------------------------------------------------
def _conv(lengths: Sequence[int], channels: int, taps: int, bias: bool = True) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        made = {"x": rng.standard_normal((sum(lengths), channels)), "weight": rng.standard_normal((channels, taps))}
        if bias:
            made["bias"] = rng.standard_normal(channels)
        made["q_start"] = starts(lengths)
        return made

    return make


def _taps(i: Inputs) -> Numbers:
    """(T, C, K): the row that each tap sees, zero before the sequence."""
    tokens, channels = i["x"].shape
    taps = i["weight"].shape[1]
    seen = np.zeros((tokens, channels, taps))
    for rows in rows_of(i["q_start"]):
        for tap in range(taps):
            back = taps - 1 - tap
            n = rows.stop - rows.start - back
            if n > 0:
                seen[rows.start + back : rows.stop, :, tap] = i["x"][rows.start : rows.start + n]
    return seen


def _conv_pre(i: Inputs, u: float) -> tuple[Numbers, Numbers, Numbers]:
    seen = _taps(i)
    bias = i.get("bias", np.zeros(i["x"].shape[1]))
    size = (np.abs(seen) * np.abs(i["weight"])).sum(2) + np.abs(bias)
    return seen, (seen * i["weight"]).sum(2) + bias, gamma(seen.shape[2] + 2, u) * size


def _conv_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    _, z, error = _conv_pre(i, inner(u))
    return act_error(z, error, o.get("act", "none"), inner(u)) + u * np.abs(y)


def _conv_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    r, name = inner(u), o.get("act", "none")
    seen, z, error = _conv_pre(i, r)
    taps = seen.shape[2]
    dz = dy * act_slope(z, name)
    off = np.abs(dy) * slope_error(z, error, name, r) + 2 * r * np.abs(dz)

    def turned(each: Numbers) -> Numbers:
        """Each tap's value goes to the row that the tap saw."""
        total = np.zeros_like(dz)
        for rows in rows_of(i["q_start"]):
            for tap in range(taps):
                back = taps - 1 - tap
                n = rows.stop - rows.start - back
                if n > 0:
                    total[rows.start : rows.start + n] += each[rows.start + back : rows.stop, :, tap]
        return total

    weight = np.abs(i["weight"])
    tokens = len(dz)
    dx = turned(dz[:, :, None] * i["weight"])
    return {
        "x": turned(off[:, :, None] * weight)
        + gamma(taps + 1, r) * turned(np.abs(dz)[:, :, None] * weight)
        + u * np.abs(dx),
        "weight": (off[:, :, None] * np.abs(seen)).sum(0) + gamma(tokens + 1, r) * np.abs(dz[:, :, None] * seen).sum(0),
        "bias": off.sum(0) + gamma(tokens + 1, r) * np.abs(dz).sum(0),
    }


SILU = {"act": "silu"}
CASES += [
    Case("causal_conv1d", "one", _conv([1], 1, 1), small=True),
    Case("causal_conv1d", "small", _conv([5], 3, 4), SILU, small=True),
    Case("causal_conv1d", "small-plain", _conv([3, 0, 4], 2, 3, bias=False), small=True),
    *(Case("causal_conv1d", f"channels{n}", _conv([9, 2], n, 4), SILU) for n in (15, 16, 17, 33, 63, 65)),
    *(Case("causal_conv1d", f"taps{n}", _conv([7, 3, 1], 18, n), SILU) for n in (1, 2, 3, 5, 9)),
    Case("causal_conv1d", "packed", _conv([31, 1, 0, 64, 2], 34, 4)),
    Case("causal_conv1d", "shares", _conv([140, 7], 150, 4), SILU, shares=True),
]
RULES["causal_conv1d"] = Rule(_conv_forward, _conv_gradients)


# -- refusals ----------------------------------------------------------------------------------------------------------
def refusal(
    op: str,
    label: str,
    pattern: str,
    base: Callable[[], dict[str, Any]],
    error: type[Exception] = ShapeError,
    **changed: Any,
) -> ErrorCase:
    def call() -> Any:
        return ops.OPS.get(op)(**{**base(), **{name: make() for name, make in changed.items()}})

    return ErrorCase(op, label, call, error, f"{op}: {pattern}")


def _scan_arguments() -> dict[str, Any]:
    made = {
        name: array(shape)
        for name, shape in (("u", (3, 4)), ("delta", (3, 4)), ("a", (4, 2)), ("b", (3, 2)), ("c", (3, 2)))
    }
    return {**made, "q_start": int32_array(0, 3)}


def _conv_arguments() -> dict[str, Any]:
    return {"x": array((3, 4)), "weight": array((4, 2)), "q_start": int32_array(0, 3)}


def leaf(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32), requires_grad=True)


def common_refusals(op: str, base: Callable[[], dict[str, Any]], x: str) -> list[ErrorCase]:
    """What every op of packed rows refuses."""
    return [
        refusal(op, "axes", rf"`{x}` expected two axes", base, **{x: lambda: array((3,))}),
        refusal(op, "no-channels", rf"`{x}` expected two axes", base, **{x: lambda: array((3, 0))}),
        refusal(op, "starts", r"`q_start` must run from 0 to the 3 rows", base, q_start=lambda: int32_array(0, 2)),
        refusal(op, "starts-begin", r"`q_start` must run from 0", base, q_start=lambda: int32_array(1, 3)),
        refusal(op, "starts-fall", r"`q_start` falls at sequence 1", base, q_start=lambda: int32_array(0, 3, 2, 3)),
        refusal(op, "starts-negative", r"`q_start` falls", base, q_start=lambda: int32_array(0, -5, 3)),
        refusal(op, "starts-none", r"`q_start` expected one axis", base, q_start=lambda: int32_array()),
        refusal(op, "starts-type", r"`q_start`", base, DTypeError, q_start=lambda: array((2,))),
        refusal(op, "state-shape", r"`state` expected", base, state=lambda: array((1, 3))),
        refusal(op, "integers", "", base, DTypeError, **{x: lambda: array((3, 4), "int32")}),
    ]


ERRORS += common_refusals("selective_scan", _scan_arguments, "u")
ERRORS += common_refusals("causal_conv1d", _conv_arguments, "x")
ERRORS += [
    refusal("selective_scan", "delta", r"`delta` expected \(3, 4\)", _scan_arguments, delta=lambda: array((3, 5))),
    refusal(
        "selective_scan",
        "a",
        r"`a` expected \(4, states >= 1\), got \(3, 2\)",
        _scan_arguments,
        a=lambda: array((3, 2)),
    ),
    refusal(
        "selective_scan", "no-states", r"`a` expected \(4, states >= 1\)", _scan_arguments, a=lambda: array((4, 0))
    ),
    refusal("selective_scan", "b", r"`b` expected \(3, 2\), got \(3, 3\)", _scan_arguments, b=lambda: array((3, 3))),
    refusal("selective_scan", "c", r"`c` expected \(3, 2\), got \(2, 2\)", _scan_arguments, c=lambda: array((2, 2))),
    refusal("selective_scan", "skip", r"`skip` expected \(4,\)", _scan_arguments, skip=lambda: array((5,))),
    refusal(
        "selective_scan", "bias", r"`delta_bias` expected \(4,\)", _scan_arguments, delta_bias=lambda: array((4, 1))
    ),
    refusal("selective_scan", "z", r"`z` expected \(3, 4\)", _scan_arguments, z=lambda: array((3, 1))),
    refusal("selective_scan", "mixed", "", _scan_arguments, DTypeError, b=lambda: array((3, 2), "float64")),
    refusal("selective_scan", "mixed-a", "", _scan_arguments, DTypeError, a=lambda: array((4, 2), "float64")),
    refusal(
        "selective_scan",
        "state-type",
        "`state`",
        _scan_arguments,
        DTypeError,
        state=lambda: array((1, 2, 4), "float64"),
    ),
    refusal(
        "selective_scan",
        "state-gradient",
        "`state` takes part in no gradient",
        _scan_arguments,
        UsageError,
        state=lambda: array((1, 2, 4)),
        u=lambda: leaf(3, 4),
    ),
    refusal(
        "causal_conv1d", "weight", r"`weight` expected \(4, taps >= 1\)", _conv_arguments, weight=lambda: array((3, 2))
    ),
    refusal(
        "causal_conv1d", "no-taps", r"`weight` expected \(4, taps >= 1\)", _conv_arguments, weight=lambda: array((4, 0))
    ),
    refusal("causal_conv1d", "bias", r"`bias` expected \(4,\)", _conv_arguments, bias=lambda: array((3,))),
    refusal("causal_conv1d", "act", "the activation is none or silu", _conv_arguments, UsageError, act=lambda: "gelu"),
    ErrorCase(
        "causal_conv1d",
        "unknown-act",
        lambda: ops.causal_conv1d(**_conv_arguments(), act="swish"),
        ConfigError,
        "swish",
    ),
    refusal(
        "causal_conv1d",
        "state-gradient",
        "`state` takes part in no gradient",
        _conv_arguments,
        UsageError,
        state=lambda: array((1, 1, 4)),
        x=lambda: leaf(3, 4),
    ),
]

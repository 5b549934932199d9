"""Recurrences of one number a channel: linear recurrence and RG-LRU. Bounds as in scan.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from microgpt.errors import DTypeError, UsageError

from .bounds import Numbers, gamma, sigmoid
from .case import Case, ErrorCase, Inputs, Rule, array, int32_array
from .scan import common_refusals, inner, leaf, refusal, rows_of, starts

CASES: list[Case] = []
RULES: dict[str, Rule] = {}
ERRORS: list[ErrorCase] = []


# -- linear recurrence -------------------------------------------------------------------------------------------------
def _recurrence(lengths: Sequence[int], channels: int) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        shape = (sum(lengths), channels)
        return {"x": rng.standard_normal(shape), "a": rng.uniform(-0.2, 0.99, shape), "q_start": starts(lengths)}

    return make


def _recurrence_walk(i: Inputs, u: float) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """h before each row and after, with errors."""
    before, h, error_before, error_h = (np.zeros_like(i["x"]) for _ in range(4))
    for rows in rows_of(i["q_start"]):
        now = error = np.zeros(i["x"].shape[1])
        for t in range(rows.start, rows.stop):
            before[t], error_before[t] = now, error
            carried = i["a"][t] * now
            error = np.abs(i["a"][t]) * error + 2 * u * (np.abs(carried) + np.abs(i["x"][t]))
            now = carried + i["x"][t]
            h[t], error_h[t] = now, error
    return before, h, error_before, error_h


def _recurrence_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    return _recurrence_walk(i, inner(u))[3] + u * np.abs(y)


def _recurrence_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    r = inner(u)
    before, _, error_before, _ = _recurrence_walk(i, r)
    g, error_g = np.zeros_like(before), np.zeros_like(before)
    for rows in rows_of(i["q_start"]):
        later = error = np.zeros(before.shape[1])
        for t in range(rows.stop - 1, rows.start - 1, -1):
            g[t] = dy[t] + later
            error_g[t] = error + 2 * r * (np.abs(dy[t]) + np.abs(later))
            later, error = i["a"][t] * g[t], np.abs(i["a"][t]) * error_g[t] + r * np.abs(i["a"][t] * g[t])
    stored = error_before + u * np.abs(before)
    return {
        "x": error_g + u * np.abs(g),
        "a": error_g * np.abs(before) + np.abs(g) * stored + 2 * u * np.abs(g * before),
    }


CASES += [
    Case("linear_recurrence", "one", _recurrence([1], 1), small=True),
    Case("linear_recurrence", "small", _recurrence([3, 0, 4], 2), small=True),
    *(Case("linear_recurrence", f"channels{n}", _recurrence([9, 2], n)) for n in (15, 16, 17, 33, 63, 65)),
    Case("linear_recurrence", "packed", _recurrence([31, 1, 0, 64, 2], 34)),
    Case("linear_recurrence", "shares", _recurrence([600, 7], 150), shares=True),
]
RULES["linear_recurrence"] = Rule(_recurrence_forward, _recurrence_gradients)


# -- RG-LRU ------------------------------------------------------------------------------------------------------------
def _rg_lru(lengths: Sequence[int], channels: int, begin: int = 0) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        shape = (sum(lengths), channels)
        positions = np.concatenate([np.arange(begin, begin + n) for n in lengths]).astype(np.int32)
        return {
            "x": rng.standard_normal(shape),
            "input_gate": rng.standard_normal(shape),
            "recurrent_gate": rng.standard_normal(shape),
            "param": rng.uniform(-4.0, 1.0, channels),
            "positions": positions,
            "q_start": starts(lengths),
        }

    return make


class Gates(NamedTuple):
    """(T, C), with relative errors: both gates, a, the factor of the input; what is added to h."""

    input: Numbers
    recurrent: Numbers
    rate: Numbers
    a: Numbers
    error_a: Numbers
    scale: Numbers
    error_scale: Numbers
    added: Numbers
    error_gate: Numbers


def _gates(i: Inputs, u: float) -> Gates:
    begins = i["positions"][:, None] == 0
    gate, recurrent = sigmoid(i["input_gate"]), sigmoid(i["recurrent_gate"])
    error_gate = u * (2 * np.maximum(np.abs(i["input_gate"]), np.abs(i["recurrent_gate"])) + 8)
    soft = np.log1p(np.exp(i["param"]))
    rate = -8.0 * soft
    # log a is off by its gate's error and softplus's, which counts 1 + e^x rounded in the twin
    log_a = rate * recurrent
    error_log = np.abs(log_a) * (error_gate + u * (2 * np.abs(i["param"]) + 14 + 1 / soft))
    error_a = error_log + 4 * u
    a = np.where(begins, 0.0, np.exp(log_a))
    below = -np.expm1(2 * log_a)  # 1 - a^2, which a's rounding shifts
    error_scale = np.where(begins, 0.0, a * a * error_a / below + 3 * u)
    scale = np.where(begins, 1.0, np.sqrt(below))
    return Gates(gate, recurrent, rate, a, error_a, scale, error_scale, scale * gate * i["x"], error_gate)


def _rg_lru_walk(i: Inputs, w: Gates, u: float) -> tuple[Numbers, Numbers, Numbers]:
    """h before each row, its error, and that of h after it."""
    before, error_before, error_h = (np.zeros_like(i["x"]) for _ in range(3))
    for rows in rows_of(i["q_start"]):
        now = error = np.zeros(i["x"].shape[1])
        for t in range(rows.start, rows.stop):
            before[t], error_before[t] = now, error
            carried = w.a[t] * now
            error = w.a[t] * error + np.abs(carried) * (w.error_a[t] + 2 * u)
            error = error + np.abs(w.added[t]) * (w.error_scale[t] + w.error_gate[t] + 4 * u)
            now, error_h[t] = carried + w.added[t], error
    return before, error_before, error_h


def _rg_lru_forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    return _rg_lru_walk(i, _gates(i, inner(u)), inner(u))[2] + u * np.abs(y)


def _rg_lru_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    r, big = inner(u), np.abs
    w = _gates(i, r)
    before, error_before, _ = _rg_lru_walk(i, w, r)
    g, error_g = np.zeros_like(before), np.zeros_like(before)
    for rows in rows_of(i["q_start"]):
        later = error = np.zeros(before.shape[1])
        for t in range(rows.stop - 1, rows.start - 1, -1):
            g[t] = dy[t] + later
            error_g[t] = error + 2 * r * (big(dy[t]) + big(later))
            later = w.a[t] * g[t]
            error = w.a[t] * error_g[t] + big(later) * (w.error_a[t] + r)
    both = w.error_scale + w.error_gate + 6 * r
    dx = g * w.scale * w.input
    dinput = g * w.scale * i["x"] * w.input * (1 - w.input)
    bend = w.a * w.input * i["x"] / w.scale
    error_bend = big(bend) * (w.error_a + both)
    dlog = g * w.a * (before - bend)
    stored = error_before + u * big(before)
    error_dlog = w.a * (error_g * big(before - bend) + big(g) * (stored + error_bend + r * (big(before) + big(bend))))
    error_dlog = error_dlog + big(dlog) * (w.error_a + 4 * r)
    soft = 2 * r * (big(i["param"]) + 8) + r / np.log1p(np.exp(i["param"]))
    turn = w.rate * w.recurrent * (1 - w.recurrent)
    slope = -8.0 * sigmoid(i["param"])
    # 1 - sigmoid has the sigmoid's own error, which is large beside it where the gate is open
    open_input, open_recurrent = (each**2 * (w.error_gate + r) for each in (w.input, w.recurrent))
    total = big(dlog * w.recurrent).sum(0)
    tokens = len(dy)
    return {
        "x": error_g * w.scale * w.input + big(dx) * (both + u),
        "input_gate": error_g * w.scale * big(i["x"]) * w.input * (1 - w.input)
        + big(dinput) * (2 * both + u)
        + big(g * w.scale * i["x"]) * open_input,
        "recurrent_gate": big(turn) * error_dlog
        + big(dlog * turn) * (soft + 2 * w.error_gate + 6 * r + u)
        + big(dlog * w.rate) * open_recurrent,
        "param": big(slope) * ((error_dlog + big(dlog) * w.error_gate) * w.recurrent).sum(0)
        + big(slope) * total * (gamma(tokens + 2, r) + r * (2 * big(i["param"]) + 16)),
    }


CASES += [
    Case("rg_lru", "one", _rg_lru([1], 1), small=True),
    Case("rg_lru", "small", _rg_lru([3, 0, 4], 2), small=True),
    Case("rg_lru", "small-later", _rg_lru([4], 2, begin=5), small=True),
    *(Case("rg_lru", f"channels{n}", _rg_lru([9, 2], n)) for n in (15, 16, 17, 33, 63, 65)),
    Case("rg_lru", "packed", _rg_lru([31, 1, 0, 64, 2], 34)),
    Case("rg_lru", "shares", _rg_lru([120, 7], 150), shares=True),
]
RULES["rg_lru"] = Rule(_rg_lru_forward, _rg_lru_gradients)


# -- refusals ----------------------------------------------------------------------------------------------------
def _recurrence_arguments() -> dict[str, Any]:
    return {"x": array((3, 4)), "a": array((3, 4)), "q_start": int32_array(0, 3)}


def _rg_lru_arguments() -> dict[str, Any]:
    made = {name: array((3, 4)) for name in ("x", "input_gate", "recurrent_gate")}
    return {**made, "param": array((4,)), "positions": int32_array(0, 1, 2), "q_start": int32_array(0, 3)}


ERRORS += common_refusals("linear_recurrence", _recurrence_arguments, "x")
ERRORS += common_refusals("rg_lru", _rg_lru_arguments, "x")
ERRORS += [
    refusal("linear_recurrence", "a", r"`a` expected \(3, 4\)", _recurrence_arguments, a=lambda: array((3, 5))),
    refusal("linear_recurrence", "mixed", "", _recurrence_arguments, DTypeError, a=lambda: array((3, 4), "float64")),
    refusal(
        "linear_recurrence",
        "state-gradient",
        "`state` takes part in no gradient",
        _recurrence_arguments,
        UsageError,
        state=lambda: array((1, 4)),
        x=lambda: leaf(3, 4),
    ),
    refusal("rg_lru", "gates", r"`input_gate` expected \(3, 4\)", _rg_lru_arguments, input_gate=lambda: array((3, 5))),
    refusal("rg_lru", "param", r"`param` expected \(4,\)", _rg_lru_arguments, param=lambda: array((3,))),
    refusal("rg_lru", "positions", r"`positions` expected \(3,\)", _rg_lru_arguments, positions=lambda: int32_array(0)),
    refusal(
        "rg_lru",
        "state-gradient",
        "`state` takes part in no gradient",
        _rg_lru_arguments,
        UsageError,
        state=lambda: array((1, 4)),
        x=lambda: leaf(3, 4),
    ),
]

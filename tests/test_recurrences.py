"""Recurrences over random shapes: against steps in float64, whole and in pieces, packed and alone, with NaN ahead."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import _kernels as k
from microgpt import ops
from microgpt.errors import UsageError
from microgpt.tensors import Tensor

from .opcases import RULES, assert_close
from .opcases.bounds import U32
from .opcases.delta import memory
from .opcases.rwkv import mixing
from .opcases.ssd import recurrence, spread, times

Numbers = np.ndarray[Any, Any]
Inputs = dict[str, Any]
LONG = 4097
LENGTHS = (1, 2, 3, 4, 5, 17, 63, 64, 65, 100, 129, 200)


def ssd_steps(i: Inputs, o: Any) -> Numbers:
    d, heads = times(i, o, 0.0)[0], i["x"].shape[1]
    b, c = spread(i["b"], heads), spread(i["c"], heads)
    y = np.empty_like(i["x"])
    for begin, end in itertools.pairwise(i["q_start"]):
        state = np.zeros((*i["x"].shape[1:], b.shape[2]))
        for t in range(begin, end):
            state = np.exp(d[t] * i["a"])[:, None, None] * state
            state += (d[t][:, None] * i["x"][t])[:, :, None] * b[t][:, None, :]
            y[t] = (state * c[t][:, None, :]).sum(2) + (i["skip"][:, None] * i["x"][t] if "skip" in i else 0.0)
    return y


def delta_steps(i: Inputs, o: Any) -> Numbers:
    q, keys, v = i["q"], i["keys"], i["values"]
    if o.get("normalize"):
        q, keys = (x / np.sqrt((x * x).sum(2, keepdims=True) + 1e-6) for x in (q, keys))
    q, keys = (np.repeat(x, v.shape[1] // x.shape[1], 1) for x in (q / np.sqrt(q.shape[2]), keys))
    y = np.empty_like(v)
    for begin, end in itertools.pairwise(i["q_start"]):
        state = np.zeros((v.shape[1], q.shape[2], v.shape[2]))
        for t in range(begin, end):
            state = np.exp(i["g"][t])[:, None, None] * state
            x = i["beta"][t][:, None] * (v[t] - np.einsum("hkv,hk->hv", state, keys[t]))
            state = state + keys[t][:, :, None] * x[:, None, :]
            y[t] = np.einsum("hkv,hk->hv", state, q[t])
    return y


def ssd_inputs(rng: np.random.Generator, rows: list[int]) -> tuple[Inputs, dict[str, Any]]:
    groups = int(rng.choice([1, 1, 2, 3]))
    heads, width, inner = groups * int(rng.integers(1, 7)), int(rng.integers(1, 40)), int(rng.integers(1, 40))
    made = recurrence(rows, heads, width, groups, inner, bool(rng.integers(2)), float(rng.choice([0.05, 1.0, 20.0])))
    return made(rng), {"softplus": bool(rng.integers(2))}


def delta_inputs(rng: np.random.Generator, rows: list[int]) -> tuple[Inputs, dict[str, Any]]:
    groups, normalize = int(rng.integers(1, 4)), bool(rng.integers(2))
    width, value_width = int(rng.integers(1, 40)), int(rng.integers(1, 40))
    fast = float(rng.choice([0.0, 0.05, 1.0, 20.0]))
    made = memory(rows, groups * int(rng.integers(1, 4)), groups, width, value_width, fast, unit=not normalize)
    return made(rng), {"normalize": normalize}


def rwkv_steps(i: Inputs, o: Any) -> Numbers:
    r, w, keys, v, a, b = (i[name] for name in ("r", "w", "keys", "values", "a", "b"))
    y = np.empty_like(v)
    for begin, end in itertools.pairwise(i["q_start"]):
        state = np.zeros((v.shape[1], r.shape[2], v.shape[2]))
        for t in range(begin, end):
            seen = np.einsum("hkv,hk->hv", state, a[t])
            state = (
                w[t][:, :, None] * state + b[t][:, :, None] * seen[:, None, :] + keys[t][:, :, None] * v[t][:, None, :]
            )
            y[t] = np.einsum("hkv,hk->hv", state, r[t])
    return y


def rwkv_inputs(rng: np.random.Generator, rows: list[int]) -> tuple[Inputs, dict[str, Any]]:
    made = mixing(rows, int(rng.integers(1, 5)), int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    return made(rng), {}


OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...]]] = {
    "ssd": (ssd_inputs, ssd_steps, ("x", "dt", "b", "c")),
    "gated_delta": (delta_inputs, delta_steps, ("q", "keys", "values", "g", "beta")),
    "rwkv7": (rwkv_inputs, rwkv_steps, ("r", "w", "keys", "values", "a", "b")),
}
STRIDE = {"ssd": 64, "gated_delta": 64, "rwkv7": 32}  # tokens from one kept state to the next
every_op = pytest.mark.parametrize("name", OPS)


def inputs_of(name: str, seed: int, rows: list[int]) -> tuple[Inputs, dict[str, Any]]:
    """Random inputs whose numbers are float32."""
    made, options = OPS[name][0](np.random.default_rng(seed), rows)
    rounded = {key: x.astype(np.float32).astype(np.float64) if x.dtype == np.float64 else x for key, x in made.items()}
    if options.get("softplus") is False:  # time steps are positive
        rounded["dt"] = np.abs(rounded["dt"]) + 3.0 if "dt_bias" in rounded else rounded["dt"]
    return rounded, options


def call(name: str, i: Inputs, options: dict[str, Any], dtype: str = "float32", **more: Any) -> Numbers:
    placed = {key: k.from_numpy(x.astype(dtype) if x.dtype == np.float64 else x) for key, x in i.items()}
    y: Numbers = getattr(ops, name)(**placed, **options, **more).numpy().copy()
    return y


def state_of(name: str, i: Inputs, sequences: int) -> k.Array:
    if name == "rwkv7":
        shape = (*i["r"].shape[1:], i["values"].shape[2])
    elif name == "ssd":
        shape = (*i["x"].shape[1:], i["b"].shape[2])
    else:
        shape = (i["values"].shape[1], i["q"].shape[2], i["values"].shape[2])
    return k.from_numpy(np.zeros((sequences, *shape), np.float32))


def part(name: str, i: Inputs, rows: slice) -> Inputs:
    """The rows of one sequence."""
    cut = {key: i[key][rows] for key in OPS[name][2]}
    return {**i, **cut, "q_start": np.array([0, rows.stop - rows.start], np.int32)}


def check(name: str, seed: int, rows: list[int]) -> None:
    i, options = inputs_of(name, seed, rows)
    want = OPS[name][1](i, options)
    assert_close(f"{name} {rows}", call(name, i, options), want, RULES[name].forward(i, options, want, U32))


@every_op
@given(seed=st.integers(0, 2**32), rows=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3))
def test_steps_in_float64(name: str, seed: int, rows: list[int]) -> None:
    check(name, seed, rows)


@every_op
def test_long_sequences(name: str) -> None:
    check(name, 0, [LONG])
    check(name, 1, [1, LONG])


@pytest.mark.soak
@every_op
@settings(max_examples=1000)
@given(seed=st.integers(0, 2**32), rows=st.lists(st.sampled_from((*LENGTHS * 4, LONG)), min_size=1, max_size=3))
def test_steps_in_float64_soak(name: str, seed: int, rows: list[int]) -> None:
    check(name, seed, rows)


@every_op
@given(seed=st.integers(0, 2**32), rows=st.lists(st.sampled_from((0, *LENGTHS)), min_size=2, max_size=4))
def test_packed_sequences_are_the_separate_ones(name: str, seed: int, rows: list[int]) -> None:
    """With and without states, in bits; a state of a sequence without rows stays."""
    i, options = inputs_of(name, seed, rows)
    first = state_of(name, i, len(rows))
    first.copy_from(np.random.default_rng(seed).standard_normal(first.shape).astype(np.float32))
    for with_state in (False, True):
        states = k.from_numpy(first.numpy().copy()) if with_state else None
        together = call(name, i, options, **({"state": states} if with_state else {}))
        at = 0
        for s, n in enumerate(rows):
            if n:
                state = k.from_numpy(first.numpy()[s : s + 1].copy()) if with_state else None
                alone = call(
                    name, part(name, i, slice(at, at + n)), options, **({"state": state} if with_state else {})
                )
                assert alone.tobytes() == together[at : at + n].tobytes()
                if state is not None and states is not None:
                    assert state.numpy().tobytes() == states.numpy()[s : s + 1].tobytes()
            elif states is not None:
                assert states.numpy()[s].tobytes() == first.numpy()[s].tobytes()
            at += n


@every_op
@given(seed=st.integers(0, 2**32), length=st.sampled_from((5, 64, 65, 131)), piece=st.sampled_from((1, 3, 4, 7, 64)))
def test_pieces_are_the_whole(name: str, seed: int, length: int, piece: int) -> None:
    """With the state carried over: within the bounds of both, as the roundings differ."""
    i, options = inputs_of(name, seed, [length])
    state, pieces = state_of(name, i, 1), []
    for at in range(0, length, piece):
        pieces.append(call(name, part(name, i, slice(at, min(length, at + piece))), options, state=state))
    if name == "rwkv7":  # token by token
        assert np.concatenate(pieces).tobytes() == call(name, i, options).tobytes()
    want = OPS[name][1](i, options)
    # Each piece begins with a state that was rounded once more.
    assert_close(name, np.concatenate(pieces), want, 2 * RULES[name].forward(i, options, want, U32))


@every_op
@pytest.mark.parametrize("at", [1, 15, 63, 64, 100])
def test_the_future_does_not_reach_the_past(name: str, at: int) -> None:
    """Not even as NaN; and beginnings have the same bits however long the rest is."""
    i, options = inputs_of(name, 3, [130])
    before = call(name, i, options)
    assert call(name, part(name, i, slice(0, at)), options).tobytes() == before[:at].tobytes()
    for key in OPS[name][2]:
        changed = {**i, key: i[key].copy()}
        changed[key][at:] = np.nan
        after = call(name, changed, options)
        assert after[:at].tobytes() == before[:at].tobytes()
        assert np.isnan(after[at:]).all()


@every_op
def test_states_are_not_differentiated(name: str) -> None:
    i, options = inputs_of(name, 5, [7])
    leaf = OPS[name][2][0]
    placed = {key: k.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x) for key, x in i.items()}
    placed[leaf] = Tensor(i[leaf].astype(np.float32), requires_grad=True)
    with pytest.raises(UsageError, match="`state` takes part in no gradient"):
        getattr(ops, name)(**placed, **options, state=state_of(name, i, 1))


@every_op
def test_kept_states_are_what_the_documentation_says(name: str) -> None:
    """One for each 64 or 32 tokens, and one a sequence."""
    i, options = inputs_of(name, 6, [300, 5])
    placed = {key: k.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x) for key, x in i.items()}
    tensors = getattr(ops, name).tensors
    arguments = [placed.pop(key, None) for key in tensors]
    saved = getattr(ops, name).forward(*arguments, **placed, **options, needs=[True] * len(tensors))[1]
    assert saved[-2].shape[0] == 305 // STRIDE[name] + 2
    assert saved[-2].shape[1:] == state_of(name, i, 1).shape[1:]

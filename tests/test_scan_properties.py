"""Scans over random shapes: beside float64 step by step, whole and in pieces, alone and packed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from microgpt import _kernels as k
from microgpt import no_grad
from microgpt.ops import OPS
from microgpt.tensors import Tensor, numpy_dtype, wide

from .opcases import RULES, Case, assert_close, run
from .opcases.bounds import U32
from .opcases.recurrences import _recurrence, _rg_lru
from .opcases.scan import _conv, _scan

Numbers = npt.NDArray[Any]
EDGES = (1, 2, 31, 32, 33, 63, 64, 65, 127, 129)


def lengths(rng: np.random.Generator, tokens: int) -> list[int]:
    """Up to five sequences of so many rows together, some of them empty."""
    cuts = np.sort(rng.integers(0, tokens + 1, rng.integers(0, 5)))
    return [int(n) for n in np.diff([0, *cuts, tokens])]


def size(rng: np.random.Generator, most: int) -> int:
    """A number up to `most`, often one around a vector or a block."""
    return min(most, int(rng.choice(EDGES)) if rng.random() < 0.5 else int(rng.integers(1, most + 1)))


def random_case(seed: int) -> Case:
    """A call of some op. Every 50th has 4,097 rows, every 25th one."""
    rng = np.random.default_rng(seed)
    tokens = 4097 if seed % 50 == 0 else 1 if seed % 25 == 0 else size(rng, 130)
    rows = lengths(rng, tokens)
    channels = size(rng, 10 if tokens > 200 else 130)
    kind = seed % 4 if tokens < 200 else 0 if seed % 100 == 0 else 3
    if kind == 0:
        fused = bool(rng.integers(2))
        make = _scan(rows, channels, size(rng, 4 if tokens > 200 else 33), fused)
        return Case("selective_scan", f"random{seed}", make, {"softplus": fused})
    if kind == 1:
        act = "silu" if rng.integers(2) else "none"
        make = _conv(rows, channels, int(rng.integers(1, 9)), bool(rng.integers(2)))
        return Case("causal_conv1d", f"random{seed}", make, {"act": act})
    if kind == 2:
        return Case("linear_recurrence", f"random{seed}", _recurrence(rows, channels))
    return Case("rg_lru", f"random{seed}", _rg_lru(rows, channels, int(rng.integers(0, 3))))


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.soak)])
def test_random_shapes_beside_float64_step_by_step(count: int) -> None:
    for seed in range(count):
        case = random_case(seed)
        inputs, rule = case.inputs(), RULES[case.op]
        want, gradients = run(case, inputs, "float64")
        y, got = run(case, inputs, "float32")
        assert_close(str(case), y, want, rule.forward(inputs, case.options, want, U32))
        bounds = rule.gradients(inputs, case.options, want, case.gradient(want.shape), U32)
        for name, gradient in gradients.items():
            assert_close(f"{case} d{name}", got[name], gradient, bounds[name])


# op -> its case maker for given lengths, and the shape of its state for (sequences, channels)
MAKERS: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[int], tuple[int, ...]]]] = {
    "selective_scan": (lambda rows: _scan(rows, 70, 5), {"softplus": True}, lambda s: (s, 5, 70)),
    "causal_conv1d": (lambda rows: _conv(rows, 70, 4), {"act": "silu"}, lambda s: (s, 3, 70)),
    "linear_recurrence": (lambda rows: _recurrence(rows, 70), {}, lambda s: (s, 70)),
    "rg_lru": (lambda rows: _rg_lru(rows, 70), {}, lambda s: (s, 70)),
}


def arrays_of(op: str, rows: list[int], dtype: str) -> dict[str, Numbers]:
    made = MAKERS[op][0](rows)(np.random.default_rng(7))
    return {
        name: x if x.dtype == np.int32 else x.astype(np.float32).astype(numpy_dtype(dtype)) for name, x in made.items()
    }


def call(op: str, inputs: dict[str, Numbers], state: k.Array | None = None) -> Numbers:
    placed = {name: k.from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()}
    y: Numbers = OPS.get(op)(**placed, **MAKERS[op][1], **({} if state is None else {"state": state})).numpy()
    return y


def part(inputs: dict[str, Numbers], tokens: int, pieces: list[slice]) -> dict[str, Numbers]:
    """The rows of one piece of each sequence."""
    chosen = np.concatenate([np.arange(p.start, p.stop) for p in pieces]).astype(np.int64)
    made = {name: x[chosen] if name != "q_start" and x.shape[:1] == (tokens,) else x for name, x in inputs.items()}
    return {**made, "q_start": np.cumsum([0, *(p.stop - p.start for p in pieces)]).astype(np.int32)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("op", MAKERS)
def test_pieces_with_their_states_give_the_bits_of_the_whole(op: str, dtype: str) -> None:
    """Sequences of 101, 0, 64 and 3 rows, in pieces of 1, 2, 7 and 33 rows and all at once."""
    rows = [101, 0, 64, 3]
    inputs, tokens = arrays_of(op, rows, dtype), sum(rows)
    whole = call(op, inputs)
    starts = np.cumsum([0, *rows])
    for step in (1, 2, 7, 33, 200):
        state = k.from_numpy(np.zeros(MAKERS[op][2](len(rows)), numpy_dtype(wide(dtype))))
        for at in range(0, max(rows), step):
            pieces = [slice(s + min(at, n), s + min(at + step, n)) for s, n in zip(starts, rows, strict=False)]
            y = call(op, part(inputs, tokens, pieces), state)
            want = np.concatenate([whole[p] for p in pieces])
            assert y.tobytes() == want.tobytes(), f"{op}: rows from {at} on in steps of {step}"
        assert not state.numpy()[1].any(), "the state of a sequence without rows changed"
        if step == 1:
            first = state.numpy().copy()
        assert state.numpy().tobytes() == first.tobytes()


@pytest.mark.parametrize("op", MAKERS)
def test_packed_sequences_are_the_separate_ones(op: str) -> None:
    rows = [33, 1, 0, 64, 5]
    inputs = arrays_of(op, rows, "float32")
    whole, starts = call(op, inputs), np.cumsum([0, *rows])
    for s, n in zip(starts, rows, strict=False):
        alone = call(op, part(inputs, sum(rows), [slice(s, s + n)])) if n else whole[:0]
        assert alone.tobytes() == whole[s : s + n].tobytes()


@pytest.mark.parametrize("op", MAKERS)
def test_a_later_row_changes_no_earlier_one(op: str) -> None:
    inputs = arrays_of(op, [50], "float32")
    before = call(op, inputs)
    for x in inputs.values():
        if x.dtype == np.float32 and x.shape[0] == 50:
            x[20:] = np.nan
    after = call(op, inputs)
    assert after[:20].tobytes() == before[:20].tobytes()
    assert np.isnan(after[20:]).any()


def test_a_scan_of_extreme_steps() -> None:
    """Decays beyond the smallest float are 0, and steps that are infinite or NaN show where they stand."""
    u, one = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    delta = np.array([[1.0, 1.0, 1.0], [1e4, 1.0, 1.0], [1.0, np.nan, 1.0], [1.0, 1.0, 1e30]], np.float32)
    a = np.full((3, 1), -1.0, np.float32)
    y = OPS.get("selective_scan")(u, delta, a, one, one, q_start=k.from_numpy(np.array([0, 4], np.int32))).numpy()
    assert y[1, 0] == 1e4  # the first row's state is forgotten
    assert np.isnan(y[2:, 1]).all() and not np.isnan(y[:2, 1]).any()
    assert y[3, 2] == np.float32(1e30)


def test_states_are_not_for_training() -> None:
    """Within no_grad() a leaf is no obstacle, and the state moves on."""
    inputs = {name: k.from_numpy(x) for name, x in arrays_of("linear_recurrence", [3], "float32").items()}
    x = Tensor(inputs.pop("x").numpy(), requires_grad=True)
    state = k.from_numpy(np.zeros((1, 70), np.float32))
    with no_grad():
        y = OPS.get("linear_recurrence")(x, **inputs, state=state)
    assert state.numpy()[0].tobytes() == y.numpy()[2].tobytes()

"""Calls that are wrong in ways that only the core can notice: at replay, across threads, in numbers that change."""

from __future__ import annotations

import collections
import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt import ops
from microgpt.errors import ConfigError, DTypeError, MicrogptError, RecordingError, ShapeError, UsageError
from microgpt.nn.linear import Linear
from microgpt.optim import AdamW, Group, Optimizer, Schedule, decay_groups
from microgpt.program import Program
from microgpt.tensors import Tensor, zeros

Array = k.Array


def ones(*shape: int) -> Array:
    return k.from_numpy(np.ones(shape, np.float32))


def ints(*values: int) -> Array:
    return k.from_numpy(np.array(values, np.int32))


# -- indices that change between replays -----------------------------------------------------------------------------
def _attention(start: Array) -> Any:
    return lambda: ops.attention(Tensor(ones(4, 2, 8)), ones(4, 2, 8), ones(4, 2, 8), start, ints(0, 2), ints(2, 2))


# what it records, what the index array holds, what it may not hold, what the error says
REPLAYED: dict[str, tuple[Callable[[Array], Any], list[int], list[int], str]] = {
    "embedding": (
        lambda ids: ops.embedding(ones(4, 8), ids),
        [0, 3],
        [0, 4],
        r"`ids` must be in \[0, 4\), got 4 at position 1",
    ),
    "embedding negative": (lambda ids: ops.embedding(ones(4, 8), ids), [0, 3], [-1, 0], r"`ids` must be in .*got -1"),
    "cross_entropy": (
        lambda ids: ops.cross_entropy(Tensor(ones(2, 4)), ids),
        [0, 3],
        [0, 10**9],
        r"`targets` must be in",
    ),
    "put_rows": (lambda ids: k.put_rows(ones(2, 8), ids, ones(4, 8)), [0, 3], [0, 4], r"put_rows: `ids` must be in"),
    "kv_put": (
        lambda ids: k.kv_put(ones(2, 1, 8), ids, ones(4, 8), 1, 8, None),
        [0, 3],
        [0, -5],
        r"kv_put: `ids` must be in",
    ),
    "gather_rows": (
        lambda ids: k.gather_rows(ones(2, 8), ids, ones(2, 8), 1, 8),
        [0, 1],
        [0, 2],
        r"`order` must be in",
    ),
    "attention": (lambda ids: _attention(ids)(), [0, 2, 4], [0, 3, 4], r"sequence 0 has more queries than keys"),
    "grouped_linear": (
        lambda ids: k.grouped_linear(ones(4, 8), ones(2, 8, 8), ones(4, 8), ids, 8, 8),
        [0, 1, 4],
        [0, 5, 4],
        r"`offsets` falls at expert 1",
    ),
    "linear_recurrence": (
        lambda ids: ops.linear_recurrence(Tensor(ones(4, 8)), Tensor(ones(4, 8)), q_start=ids),
        [0, 1, 4],
        [0, 1, 5],
        r"`q_start` must run from 0 to the 4 rows",
    ),
}


@pytest.mark.parametrize("name", list(REPLAYED))
def test_indices_are_looked_at_before_each_replay(name: str) -> None:
    record, good, bad, text = REPLAYED[name]
    ids = ints(*good)
    program = Program(lambda: record(ids))
    program()
    program()
    ids.copy_from(np.array(bad, np.int32))
    with pytest.raises(ShapeError, match=text):
        program()
    ids.copy_from(np.array(good, np.int32))
    program()


def test_indices_that_a_recording_makes_are_its_own() -> None:
    """What its kernels write is valid when it is read, whatever lies there before a replay."""
    logits, out = ones(2, 4), k.from_numpy(np.zeros(2, np.int32))

    def record() -> None:
        k.route(logits, out, 4, 1, 0)
        ops.embedding(ones(4, 8), out)

    program = Program(record)
    program()
    out.copy_from(np.array([7, 7], np.int32))
    program()
    assert out.numpy().max() < 4


# -- programs and threads ----------------------------------------------------------------------------------------------
def in_thread(body: Callable[[], None]) -> BaseException | None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:  # it is looked at by the test
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught[0] if caught else None


def test_a_program_is_recorded_by_one_thread() -> None:
    program, x = k.Program(), ones(4)
    program.begin()
    for what in (program.begin, program.abandon, program.end, program.run):
        assert isinstance(in_thread(what), RecordingError)
    k.fill(x, 2.0)
    program.end()
    assert len(program) == 1
    program.run()
    program.abandon()
    with pytest.raises(RecordingError, match="has not been recorded"):
        program.run()


def test_a_program_that_nobody_holds_is_recorded_to_its_end() -> None:
    box, begun, dropped = [k.Program()], threading.Event(), threading.Event()

    def record() -> None:
        box[0].begin()
        begun.set()
        dropped.wait()
        for _ in range(10):
            k.fill(ones(4), 1.0)

    thread = threading.Thread(target=record)
    thread.start()
    begun.wait()
    box.clear()
    others = [k.Program() for _ in range(3)]
    dropped.set()
    thread.join()
    assert [len(each) for each in others] == [0, 0, 0]
    assert not k.recording()


# -- numbers, shapes, memory -------------------------------------------------------------------------------------------
def test_a_shape_may_be_a_tuple_of_any_class() -> None:
    Pair = collections.namedtuple("Pair", "rows columns")
    assert k.empty(Pair(2, 3)).view(Pair(3, 2)).shape == (3, 2)
    assert zeros(3).shape == (3,)  # type: ignore[arg-type]


def test_a_list_of_sizes_that_changes_while_it_is_read() -> None:
    sizes: list[Any] = []

    class Clears:
        def __index__(self) -> int:
            sizes.clear()
            return 4

    sizes += [Clears(), 1, 1]
    x, y = ones(4), ones(4)
    k.copy(x, y, sizes, [1, 1, 1])
    assert sizes == []


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "grouped_weight without b": (
        lambda: k.grouped_weight(ones(3, 4), None, ones(0), ints(0, 3), 4, 0),
        ShapeError,
        "`out` needs 4 elements",
    ),
    "grouped_linear, offsets in bytes": (
        lambda: k.grouped_linear(ones(0), ones(0), ones(0), k.from_numpy(np.zeros(64, np.uint8)), 0, 0),
        DTypeError,
        "`offsets` must be int32",
    ),
    "attention, v of another world": (
        lambda: k.attention(ones(4), ones(4), ones(4), ones(4), ints(0, 4), ints(0), ints(4), 1, 1, 1, 2**62, 1.0),
        ShapeError,
        "overflow",
    ),
    "act of 64 bits": (
        lambda: k.act(ones(4), ones(4), 2**32 + 3),
        UsageError,
        "act: `act` expected an int of 32 bits, got 4294967299",
    ),
    "binary of 64 bits": (
        lambda: k.binary(ones(2), ones(2), ones(2), 2**32 + 1),
        UsageError,
        "binary: `op` expected an int of 32 bits",
    ),
    "copy to one element": (
        lambda: k.copy(ones(1), ones(8), [8], [0], to_x=True, accumulate=True),
        UsageError,
        "destination would share memory",
    ),
    "copy to rows that overlap": (
        lambda: k.copy(ones(8), ones(2, 4), [2, 4], [3, 1], to_x=True),
        UsageError,
        "destination would share memory",
    ),
    "a batch on one product": (
        lambda: k.gemm(ones(16), ones(16), ones(4), 2, 2, 2, batch=2, stride_a=4, stride_b=4),
        UsageError,
        "share memory in `out`",
    ),
    "launch_nothing": (lambda: k.launch_nothing(2**62), UsageError, "`shares` must be in 0..32767"),
    "layer_norm": (
        lambda: ops.layer_norm(Tensor(ones(2, 4)), None, None, float("nan")),
        UsageError,
        "`eps` must be finite",
    ),
    "rms_norm": (lambda: ops.rms_norm(Tensor(ones(2, 4)), None, -1.0), UsageError, "`eps` must be at least 0"),
    "softmax": (lambda: ops.softmax(Tensor(ones(2, 4)), float("inf")), UsageError, "`scale` must be finite"),
    "alibi": (
        lambda: ops.attention(
            Tensor(ones(4, 2, 8)), ones(4, 2, 8), ones(4, 2, 8), ints(0, 4), ints(0), ints(4), alibi=ones(7)
        ),
        ShapeError,
        r"`alibi` expected \(2,\), got \(7,\)",
    ),
    "index None": (lambda: Tensor(ones(4))[None], ShapeError, "slice: `index` expected whole numbers"),  # type: ignore[index]
    "index float": (lambda: Tensor(ones(4))[1.0], ShapeError, "slice: `index` expected whole numbers"),  # type: ignore[index]
    "index bool": (lambda: Tensor(ones(4))[True], ShapeError, "slice: `index` expected whole numbers"),
    "index slice of floats": (lambda: Tensor(ones(4))[1.5:], ShapeError, "slice: `index` expected whole numbers"),  # type: ignore[misc]
    "axis": (lambda: Tensor(ones(4, 2)).sum((0, 1)), ShapeError, r"sum: `axis` expected a whole number, got \(0, 1\)"),  # type: ignore[arg-type]
    "plus an array": (
        lambda: Tensor(ones(4)) + np.ones(4, np.float32),
        DTypeError,
        "a Tensor or a number beside a Tensor, got ndarray",
    ),  # type: ignore[operator]
    "an array plus": (
        lambda: np.ones(4, np.float32) + Tensor(ones(4)),
        DTypeError,
        "a Tensor or a number beside a Tensor, got ndarray",
    ),
    "plus text": (lambda: Tensor(ones(4)) + "a", DTypeError, "a Tensor or a number beside a Tensor, got str"),  # type: ignore[operator]
    "schedule": (lambda: Schedule("cosine", 10)(-5), UsageError, "a step of at least 0, got -5"),
    "group": (lambda: Group("*", float("nan")), ConfigError, "weight_decay: expected a finite number"),
    "max_norm": (
        lambda: Optimizer(Linear(4, 3), AdamW(), decay_groups(0.1), float("nan")),
        ConfigError,
        "max_norm: expected at least 0",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_calls_say_so(name: str) -> None:
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call()


def test_an_index_may_be_numpys_or_an_ellipsis() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    t = Tensor(x)
    assert np.array_equal(t[np.int64(1)].numpy(), x[1])
    for index in (..., (..., 1), (0, ..., 2), (slice(0, 1), ...), (1, 2, 3, ...)):
        assert np.array_equal(t[index].numpy(), x[index])  # type: ignore[index]


def test_a_copy_from_a_view_of_itself() -> None:
    n = 1 << 12
    array = k.from_numpy(np.arange(2 * n, dtype=np.float32))
    for target, source in ((1, 0), (0, 1), (64, 0), (1000, 0)):
        expected = array.numpy().copy()
        expected[target : target + n] = expected[source : source + n].copy()
        array.view((n,), target).copy_from(array.view((n,), source).numpy())
        assert np.array_equal(array.numpy(), expected)


# -- optimizers
@pytest.mark.parametrize(
    "step, lr", [(0, 0.1), (-1, 0.1), (2**63, 0.1), (1, float("nan")), (1, float("inf")), (1, 1e300)]
)
def test_an_optimizer_is_fed_numbers_that_ruin_nothing(step: int, lr: float) -> None:
    optimizer = Optimizer(Linear(4, 3), AdamW(), decay_groups(0.1))
    with pytest.raises(UsageError, match=r"feed: `step` expected a number from 1|feed: `lr` expected a finite float32"):
        optimizer.feed(step, lr)


def test_an_optimizer_that_lost_its_parameters_is_not_copied() -> None:
    model = Linear(4, 3)
    first = Optimizer(model, AdamW(), decay_groups(0.1))
    second = Optimizer(model, AdamW(), decay_groups(0.1))
    with pytest.raises(UsageError, match="was given to another optimizer"):
        copy.deepcopy((model, second, first))
    copy.deepcopy((model, second))
    model.weight.data = ones(4, 3)
    for use in (second.launch, lambda: copy.deepcopy((model, second))):
        with pytest.raises(UsageError, match="was given other memory as its `data`"):
            use()
    model = Linear(4, 3)
    third = Optimizer(model, AdamW(), decay_groups(0.1))
    model.weight.freeze()
    with pytest.raises(UsageError, match="was frozen"):
        copy.deepcopy((model, third))


def test_the_public_names_are_what_they_are_in_any_order() -> None:
    for order in ("Tensor, tensor", "tensor, Tensor", "ops, tensor", "load, tensor", "LanguageModel, tensor"):
        program = f"from microgpt import {order}; print(tensor([1.0, 2.0]))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "Tensor((2,), float32)\n"
    assert callable(microgpt.tensor) and issubclass(ShapeError, MicrogptError)


def test_dropping_one_program_leaves_the_one_that_is_recorded() -> None:
    first, other = k.Program(), k.Program()
    first.begin()
    other.abandon()
    k.fill(ones(4), 1.0)
    first.end()
    assert len(first) == 1


def test_a_program_does_not_abandon_itself_while_it_runs() -> None:
    program = k.Program()
    errors: list[str] = []

    def body() -> None:
        with pytest.raises(RecordingError) as caught:
            program.abandon()
        errors.append(str(caught.value))

    program.begin()
    k.launch_host("abandons", body)
    program.end()
    program.run()
    program.run()
    assert [text.split(";")[0] for text in errors] == [
        "abandon: another thread is recording this program, or this one is in its callback",
        *["abandon: the program is already running"] * 2,
    ]

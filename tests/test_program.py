"""Record and replay: the same bits as eager execution, and an error where a recording could not keep its promise."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import ops
from microgpt.autograd import no_grad
from microgpt.errors import DTypeError, RecordingError, ShapeError
from microgpt.program import Program
from microgpt.tensors import Tensor

Numbers = np.ndarray[Any, Any]
VOCAB, WIDTH, TOKENS = 37, 24, 19


def normal(*shape: int, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Small:
    """A model of a few layers with its buffers: what a training step is made of."""

    def __init__(self) -> None:
        self.table = Tensor(normal(VOCAB, WIDTH, seed=1), requires_grad=True)
        self.weight = Tensor(normal(WIDTH, WIDTH, seed=2) / 5, requires_grad=True)
        self.bias = Tensor(normal(WIDTH, seed=3), requires_grad=True)
        self.scale = Tensor(normal(WIDTH, seed=4), requires_grad=True)
        self.ids, self.targets = k.empty((TOKENS,), "int32"), k.empty((TOKENS,), "int32")
        self.step, self.rate = k.empty((1,), "int64"), k.empty((1,), "float32")

    @property
    def parameters(self) -> list[Tensor]:
        return [self.table, self.weight, self.bias, self.scale]

    def feed(self, step: int) -> None:
        rng = np.random.default_rng(step)
        self.ids.copy_from(rng.integers(0, VOCAB, TOKENS).astype(np.int32))
        self.targets.copy_from(rng.integers(-1, VOCAB, TOKENS).astype(np.int32))
        self.step.copy_from(np.array([step], np.int64))
        self.rate.copy_from(np.array([-0.1 / (step + 1)], np.float32))

    def train(self) -> Tensor:
        for parameter in self.parameters:
            parameter.zero_grad()
        x = ops.embedding(self.table, self.ids)
        x = ops.linear(ops.rms_norm(x, self.scale), self.weight, self.bias, x, act="gelu")
        x = ops.dropout(x, 0.2, self.step, 9) * Tensor(np.float32([1.25]))  # a constant made while recording
        loss = ops.linear_cross_entropy(x, self.table, self.targets)
        loss.backward()
        for parameter in self.parameters:
            k.axpy(parameter.slot.array, parameter.data, 1.0, 1.0, self.rate)
        return loss


def state(model: Small) -> list[bytes]:
    return [each.tobytes() for parameter in model.parameters for each in (parameter.numpy(), parameter.grad)]


def run_steps(model: Small, call: Callable[[], Tensor], steps: int) -> list[Any]:
    """Loss, parameters and gradients after each step, as bytes."""
    trace = []
    for step in range(steps):
        model.feed(step)
        trace.append((call().numpy().tobytes(), *state(model)))
    return trace


def test_replay_is_eager_bit_for_bit() -> None:
    eager, recorded = Small(), Small()
    program = Program(recorded.train)
    assert run_steps(eager, eager.train, 6) == run_steps(recorded, program, 6)
    assert len(program) > 10
    assert program.host_nodes == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_replay_does_not_depend_on_threads(threads: int) -> None:
    x = k.from_numpy(normal(300, 129))
    weight = k.from_numpy(normal(129, 129) / 11)
    program = Program(lambda: ops.softmax(ops.linear(ops.linear(x, weight, act="silu"), weight)))
    want = program().numpy().tobytes()
    k.set_num_threads(threads)
    assert program().numpy().tobytes() == want


def test_replay_follows_its_buffers() -> None:
    x = k.empty((3,), "float32")
    program = Program(lambda: Tensor(x) * 2.0 + 1.0)
    for values in ([1, 2, 3], [4, 5, 6], [-1, 0, np.inf]):
        x.copy_from(np.array(values, np.float32))
        result = program()
        np.testing.assert_array_equal(result.numpy(), np.array(values, np.float32) * 2 + 1)
    assert program() is result


def test_replay_switched_off_runs_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROGPT_REPLAY", "0")
    calls: list[int] = []
    program = Program(lambda: calls.append(1) or Tensor([1.0]) + Tensor([2.0]))
    values = [program().item() for _ in range(3)]  # item() works: nothing is being recorded
    assert (values, len(calls), len(program), program.dump()) == ([3.0] * 3, 3, 0, "")
    eager, off = Small(), Small()
    assert run_steps(eager, eager.train, 3) == run_steps(off, Program(off.train), 3)


@pytest.mark.parametrize(
    ("touch", "what"),
    [
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.sum().item(), "item"),
        (lambda x: x.data.copy_from(np.zeros(3, np.float32)), "copy_from"),
        (lambda x: x.backward(np.ones(3, np.float32)) or x.grad, "numpy"),
    ],
    ids=["numpy", "item", "copy_from", "grad"],
)
def test_touching_data_while_recording_is_refused(touch: Callable[[Tensor], Any], what: str) -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    with pytest.raises(RecordingError, match=rf"{what}\(\): data cannot be touched .* while a program is recorded"):
        Program(lambda: touch(x))()
    assert not k.recording()
    assert x.numpy().tolist() == [1, 1, 1]


def test_constants_made_while_recording_survive() -> None:
    x = k.from_numpy(np.ones(64, np.float32))

    def fn() -> Tensor:
        a = Tensor(np.full(64, 3.0, np.float32))
        y = Tensor(x) * a
        del a
        return y + Tensor(np.full(64, 0.5, np.float32))

    program = Program(fn)
    program()
    for _ in range(50):  # memory that was given back would be handed out again here
        k.fill(k.empty((64,), "float32"), 99.0)
        k.from_numpy(np.full(64, 77.0, np.float32))
    gc.collect()
    assert set(program().numpy().tolist()) == {3.5}


def test_arrays_from_outside_live_as_long_as_the_program() -> None:
    x = k.from_numpy(np.full(64, 2.0, np.float32))
    program = Program(lambda x=x: Tensor(x) + 1.0)
    program()
    program._fn = lambda: None  # the closure no longer holds x
    del x
    gc.collect()
    for _ in range(50):
        k.fill(k.empty((64,), "float32"), 99.0)
    assert set(program().numpy().tolist()) == {3.0}


# -- errors leave the thread usable ----------------------------------------
def test_nested_recording_is_refused() -> None:
    inner = Program(lambda: Tensor([1.0]) + 1.0)
    with pytest.raises(RecordingError, match="already recording"):
        Program(inner)()
    assert not k.recording()
    assert inner().item() == 2.0


def test_replaying_while_recording_is_refused() -> None:
    inner = Program(lambda: Tensor([1.0]) + 1.0)
    inner()
    with pytest.raises(RecordingError, match="replayed while this thread is recording"):
        Program(inner)()
    assert inner().item() == 2.0


def test_an_exception_while_recording_leaves_the_thread_usable() -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    attempts: list[int] = []

    def fn() -> Tensor:
        attempts.append(1)
        y = x * 2.0
        if len(attempts) == 1:
            raise KeyError("mine")
        return y

    program = Program(fn)
    with pytest.raises(KeyError, match="mine"):
        program()
    assert not k.recording()
    assert len(program) == 0
    assert (x * 3.0).numpy().tolist() == [3, 3, 3]
    assert program().numpy().tolist() == [2, 2, 2]  # recorded anew
    assert program().numpy().tolist() == [2, 2, 2]
    assert len(attempts) == 2


def test_a_program_is_recorded_once_and_run_after() -> None:
    program = k.Program()
    with pytest.raises(RecordingError, match="has not been recorded"):
        program.run()
    with pytest.raises(RecordingError, match="not recording"):
        program.end()
    program.begin()
    program.end()
    program.run()
    with pytest.raises(RecordingError, match="recorded already"):
        program.begin()
    assert not k.recording()


def test_a_dropped_recording_ends() -> None:
    program = k.Program()
    program.begin()
    del program
    gc.collect()
    assert not k.recording()


# -- several programs, several threads ----------------------------------------
def test_two_programs_interleaved() -> None:
    alone, one, two = Small(), Small(), Small()
    want = run_steps(alone, alone.train, 4)
    programs = [(model, Program(model.train)) for model in (one, two)]
    seen: list[list[Any]] = [[], []]
    for step in range(4):
        for index, (model, program) in enumerate(programs):
            model.feed(step)
            seen[index].append((program().numpy().tobytes(), *state(model)))
    assert seen == [want, want]


def in_thread(fn: Callable[[], Any]) -> Any:
    result: list[Any] = []

    def body() -> None:
        try:
            result.append(fn())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(30)
    assert result, "the thread did not end"
    return result[0]


def test_a_program_runs_on_another_thread() -> None:
    eager, recorded = Small(), Small()
    program = Program(recorded.train)
    want = run_steps(eager, eager.train, 5)
    assert run_steps(recorded, program, 2) == want[:2]
    for step in (2, 3, 4):
        recorded.feed(step)
        assert (in_thread(lambda: program().numpy().tobytes()), *state(recorded)) == want[step]


def test_other_threads_are_not_recorded() -> None:
    program = Program(lambda: (Tensor([1.0]) + 1.0, in_thread(lambda: (Tensor([5.0]) * 2.0).item())))
    result, other = program()
    assert (result.item(), other) == (2.0, 10.0)
    assert "binary" in program.dump()
    assert len(program) == 1 + 1  # the scalar's fill and the sum


def test_programs_of_two_threads_run_at_once() -> None:
    x = k.from_numpy(normal(200, 65))
    weight = k.from_numpy(normal(65, 65) / 8)
    programs = [Program(lambda: ops.linear(ops.linear(x, weight, act="gelu"), weight)) for _ in range(2)]
    want = programs[0]().numpy().tobytes()
    programs[1]()
    failures: list[int] = []

    def loop(program: Program[Tensor]) -> None:
        failures.extend(i for i in range(200) if program().numpy().tobytes() != want)

    threads = [threading.Thread(target=loop, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures


def test_a_running_program_is_not_entered_again() -> None:
    entered, leave = threading.Event(), threading.Event()
    hold = [False]

    def wait(x: Numbers) -> Numbers:
        if hold[0]:
            entered.set()
            assert leave.wait(20)
        return x + 1

    op = ops.custom(wait, name="wait")
    program = Program(lambda: op(Tensor([1.0])))
    program()
    hold[0] = True
    thread = threading.Thread(target=program)
    thread.start()
    assert entered.wait(20)
    with pytest.raises(RecordingError, match="already running"):
        program()
    leave.set()
    thread.join(20)
    hold[0] = False
    assert program().item() == 2.0


# -- what a recording says of itself, and what it holds ----------------------------------------
def test_dump_names_every_node() -> None:
    x = k.from_numpy(normal(40, 30))
    op = ops.custom(lambda a: a * 2, name="twice")
    program = Program(lambda: op(ops.softmax(ops.linear(x, x))))
    program()
    lines = program.dump().splitlines()
    assert [line.split()[:2] for line in lines] == [["0", "gemm"], ["1", "softmax"], ["2", "twice"]]
    assert lines[2] == "2 twice [host]"
    assert all("shares=" in line and "scratch=" in line for line in lines[:2])
    assert (len(program), program.host_nodes) == (3, 1)
    assert program.profile(2).keys() == {"gemm", "softmax", "twice"}


def test_the_private_pool_is_smaller_than_all_that_was_allocated() -> None:
    n, links = 1 << 16, 20
    x = k.from_numpy(normal(n))

    def fn() -> Tensor:
        y = Tensor(x)
        for _ in range(links):
            y = ops.tanh(y)
        return y

    program = Program(fn)
    with no_grad():
        program()
    # A chain needs the array it reads and the array it writes; a block is at most 1/8 larger than what was asked.
    assert 2 * 4 * n <= program.bytes <= 2 * 4 * n * 9 // 8 + 4096
    assert program.bytes * 4 < links * 4 * n


def test_a_recording_gives_its_memory_back() -> None:
    gc.collect()
    before = k.pool_stats()["live_bytes"]
    for _ in range(3):
        model = Small()
        program = Program(model.train)
        run_steps(model, program, 2)
        del model, program
    gc.collect()
    assert k.pool_stats()["live_bytes"] == before


# -- ops.custom ----------------------------------------
cube = ops.custom(lambda x: x**3, lambda dy, y, x: [3 * dy * x**2], name="cube")


def test_custom_in_a_recording_is_a_host_node_and_replays() -> None:
    buffer, seed = k.empty((4,), "float32"), k.empty((4,), "float32")
    x = Tensor(buffer, requires_grad=True)

    def fn() -> Tensor:
        x.zero_grad()
        y = cube(x * 1.0) + cube(x)
        y.backward_from(ops.add(seed, Tensor(np.zeros(4, np.float32))).data)
        return y

    program = Program(fn)
    for step in range(4):
        values, dy = normal(4, seed=step), normal(4, seed=10 + step)
        buffer.copy_from(values)
        seed.copy_from(dy)
        y = program()
        wide = values.astype(np.float64)
        # x^3: three roundings by NumPy's power, twice, and their sum; the gradient likewise.
        np.testing.assert_array_less(np.abs(y.numpy() - 2 * wide**3), 16 * 2.0**-24 * np.abs(wide**3) + 1e-30)
        np.testing.assert_array_less(np.abs(x.grad - 6 * dy * wide**2), 40 * 2.0**-24 * np.abs(dy * wide**2) + 1e-30)
    assert program.host_nodes == 4
    assert program.dump().count("cube backward [host]") == 2


def test_custom_gradient_accumulates_and_none_is_zero() -> None:
    pair = ops.custom(lambda a, b: a * b, lambda dy, y, a, b: [dy * b, None], name="pair")
    a, b = (Tensor(normal(5, seed=s), requires_grad=True) for s in (1, 2))
    for times in (1, 2, 3):
        pair(a, b).backward(np.ones(5, np.float32))
        np.testing.assert_array_equal(a.grad, sum([b.numpy()] * times))
        np.testing.assert_array_equal(b.grad, np.zeros(5))
    with no_grad():
        assert not pair(a, b).requires_grad
    assert not ops.custom(lambda a: a, name="plain")(a).requires_grad


@pytest.mark.parametrize(
    ("backward", "error", "pattern"),
    [
        (lambda dy, y, x: [dy[:2]], ShapeError, r"bad: gradient 0 expected shape \(3,\), got \(2,\)"),
        (lambda dy, y, x: [dy.astype(np.float64)], DTypeError, r"bad: gradient 0 expected float32, got float64"),
        (lambda dy, y, x: [], ShapeError, r"bad: backward gave 0 gradients for 1 inputs"),
    ],
    ids=["shape", "dtype", "count"],
)
def test_custom_refuses_gradients_that_do_not_fit(backward: Any, error: type[Exception], pattern: str) -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    y = ops.custom(lambda a: a + 1, backward, name="bad")(x)
    with pytest.raises(error, match=pattern):
        y.backward(np.ones(3, np.float32))


def test_custom_refuses_an_output_that_changes() -> None:
    sizes = iter([3, 3, 2, 3])
    op = ops.custom(lambda a: np.ones(next(sizes), np.float32), name="moody")
    program = Program(lambda: op(Tensor([1.0])))
    program()
    program()
    with pytest.raises(ShapeError, match=r"moody: output expected shape \(3,\), got \(2,\)"):
        program()
    assert program().numpy().tolist() == [1, 1, 1]  # an error in a host node leaves the program usable


# -- ops.checkpoint ----------------------------------------
def block(model: Small, x: Tensor) -> Tensor:
    h = ops.linear(ops.rms_norm(x, model.scale), model.weight, model.bias, act="silu")
    return x + ops.dropout(ops.linear(h, model.weight), 0.3, model.step, 4)


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded"])
def test_checkpoint_changes_no_bit(recorded: bool) -> None:
    traces = []
    for remat in (False, True):
        model = Small()

        def train(model: Small = model, remat: bool = remat) -> Tensor:
            for parameter in model.parameters:
                parameter.zero_grad()
            x = ops.embedding(model.table, model.ids)
            for _ in range(2):
                x = ops.checkpoint(lambda t: block(model, t), x) if remat else block(model, x)
            loss = ops.linear_cross_entropy(x, model.table, model.targets)
            loss.backward()
            return loss

        traces.append(run_steps(model, Program(train) if recorded else train, 3))
    assert traces[0] == traces[1]


def test_checkpoint_keeps_less() -> None:
    n, links = 1 << 14, 12

    def chain(x: Tensor) -> Tensor:
        for _ in range(links):
            x = ops.activation(x, "silu")
        return x

    def held(fn: Callable[[Tensor], Tensor]) -> int:
        x = Tensor(normal(n), requires_grad=True)
        gc.collect()
        before = k.pool_stats()["live_bytes"]
        y = fn(x)
        kept = k.pool_stats()["live_bytes"] - before
        y.backward(np.ones(n, np.float32))
        assert np.abs(x.grad).max() > 0
        return kept

    assert held(chain) >= links * 4 * n
    assert held(lambda x: ops.checkpoint(chain, x)) <= 4 * n * 9 // 8 + 256

"""microgpt.scalar: exact gradients, the same bits compiled, clear command-line errors."""

from __future__ import annotations

import gc
import importlib
import itertools
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from microgpt import scalar

SMALL = {"width": 8, "heads": 2, "block_size": 8}
DOCS = scalar.load_docs()


@pytest.fixture(params=["scalar", "_scalar"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    """The interpreted module, then the compiled one."""
    return scalar if request.param == "scalar" else compiled()


def compiled() -> ModuleType:
    try:
        return importlib.import_module("microgpt._scalar")
    except ImportError as error:
        pytest.skip(f"microgpt._scalar, the Cython build of scalar.py, is missing: {error}")


def floats(model: scalar.GPT) -> dict[str, list[list[float]]]:
    return {name: [[p.data for p in row] for row in matrix] for name, matrix in model.weights.items()}


# One entry for each operator and function, at points where all of them are smooth (x, y > 0, x != y).
CASES = {
    "add": lambda s, x, y: x + y,
    "add_constant": lambda s, x, y: x + 2.5,
    "mul": lambda s, x, y: x * y,
    "mul_constant": lambda s, x, y: x * 0.5,
    "pow": lambda s, x, y: x**3.0 + y**-0.5,
    "exp": lambda s, x, y: x.exp(),
    "log": lambda s, x, y: y.log(),
    "relu": lambda s, x, y: x.relu() * y + (x * -1.0).relu(),
    "used_twice": lambda s, x, y: (x * y) * (x * y) + x * x + x,
    "dot": lambda s, x, y: s.dot([x, y, x], [y, y, x]),
    "rms_norm": lambda s, x, y: s.dot(s.rms_norm([x, y, x * y]), [x, x, y]),
    "softmax": lambda s, x, y: s.dot(s.softmax([x, y, x * y]), [y, x, x]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("at", [(0.7, 1.3), (2.1, 0.4)])
def test_gradient_is_the_central_difference(module: ModuleType, name: str, at: tuple[float, float]) -> None:
    def value(x: float, y: float) -> float:
        return CASES[name](module, module.Value(x), module.Value(y)).data

    x, y = module.Value(at[0]), module.Value(at[1])
    CASES[name](module, x, y).backward()
    # A central difference errs by h^2 f'''/6 plus eps |f|/h: both about 1e-10 at h = 1e-5 for these f, whose
    # values and third derivatives stay below 100; the tolerance leaves a factor of 100.
    h = 1e-5
    dx = (value(at[0] + h, at[1]) - value(at[0] - h, at[1])) / (2 * h)
    dy = (value(at[0], at[1] + h) - value(at[0], at[1] - h)) / (2 * h)
    assert x.grad == pytest.approx(dx, rel=1e-8, abs=1e-8)
    assert y.grad == pytest.approx(dy, rel=1e-8, abs=1e-8)


def test_gradients_accumulate_over_graphs_and_the_graph_is_used_up(module: ModuleType) -> None:
    x, y = module.Value(3.0), module.Value(5.0)
    (x * y).backward()
    product = x * y
    (product + product).backward()
    assert (x.grad, y.grad) == (15.0, 9.0)
    assert (product.grad, product.left, product.right, product.users) == (2.0, None, None, 0)
    assert (x.users, y.users) == (0, 0)


def test_whole_model_gradient_is_the_central_difference(module: ModuleType) -> None:
    model = module.GPT("abc", random.Random(1), layers=2, width=4, heads=2, block_size=4)
    model.loss("abca").backward()
    h = 1e-5
    for name, matrix in model.weights.items():
        for p in (matrix[0][1], matrix[-1][-1], matrix[1][2]):
            kept = p.data
            p.data = kept + h
            above = model.loss("abca").data
            p.data = kept - h
            below = model.loss("abca").data
            p.data = kept
            assert p.grad == pytest.approx((above - below) / (2 * h), rel=1e-6, abs=1e-8), name


def test_compiled_run_is_the_interpreted_run_to_the_last_bit() -> None:
    fast = compiled()
    model, losses = scalar.train(DOCS, steps=60)
    fast_model, fast_losses = fast.train(DOCS, steps=60)
    assert fast_losses == losses
    assert floats(fast_model) == floats(model)
    assert fast.sample(fast_model, 5) == scalar.sample(model, 5)


def test_names_are_learned(module: ModuleType) -> None:
    _, losses = module.train(DOCS, steps=150)
    first, last = sum(losses[:20]) / 20, sum(losses[-50:]) / 50
    assert losses[0] == pytest.approx(math.log(27), abs=0.3)  # small random weights know nothing yet
    assert last < first - 0.25
    assert last < 2.8


def test_one_document_is_learned_by_heart(module: ModuleType) -> None:
    model, losses = module.train(["banana"], steps=80, **SMALL)
    assert losses[-1] < 0.1
    assert module.sample(model, 3) == ["banana"] * 3


def test_same_seed_same_run() -> None:
    model, losses = scalar.train(DOCS, steps=5, seed=3, **SMALL)
    again, losses_again = scalar.train(DOCS, steps=5, seed=3, **SMALL)
    assert losses == losses_again
    assert floats(model) == floats(again)
    assert scalar.sample(model, 6, seed=9) == scalar.sample(again, 6, seed=9)
    assert scalar.sample(model, 6, seed=9) != scalar.sample(model, 6, seed=10)
    assert losses != scalar.train(DOCS, steps=5, seed=4, **SMALL)[1]


def test_prepare_gives_the_start_of_train() -> None:
    order, model = scalar.prepare(DOCS, seed=7, **SMALL)
    assert floats(scalar.train(DOCS, steps=0, seed=7, **SMALL)[0]) == floats(model)
    assert sorted(order) == sorted(DOCS) and order != DOCS
    _, losses = scalar.train(DOCS, steps=1, seed=7, **SMALL)
    assert losses == [model.loss(order[0]).data]
    flat = [p for matrix in floats(model).values() for row in matrix for p in row]
    # The sample deviation of n normal numbers has a standard error of about std / sqrt(2 n).
    deviation = math.sqrt(sum(x * x for x in flat) / len(flat))
    assert deviation == pytest.approx(0.08, rel=4 / math.sqrt(2 * len(flat)))


def test_long_documents_are_cut_and_samples_end_at_the_block(module: ModuleType) -> None:
    model, _ = module.train(["aaaaaaaaaa"], steps=40, width=4, heads=1, block_size=4)
    assert model.loss("aaaaaaaa").data == model.loss("aaaaaaaaaa").data
    assert module.sample(model, 2, temperature=1e-300) == ["aaaa"] * 2


def test_a_deep_chain_is_freed_by_backward(module: ModuleType) -> None:
    v = first = module.Value(1.0)
    for _ in range(200_000):
        v = v + 1.0
    v.backward()
    assert first.grad == 1.0 and v.left is None


def test_the_collector_runs_again_after_training() -> None:
    scalar.train(["ab"], 1, **SMALL)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scalar.train([]), "no documents"),
        (lambda: scalar.prepare(["a"], width=10, heads=4), "width 10 cannot be split equally among 4 heads"),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()  # type: ignore[operator]


def test_names_file() -> None:
    raw = scalar.NAMES.read_bytes().decode("ascii")
    names = raw.splitlines()
    assert raw.endswith("\n")
    assert 3000 <= len(names) <= 4500
    assert all(re.fullmatch("[a-z]{2,12}", name) for name in names)
    assert all(a < b for a, b in itertools.pairwise(names))  # sorted and distinct


def test_command_line(tmp_path: Path) -> None:
    data = tmp_path / "words.txt"
    data.write_bytes(b"ab\r\n\r\n  abba \n")
    command = [sys.executable, "-m", "microgpt.scalar", "--data", str(data), "--steps", "20", "--samples", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert set(done.stdout) <= set("ab\n")
    assert re.search(r"step 20/20  loss \d\.\d{3}\n$", done.stderr)


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        (None, [], "No such file or directory"),
        (b"abc\n\xff\n", [], "can't decode byte 0xff"),
        (b"  \n\n", [], "no documents"),
        (b"ab\n", ["--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (b"ab\n", ["--steps", "-1"], "must be 0 or more"),
        (b"ab\n", ["--temperature", "0"], "--temperature above 0"),
        (b"ab\n", ["--stepz", "1"], "unrecognized arguments: --stepz 1"),
    ],
)
def test_command_line_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, args: list[str], message: str
) -> None:
    data = tmp_path / "words.txt"
    if content is not None:
        data.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        scalar.main(["--data", str(data), *args])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err
    assert len([line for line in err.splitlines() if line.strip()]) == 1

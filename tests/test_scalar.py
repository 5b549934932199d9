"""microgpt.scalar: exact gradients, the same bits compiled, clear command-line errors."""

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

SMALL = scalar.Config(n_embd=8, n_head=2, block_size=8)
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


# One entry for each operator and function, at points where all of them are smooth (x, y > 0, x != y).
CASES = {
    "add": lambda s, x, y: x + y,
    "add_constant": lambda s, x, y: 2.5 + x + 1,
    "mul": lambda s, x, y: x * y,
    "mul_constant": lambda s, x, y: 3 * x * 0.5,
    "neg": lambda s, x, y: -x,
    "sub": lambda s, x, y: x - y,
    "rsub": lambda s, x, y: 2.0 - x,
    "div": lambda s, x, y: x / y,
    "pow": lambda s, x, y: x**3 + y**-0.5,
    "exp": lambda s, x, y: s.exp(x),
    "log": lambda s, x, y: s.log(y),
    "relu": lambda s, x, y: s.relu(x) * y + s.relu(x * -1.0),
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
    model = module.Model("abc", module.Config(n_layer=2, n_embd=4, n_head=2, block_size=4), random.Random(1))
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
    model, losses = scalar.train(DOCS, steps=100)
    fast_model, fast_losses = fast.train(DOCS, steps=100)
    assert fast_losses == losses
    assert fast_model.floats() == model.floats()
    assert fast.sample(fast_model, 5) == scalar.sample(model, 5)


def test_names_are_learned(module: ModuleType) -> None:
    _, losses = module.train(DOCS, steps=150)
    first, last = sum(losses[:20]) / 20, sum(losses[-50:]) / 50
    assert losses[0] == pytest.approx(math.log(27), abs=0.3)  # small random weights know nothing yet
    assert last < first - 0.4
    assert last < 2.8


def test_one_document_is_learned_by_heart(module: ModuleType) -> None:
    model, losses = module.train(["banana"], steps=80, config=module.Config(n_embd=8, n_head=2, block_size=8))
    assert losses[-1] < 0.1
    assert module.sample(model, 3) == ["banana"] * 3


def test_same_seed_same_run() -> None:
    model, losses = scalar.train(DOCS, steps=5, seed=3, config=SMALL)
    again, losses_again = scalar.train(DOCS, steps=5, seed=3, config=SMALL)
    assert losses == losses_again
    assert model.floats() == again.floats()
    assert scalar.sample(model, 6, seed=9) == scalar.sample(again, 6, seed=9)
    assert scalar.sample(model, 6, seed=9) != scalar.sample(model, 6, seed=10)
    assert losses != scalar.train(DOCS, steps=5, seed=4, config=SMALL)[1]


def test_prepare_gives_the_start_of_train() -> None:
    order, model = scalar.prepare(DOCS, seed=7, config=SMALL)
    assert scalar.train(DOCS, steps=0, seed=7, config=SMALL)[0].floats() == model.floats()
    assert sorted(order) == sorted(DOCS)
    assert order != DOCS
    _, losses = scalar.train(DOCS, steps=1, seed=7, config=SMALL)
    assert losses == [model.loss(order[0]).data]
    weights = model.floats()
    assert list(weights)[:4] == ["wte", "wpe", "lm_head", "layer0.attn_wq"]
    assert {name: (len(w), len(w[0])) for name, w in weights.items()} == {
        "wte": (27, 8),
        "wpe": (8, 8),
        "lm_head": (27, 8),
        **{f"layer0.attn_{n}": (8, 8) for n in ("wq", "wk", "wv", "wo")},
        "layer0.mlp_fc1": (32, 8),
        "layer0.mlp_fc2": (8, 32),
    }
    flat = [x for w in weights.values() for row in w for x in row]
    assert len(flat) == len(model.parameters)
    # The sample deviation of n normal numbers has a standard error of about std / sqrt(2 n).
    deviation = math.sqrt(sum(x * x for x in flat) / len(flat))
    assert deviation == pytest.approx(0.08, rel=4 / math.sqrt(2 * len(flat)))


def test_long_documents_are_cut_and_samples_end_at_the_block(module: ModuleType) -> None:
    config = module.Config(n_embd=4, n_head=1, block_size=4)
    model, _ = module.train(["aaaaaaaaaa"], steps=40, config=config)
    assert model.loss("aaaaaaaa").data == model.loss("aaaaaaaaaa").data
    assert module.sample(model, 2, temperature=1e-300) == ["aaaa"] * 2


def test_deep_chain_frees(module: ModuleType) -> None:
    for end in ("backward", "release"):
        v = first = module.Value(1.0)
        for _ in range(200_000):
            v = v + 1.0
        if end == "backward":
            v.backward()
            assert first.grad == 1.0
        else:
            module.release([v])
        assert v.left is None
        del v


def test_the_collector_is_left_as_found() -> None:
    seen: list[bool] = []
    scalar.train(["ab"], 1, config=SMALL, on_step=lambda step, loss: seen.append(gc.isenabled()))
    assert seen == [True]
    gc.disable()
    try:
        scalar.train(["ab"], 1, config=SMALL)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_divergence_is_an_error_and_leaves_the_weights(module: ModuleType) -> None:
    _, model = module.prepare(["ab"])
    model.weights["wte"][0][0].data = math.nan
    model.weights["wte"][2][0].data = math.nan
    before = model.weights["lm_head"][0][0].data
    with pytest.raises(FloatingPointError, match="loss became nan"):
        module.learn(model, module.Adam(model.parameters, model.config), "ab", 0.01)
    assert model.weights["lm_head"][0][0].data == before
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scalar.train([]), "no documents"),
        (lambda: scalar.train(["a"], steps=-1), "steps must be 0 or more, got -1"),
        (lambda: scalar.Config(n_embd=10, n_head=4), "10 cannot be split equally among 4 heads"),
        (lambda: scalar.Config(n_layer=0), "every size must be at least 1"),
        (lambda: scalar.prepare(["abc"])[1].encode("abz"), "'z' is not one that the model knows: 'abc'"),
        (lambda: scalar.sample(scalar.prepare(["a"])[1], 1, temperature=0.0), "temperature must be"),
        (lambda: scalar.sample(scalar.prepare(["a"])[1], 1, temperature=math.nan), "temperature must be"),
    ],
)
def test_bad_arguments(call: "object", message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()  # type: ignore[operator]


def test_names_file() -> None:
    raw = scalar.NAMES.read_bytes().decode("ascii")
    names = raw.splitlines()
    assert raw.endswith("\n")
    assert 3000 <= len(names) <= 4500
    assert all(re.fullmatch("[a-z]{2,12}", name) for name in names)
    assert all(a < b for a, b in itertools.pairwise(names))  # sorted and distinct


def run(*args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "microgpt.scalar", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_command_line(tmp_path: Path) -> None:
    data = tmp_path / "words.txt"
    data.write_bytes(b"\xef\xbb\xbfab\r\n\r\n  abba \n")
    assert scalar.load_docs(data) == ["ab", "abba"]
    done = run("--data", str(data), "--steps", "20", "--samples", "3", "--n-embd", "8")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3
    assert set(done.stdout) <= set("ab\n")
    progress = done.stderr.splitlines()
    assert progress[0].startswith("2 documents from ")
    assert len(progress) == 11
    assert re.fullmatch(r"step +20/20  loss \d\.\d{3}  \d+ ms/step", progress[-1])
    assert "--temperature" in run("--help").stdout


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        (None, [], "No such file or directory"),
        (b"abc\n\xff\n", [], "is not UTF-8 text: bad byte at offset 4"),
        (b"  \n\n", [], "holds no text"),
        (b"ab\n", ["--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (b"ab\n", ["--steps", "-1"], "steps must be 0 or more, got -1"),
        (b"ab\n", ["--samples", "-1"], "number of samples must be 0 or more, got -1"),
        (b"ab\n", ["--temperature", "0"], "temperature must be a number above 0, got 0.0"),
        (b"ab\n", ["--n-head", "3"], "16 cannot be split equally among 3 heads"),
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
    assert out == ""
    lines = [line for line in err.splitlines() if "documents from" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("python -m microgpt.scalar: error: ")
    assert message in lines[0]


def test_command_line_error_is_the_exit_code(tmp_path: Path) -> None:
    done = run("--data", str(tmp_path / "missing.txt"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1

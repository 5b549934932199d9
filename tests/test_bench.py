"""`microgpt bench kernels` and `bench train` without PyTorch (tests/parity has it): processes, figures, errors."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt.bench import cases, kernels, paired, plot, report, rivals, roofline, train
from microgpt.bench.ours_train import spec, step_flops
from microgpt.bench.peers.configs import CONFIGS, data
from microgpt.errors import ChildError, ConfigError, MissingExtraError
from tests.cli_tools import environment, run

SMALL = [
    cases._gemm(33, 17, 65),
    cases._gemm(8, 16, 32, "x^T W^T"),
    cases._gemm(4, 2048, 2048, cold=True),
    cases._weight_gradient(24, 40, 48),
    cases.Case("elementwise", "gradient_norm", "gradient norm", 2 * 4096, 4096, 0, True, True, 2, ("float32",),
               {"rows": 64, "cols": 64}),
]  # fmt: skip


# -- the loops that measure the machine --------------------------------------------------------------------------------
@pytest.mark.parametrize("isa", [name for name, supported in k.isas() if supported])
def test_peaks_end_at_one(isa: str) -> None:
    k.set_isa(isa)
    try:
        for kernel in (k.peak_fma, k.peak_bf16):
            y = k.from_numpy(np.full(5, -1, np.float32))
            kernel(y)
            assert y.numpy().tolist() == [1.0] * 5
        values = np.random.default_rng(0).standard_normal(k.READ_GRAIN + 3).astype(np.float32)
        partial = k.from_numpy(np.full(2, -1.0))
        k.read(k.from_numpy(values), partial)
        right = [values[: k.READ_GRAIN].sum(dtype=np.float64), values[k.READ_GRAIN :].sum(dtype=np.float64)]
        # Chains of at most 128 additions of numbers below 6, then double.
        assert np.abs(partial.numpy() - right).max() <= 128 * 2**-24 * np.abs(values).sum()
    finally:
        k.set_isa("auto")


def test_peaks_refuse_wrong_arrays() -> None:
    with pytest.raises(TypeError, match="peak_fma: `y` must be float32"):
        k.peak_fma(k.empty((2,), "float64"))
    with pytest.raises(ValueError, match="`partial` needs 2 elements"):
        k.read(k.empty((k.READ_GRAIN + 1,)), k.empty((1,), "float64"))


def test_the_roofline_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "BYTES", 1 << 22)
    probes = roofline.Probes()
    found = {name: probes.measure(name, 0.01) for name in roofline.LIMITS}
    assert all(value > 1e8 for value in found.values())
    assert probes.handlers()["probe"]({"limit": "read", "seconds": 0.001})["rate"] > 1e8
    turn = probes.handlers()["probe"]({"limit": "float32", "seconds": 0.02, "turn": True})["rate"]
    assert 0.1 * found["float32"] < turn < 1.5 * found["float32"]  # a mean of calls, whatever else the machine does


# -- cases -------------------------------------------------------------------------------------------------------------
def test_cases_state_their_work() -> None:
    full = {case.name: case for case in cases.cases(cases.GROUPS, False)}
    assert full["128x128x128 x W^T"].flops == 2 * 128**3
    assert full["512 tokens, 8 heads of 64, forward"].flops == 4 * 8 * 64 * 512 * 513 // 2
    assert full["512 tokens, 8 heads of 64, both ways"].flops == 14 * 8 * 64 * 512 * 513 // 2
    row = full["1x2048x8192 x W^T cold"]
    assert kernels.moved(row, "float32") == 4 * (2048 + 2048 * 8192 + 8192)
    assert kernels.moved(row, "bfloat16") == 2 * (2048 + 2048 * 8192 + 8192)
    adamw = full["AdamW, fused"]
    assert kernels.moved(adamw, "float32") == 28 * cases.ROWS * cases.COLS  # and 2 more where a rounded copy is kept
    assert kernels.moved(adamw, "bfloat16") == 30 * cases.ROWS * cases.COLS
    shared = full["2048 tokens, 16 heads of 64 on 4, both ways"]
    assert shared.flops == full["2048 tokens, 16 heads of 64, both ways"].flops
    assert kernels.moved(shared, "float32") == 4 * 2048 * 64 * (5 * 16 + 6 * 4) and shared.sizes["kv_heads"] == 4
    assert len(full) == 58 + 30 + 14
    quick = cases.cases(cases.GROUPS, True)
    assert {case.name for case in quick} < full.keys() and 20 <= len(quick) <= 30
    assert {case.group for case in cases.cases(("attention",), False)} == {"attention"}


def test_a_case_is_held_against_what_bounds_it() -> None:
    limits = {"float32": 200e9, "bfloat16": 400e9, "read": 40e9, "copy": 30e9, "update": 30e9}
    full = {case.name: case for case in cases.cases(cases.GROUPS, False)}
    for name, dtype, limit in (
        ("1x2048x8192 x W^T cold", "float32", "read"),
        ("512x2048x8192 x W^T cold", "float32", "float32"),
        ("8x2048x8192 x W^T cold", "bfloat16", "read"),
        ("2048x2048x2048 x W^T", "bfloat16", "bfloat16"),
        ("1 query, 4096 keys cold, 16 heads of 64", "float32", "read"),
        ("layer norm", "float32", "copy"),
        ("gradient norm", "float32", "read"),
        ("AdamW, fused", "float32", "update"),
        ("projection and cross-entropy, both ways", "bfloat16", "bfloat16"),
    ):
        assert kernels.limit_of(full[name], dtype, limits, 32 << 20) == limit, name


# -- processes ---------------------------------------------------------------------------------------------------------
def child(code: str, timeout: float = 20.0) -> paired.Child:
    return paired.Child("rival", [sys.executable, "-c", code], timeout=timeout)


def fake(seconds: float) -> str:
    return (
        "import json, sys\nprint('{}', flush=True)\n"
        f"for line in sys.stdin: print(json.dumps({{'seconds': {seconds}, 'rate': 5.0}}), flush=True)"
    )


@pytest.mark.parametrize(
    "code, message",
    [
        ("import sys; print('first', file=sys.stderr); sys.exit('no luck')", "ended with code 1; it said: no luck"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("print('hello')", "expected a JSON object, got 'hello"),
        ("print('[1]')", "expected a JSON object"),
        ("import time; time.sleep(60)", "no answer for 0.5 s"),
    ],
)  # fmt: skip
def test_a_child_that_fails_is_an_error_with_its_last_words(code: str, message: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ChildError, match=f"rival: .*{message}"):
        child(code, timeout=0.5 if "sleep" in code else 20.0)
    assert time.perf_counter() - started < 15.0


def test_a_child_that_dies_later_and_one_that_cannot_start() -> None:
    rival = child("print('{}', flush=True); input(); raise SystemExit(3)")
    with pytest.raises(ChildError, match="ended with code 3"):
        rival.ask({"do": "run"})
    rival.stop()
    with pytest.raises(ChildError, match="cannot start /nowhere/python"):
        paired.Child("rival", ["/nowhere/python"])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_leaving_ends_a_child_and_its_own_children() -> None:
    code = (
        "import json, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(json.dumps({'pid': p.pid}), flush=True)\ntime.sleep(600)"
    )
    with pytest.raises(KeyError), paired.Rivals() as rivals_:
        rival = rivals_.start("rival", [sys.executable, "-c", code], 1, 20.0)
        inner = rival.hello["pid"]
        assert alive(rival.pid) and alive(inner)
        raise KeyError
    assert not alive(rival.pid)
    end = time.perf_counter() + 5.0
    while alive(inner) and time.perf_counter() < end:  # its new parent has to notice
        time.sleep(0.01)
    assert not alive(inner)


def test_contest_compares_in_pairs() -> None:
    with paired.Rivals() as rivals_:
        for name, seconds in (("microgpt", 0.25), ("slow", 0.5), ("fast", 0.125)):
            rivals_.start(name, [sys.executable, "-c", fake(seconds)], 1, 20.0)
        results, rate, others = paired.contest(rivals_.children, 3, 0.0, "read")
    assert results["microgpt"] == {"median": 0.25, "min": 0.25, "max": 0.25, "rounds": 3}
    assert [results["slow"][key] for key in ("ratio", "ratio_low", "ratio_high")] == [2.0, 2.0, 2.0]
    assert results["fast"]["ratio"] == 0.5 and rate == 5.0
    assert others is None or 0.0 <= others <= 1.5


def test_a_spent_budget_leaves_three_rounds() -> None:
    with paired.Rivals() as rivals_:
        rivals_.start("microgpt", [sys.executable, "-c", fake(0.25)], 1, 20.0)
        results, _, _ = paired.contest(rivals_.children, 9, 0.0, budget=0.0)
        assert results["microgpt"]["rounds"] == 3
        results, _, _ = paired.contest(rivals_.children, 2, 0.0, budget=0.0)
        assert results["microgpt"]["rounds"] == 2


def test_a_failed_step_is_told_not_raised() -> None:
    command = paired.peer_command(sys.executable, "numpy_kernels")
    with paired.Rivals() as rivals_:
        for name in ("microgpt", "peer"):
            rivals_.start(name, command, 1, 60.0)
        rivals_.ours.need(SMALL[0].request("float32"))
        with pytest.raises(ChildError, match="peer: case failed: KeyError"):
            rivals_.children["peer"].need({"do": "case", "sizes": {}})
        results, _, _ = paired.contest(rivals_.children, 1, 0.0)
    assert results["peer"] == {"error": "RuntimeError: nothing is set up"} and results["microgpt"]["median"] > 0


def test_interval_and_spread() -> None:
    assert paired.interval([1.5] * 4) == (1.5, 1.5)
    low, high = paired.interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 9.0])
    assert 1.0 <= low < 1.3 < high <= 9.0
    assert paired.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert paired.thread_settings(3)["OMP_NUM_THREADS"] == "3"


def test_peers_import_nothing_of_microgpt() -> None:
    for path in paired.PEERS_FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 and (node.level == 1 or not (node.module or "").startswith("microgpt")), path
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("microgpt") for alias in node.names), path


# -- what is told ------------------------------------------------------------------------------------------------------
def test_figures_in_words() -> None:
    assert [report.duration(x) for x in (2.5, 0.0123, 4.61e-6, 1234.5, 9e-8)] == [
        "2.50 s", "12.3 ms", "4.61 µs", "1,234 s", "0.09 µs",
    ]  # fmt: skip
    assert [report.percent(x) for x in (0.834, 0.0321, 1.02)] == ["83%", "3.2%", "102%"]
    assert report.against("torch", {"median": 1.0, "ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.61}) == (
        "torch 1.50x [1.40, 1.61]"
    )
    assert report.against("torch", {"error": "no"}) == "torch failed"
    assert report.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert report.disturbance([0.0, 0.2, None])["disturbed"] == 1
    assert "1 of 2 figures were DISTURBED" in report.disturbance_line(report.disturbance([0.0, 0.2]))
    assert "unknown" in report.disturbance_line(report.disturbance([None]))


def test_summaries_name_the_best_peer_and_what_is_lost() -> None:
    def row(case: str, share: float, limit: str, **ratios: tuple[float, float, float]) -> report.Row:
        peers = {
            name: {"ratio": ratio, "ratio_low": low, "ratio_high": high} for name, (ratio, low, high) in ratios.items()
        }
        return {"case": case, "dtype": "float32", "limit": limit, "results": {"microgpt": {"share": share}, **peers}}

    rows = [
        row("a", 0.5, "float32", torch=(4.0, 3.9, 4.1), numpy=(0.9, 0.8, 0.96)),  # behind
        row("b", 0.7, "float32", torch=(1.0, 0.9, 1.1), numpy=(0.9, 0.8, 0.97)),  # perhaps not
        row("c", 0.6, "read", torch=(0.9, 0.85, 0.95)),  # memory: perhaps not
        row("d", 0.6, "copy", torch=(0.25, 0.2, 0.92)),  # behind
    ]
    rows[2]["results"]["numpy"] = {"error": "no"}
    (entry,) = report.summarize(rows, ("dtype",))
    a = {"case": "a", "peer": "numpy", "ratio": 0.9, "ratio_low": 0.8, "ratio_high": 0.96}
    d = {"case": "d", "peer": "torch", "ratio": 0.25, "ratio_low": 0.2, "ratio_high": 0.92}
    assert entry == {
        "dtype": "float32", "cases": 4, "share": pytest.approx(0.6),
        "peers": {"torch": {"cases": 4, "ratio": pytest.approx(0.9**0.25), "worst": "d", "worst_ratio": 0.25},
                  "numpy": {"cases": 2, "ratio": pytest.approx(0.9), "worst": "a", "worst_ratio": 0.9}},
        "best": {"cases": 4, "ratio": pytest.approx((0.9**3 * 0.25) ** 0.25)}, "behind": [a, d],
    }  # fmt: skip
    assert report.summary_lines([entry], ("dtype",))[-1] == (
        "    best peer of each case: geometric mean 0.65x over 4; clearly behind in 2: a (numpy 0.90x [0.80, 0.96]), "
        "d (torch 0.25x [0.20, 0.92])"
    )
    (entry,) = report.summarize(rows[1:3], ("dtype",))
    assert report.summary_lines([entry], ("dtype",))[-1].endswith("0.90x over 2; clearly behind in none")
    (entry,) = report.summarize([row("alone", 0.5, "float32")], ("dtype",))
    assert entry["best"] is None and entry["behind"] == [] and len(report.summary_lines([entry], ("dtype",))) == 1


def test_results_that_differ_are_told() -> None:
    results: dict[str, dict[str, Any]] = {
        "microgpt": {"median": 1.0},
        "torch": {"median": 1.0},
        "numpy": {"median": 1.0},
    }
    samples = {"microgpt": [1.0, 2.0], "torch": [1.0, 2.1], "numpy": [1.0, 2.0000001]}
    kernels.differences(samples, results, 1e-3)
    assert not results["torch"]["agrees"] and results["torch"]["difference"] == pytest.approx(0.1 / 5**0.5)
    assert results["numpy"]["agrees"] and "agrees" not in results["microgpt"]
    assert report.failures({"results": results}) == ["    torch: its result differs by 4.5e-02 (at most 1e-03)"]


def small_kernels(monkeypatch: pytest.MonkeyPatch, *more: str) -> Any:
    monkeypatch.setattr(kernels, "cases", lambda groups, quick: SMALL)
    budget = ("--rounds", "2", "--seconds", "0.001", "--threads", "1")
    return run("bench", "kernels", *budget, *more)


def test_kernels_beside_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    done = small_kernels(monkeypatch, "--peers", "numpy", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["bench"] == "kernels" and found["peers"] == {"numpy": np.__version__}
    assert found["machine"]["threads"] == 1 and found["machine"]["isa"] == k.isa()
    assert set(found["roofline"]) == {"float32", "bfloat16", "read", "copy", "update"}
    assert len(found["rows"]) == 9  # five in float32, four in bfloat16
    for row in found["rows"]:
        ours = row["results"]["microgpt"]
        assert 0 < ours["min"] <= ours["median"] <= ours["max"] and ours["share"] > 0
        assert ours["flops_per_second"] == pytest.approx(row["flops"] / ours["median"])
        assert row["limit"] in found["roofline"] and row["limit_rate"] > 0
        takes_part = row["dtype"] == "float32" and row["group"] == "gemm"
        assert ("numpy" in row["results"]) == takes_part
        if takes_part:
            peer = row["results"]["numpy"]
            assert peer["agrees"] and peer["difference"] < 1e-5, row["case"]
            assert peer["ratio_low"] <= peer["ratio"] <= peer["ratio_high"]
    assert [(each["group"], each["dtype"], each["cases"]) for each in found["summary"]] == [
        ("gemm", "float32", 4), ("gemm", "bfloat16", 4), ("elementwise", "float32", 1),
    ]  # fmt: skip
    assert found["summary"][0]["peers"]["numpy"]["cases"] == 4
    assert [(each["dtype"], each["cases"]) for each in found["overall"]] == [("float32", 5), ("bfloat16", 4)]
    assert found["summary"][0]["best"]["ratio"] == found["summary"][0]["peers"]["numpy"]["ratio"]
    assert found["summary"][1]["best"] is None and found["overall"][0]["behind"] == found["summary"][0]["behind"]
    assert "33x17x65 x W^T" in done.stderr and "numpy: geometric mean" in done.stderr
    assert "best peer of each case: geometric mean" in done.stderr and "\nfloat32: 5 cases" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed (extra 'plot')")
def test_the_table_the_json_line_and_the_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    picture = tmp_path / "kernels.png"
    done = small_kernels(monkeypatch, "--peers", "numpy", "--dtype", "f32", "--plot", str(picture))
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("roofline: float32 ") and any(line[1:].startswith("33x17x65 x W^T") for line in lines)
    assert {row["dtype"] for row in json.loads(lines[-1])["rows"]} == {"float32"}
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert done.stderr == f"drawn in {picture}\n"


def test_a_picture_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected \.png, .*, got '\.txt'"):
        plot.check(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="the folder does not exist"):
        plot.check(tmp_path / "none" / "a.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"microgpt\[plot\]"):
        plot.check(tmp_path / "a.png")


# -- training ----------------------------------------------------------------------------------------------------------
def test_training_configurations() -> None:
    sizes = {name: spec(config).num_parameters() for name, config in CONFIGS.items()}
    assert sizes == {"a": 4192, "b": 809_856, "c": 10_770_816, "d": 124_439_808}
    # Karpathy's: 12 D^2 in the block and V D in the head, twice that a token, attention 4 D a seen token, three passes.
    assert step_flops(CONFIGS["a"]) == 3 * 16 * (2 * (12 * 256 + 27 * 16) + 4 * 16 * 8)
    ids = data(CONFIGS["b"])
    assert ids.shape == (64, 12, 65) and ids.min() == 0 and ids.max() == 64 and np.array_equal(ids, data(CONFIGS["b"]))
    assert train.drift([2.0, 4.0], [2.0, 4.4]) == pytest.approx(0.1)


def test_training_steps_alone() -> None:
    done = run(
        "bench",
        "train",
        "--configs",
        "a",
        "--rounds",
        "2",
        "--seconds",
        "0.01",
        "--peers",
        "none",
        "--per-op",
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["dtype"] for row in found["rows"]] == ["float32", "bfloat16"] and found["peers"] == {}
    for row in found["rows"]:
        assert row["parameters"] == 4192 and row["flops"] == step_flops(CONFIGS["a"]) and row["tokens"] == 16
        assert len(row["losses"]) == 20 and row["losses"][0] == pytest.approx(math.log(27), abs=0.3)
        ours = row["results"]["microgpt"]
        assert ours["tokens_per_second"] == pytest.approx(16 / ours["median"]) and 0 < ours["share"] < 1.5
        assert sum(each["share"] for each in row["kernels"]) == pytest.approx(1.0)
        assert sum(each["calls"] for each in row["kernels"]) == row["nodes"]
        assert {"gemm", "attention_backward", "adamw"} <= {each["kernel"] for each in row["kernels"]}
    # bfloat16 begins with the same weights, rounded.
    assert found["rows"][1]["losses"][0] == pytest.approx(found["rows"][0]["losses"][0], rel=train.ALLOWED["bfloat16"])
    assert "kernels of our step" in done.stderr


# -- wrong use ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "command, message",
    [
        ("bench kernel", "did you mean 'kernels'?"),
        (
            "bench kernels --only gem",
            "--only: unknown 'gem' (did you mean 'gemm'?); known: gemm, attention, elementwise",
        ),
        ("bench kernels --only ,", "--only: expected one or more of gemm"),
        (
            "bench kernels --dtype float64",
            "(did you mean 'bfloat16'?); known: float32, bfloat16",
        ),
        ("bench kernels --peers jax", "--peers: unknown 'jax'; known: numpy, torch, none"),
        ("bench kernels --peers none,numpy", "none stands alone"),
        ("bench kernels --rounds 0", "--rounds: expected 1 to 1000, got 0"),
        ("bench kernels --seconds nan", "--seconds: expected a positive number"),
        ("bench kernels --timeout 0", "--timeout"),
        ("bench kernels --threads 0", "--threads: expected 1 to 1024, got 0"),
        ("bench kernels --plot a.txt", "--plot a.txt: expected .png"),
        (
            "bench kernels --peer-python /nowhere/python",
            "--peer-python: expected a Python to run, got '/nowhere/python'",
        ),
        ("bench kernels --peer-python /", "--peer-python: expected a Python to run"),
        ("bench kernels --peer-python /bin/true", "'/bin/true' does not behave like a Python"),
        ("bench train --configs e", "--configs: unknown 'e'; known: a, b, c, d"),
        ("bench train --peers numpy", "--peers: unknown 'numpy'; known: torch, torch-compile, none"),
        ("bench train --sconds 1", "--seconds"),
    ],
)
def test_wrong_use_is_named(command: str, message: str) -> None:
    done = run(*command.split())
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr


def python_without_torch(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_peer_that_is_not_there(tmp_path: Path) -> None:
    bare = python_without_torch(tmp_path, "echo '{}'")
    done = run("bench", "train", "--peer-python", bare)
    assert done.exit_code == 2 and f"peer torch: not installed in {bare}" in done.stderr
    numpy_only = python_without_torch(tmp_path, 'echo \'{"numpy": "2.0"}\'')
    assert rivals.find_peers("numpy", kernels.PEERS, numpy_only, 10.0) == {"numpy": "2.0"}
    with pytest.raises(ConfigError, match="peer torch: not installed"):
        rivals.find_peers(None, kernels.PEERS, numpy_only, 10.0)
    hanging = python_without_torch(tmp_path, "exec sleep 60")
    with pytest.raises(ChildError, match=r"no answer for 0.3 s"):
        rivals.find_peers("torch", kernels.PEERS, hanging, 0.3)


def test_a_peer_that_dies_ends_the_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    end = "echo no luck >&2; exit 7"
    peer = python_without_torch(tmp_path, f'if [ "$1" = -c ]; then echo \'{{"numpy": "2.0"}}\'; else {end}; fi')
    done = small_kernels(monkeypatch, "--peers", "numpy", "--peer-python", peer)
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == "error: numpy: ended with code 7; it said: no luck"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_ctrl_c_ends_the_children() -> None:
    command = [
        sys.executable,
        "-m",
        "microgpt",
        "bench",
        "train",
        "--configs",
        "a",
        "--peers",
        "none",
        "--seconds",
        "60",
    ]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert "peers: none" in process.stdout.readline()  # the child is there
    children = [
        int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and parent(path) == process.pid
    ]
    assert len(children) == 1 and alive(children[0])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors and "SIGINT: stopped" in errors
    assert not alive(children[0])


def parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return -1


def test_others_are_seen() -> None:
    elsewhere = paired.Elsewhere([os.getpid()])
    share = elsewhere.share()
    assert share is None or share >= 0.0

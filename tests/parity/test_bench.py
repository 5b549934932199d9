"""`microgpt bench` beside PyTorch, live: every case computes the same on both sides. `make parity`."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from microgpt.bench import cases, kernels, train
from tests.cli_tools import run

HASTE = ("--peers", "torch", "--rounds", "1", "--seconds", "0.0001", "--json")


def small(case: cases.Case) -> cases.Case:
    """The same kind of case in a size that takes no time."""
    sizes = dict(case.sizes)
    for name, most in (("m", 65), ("n", 127), ("k", 129), ("tokens", 100), ("keys", 200), ("rows", 40), ("vocab", 300)):
        if name in sizes:
            sizes[name] = min(sizes[name], most)
    if "cold" in sizes:
        sizes["cold"] = False
    return cases.Case(case.group, case.kind, case.name, case.flops, case.reads, case.writes, True, case.memory, 2,
                      case.dtypes, sizes)  # fmt: skip


def test_every_kind_of_case_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {(case.kind, str(small(case).sizes)): small(case) for case in cases.cases(cases.GROUPS, False)}
    monkeypatch.setattr(kernels, "cases", lambda groups, quick: list(kinds.values()))
    done = run("bench", "kernels", *HASTE)
    assert done.exit_code == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    assert len(rows) > 2 * len(cases.ELEMENTWISE)
    for row in rows:
        found = row["results"]["torch"]
        assert "ratio" in found, (row["case"], found)
        assert found.get("agrees", row["case"] == "dropout"), (row["case"], row["dtype"], found)


def test_training_steps_lose_alike() -> None:
    done = run("bench", "train", "--configs", "a,b", *HASTE)
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["case"] for row in rows] == ["a float32", "a bfloat16", "b float32", "b bfloat16"]
    for row in rows:
        found = row["results"]["torch"]
        assert found["agrees"] and found["difference"] <= train.ALLOWED[row["dtype"]], (row["case"], found)


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", os.path.dirname(os.__file__))
    arguments = ("--configs", "a", "--dtype", "float32", "--rounds", "1", "--seconds", "0.0001", "--json")
    done = run("bench", "train", "--peers", "torch-compile", *arguments)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["rows"][0]["results"]
    assert "error" in found["torch-compile"] and found["microgpt"]["median"] > 0
    assert "torch-compile: " in done.stderr

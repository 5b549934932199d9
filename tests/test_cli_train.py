"""`microgpt train` and `microgpt viz`: options, run folders, signals, configuration files, charts."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from microgpt.cli import cli
from microgpt.cli.train import BY_FILE, SECTIONS, next_run
from microgpt.models.zoo import MODELS
from microgpt.optim.rules import RULES
from microgpt.optim.schedule import KINDS
from microgpt.training.config import TrainConfig
from tests.cli_tools import TINY, environment, run, shell
from tests.training_tools import words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_setting_is_an_option_with_help() -> None:
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    listed = [setting.name for settings in SECTIONS.values() for setting in settings]
    assert sorted([*listed, *BY_FILE]) == sorted(fields)
    command = cli.get_command(click.Context(cli), "train")
    assert command is not None
    options = {each.name: each for each in command.params if isinstance(each, click.Option)}
    text = run("train", "--help").stdout
    for name in listed:
        field = fields[name]
        option = "--" + name.replace("_", "-")
        assert option in options[name].opts and option in text
        assert options[name].help
        if field.default not in (None, "") and not isinstance(field.default, bool):
            assert f"[default: {field.default}]" in (options[name].help or "")


def test_help_names_every_choice() -> None:
    flat = " ".join(run("train", "--help").stdout.split())
    for choice in (*MODELS, *RULES, *KINDS, "line", "file", "auto", "f64", "bf16", "names"):
        assert re.search(rf"\b{choice}\b", flat), choice


def test_settings_reach_the_run(folder: Path) -> None:
    given = {
        "data": str(words(folder / "my words.txt")), "documents": "line", "val_fraction": 0.2, "model": "micro",
        "layers": 1, "heads": 1, "width": 12, "block_size": 9, "dropout": 0.1, "dtype": "float64",
        "steps": 4, "batch_size": 3,
        "accumulate": 2, "optimizer": "sgd", "lr": 0.05, "min_lr": 0.2, "schedule": "wsd", "warmup": 1,
        "weight_decay": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "momentum": 0.8, "clip": 2.0, "seed": 5,
        "eval_every": 2, "eval_batches": 1, "log_every": 2, "save_every": 2, "keep": 1, "checkpointing": True,
    }  # fmt: skip
    arguments = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        arguments += [option] if value is True else [option, str(value)]
    done = run("train", *arguments, "--num-samples", "2")
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    state = json.loads((folder / "runs" / "my-words-1" / "step-4" / "trainer_state.json").read_text())
    defaults = dataclasses.asdict(TrainConfig())
    assert state["config"] == {**json.loads(json.dumps(defaults)), **given, "epochs": None}
    assert {name for name, value in given.items() if value != defaults[name]} == given.keys()
    assert sorted(path.name for path in (folder / "runs" / "my-words-1").glob("step-*")) == ["step-4"]


def test_run_folders_are_numbered(folder: Path) -> None:
    for expected in ("names-1", "names-2"):
        done = run("train", *TINY)
        assert done.exit_code == 0 and f"saved in runs/{expected}\n" in done.stderr
    (folder / "runs" / "names-9").mkdir()
    (folder / "runs" / "names-extra-30").mkdir()
    assert next_run("names").name == "names-10"
    assert next_run("some/where/Great Novel.txt").name == "Great-Novel-1"
    assert next_run("..").name == f"{folder.parent.name}-1"  # a folder is called by its own name


def test_out_resume_and_quiet(folder: Path) -> None:
    done = run("train", *TINY, "--out", "here/run", "--quiet")
    assert done.exit_code == 0 and done.output == ""
    resumed = run("train", "--resume", "here/run", "--steps", "5", "--num-samples", "1")
    assert resumed.exit_code == 0 and "going on after step 3 of here/run/step-3" in resumed.stderr
    assert len(resumed.stdout.splitlines()) == 1
    nothing = run("train", "--resume", "here/run", "--num-samples", "0")
    assert nothing.exit_code == 0 and "nothing left to do: this run has its 5 steps" in nothing.stderr
    refused = run("train", *TINY, "--out", "here/run")
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "already holds a run" in refused.stderr


def test_a_run_that_fails_leaves_no_folder(folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    done = run("train", *TINY, "--data", "empty.txt")
    assert done.exit_code == 1 and done.stderr == "error: empty.txt: empty (0 bytes of text)\n"
    assert list((folder / "runs").iterdir()) == []


def test_interrupted(tmp_path: Path) -> None:
    """The signal that Ctrl-C sends, once checkpoints appear."""
    process = subprocess.Popen(
        [sys.executable, "-m", "microgpt", "train", "--steps", "1000000", "--save-every", "20", "--eval-every", "0"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (tmp_path / "runs" / "names-1" / "latest").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    last = err.splitlines()[-1]
    found = re.fullmatch(r"SIGINT: stopped after step (\d+); the newest checkpoint is runs/names-1/step-(\d+); "
                         r"microgpt train --resume runs/names-1 goes on", last)  # fmt: skip
    assert found is not None and found[1] == found[2], last
    loaded = shell("generate", "--num-samples", "2", folder=tmp_path)
    assert loaded.returncode == 0 and len(loaded.stdout.splitlines()) == 2

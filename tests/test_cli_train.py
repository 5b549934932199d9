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
from microgpt.models.presets import MODELS
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


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A long run below `folder`, once its first checkpoint is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "microgpt", "train", "--steps", "1000000", "--eval-every", "0", "--out", "run",
         *arguments],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (folder / "run" / "latest").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    return process


def test_terminated(tmp_path: Path) -> None:
    """SIGTERM: the step is finished and saved, in ten seconds at most, with the code of a death by signal."""
    process = start(tmp_path, "--save-every", "1000")
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 143 and out == "" and "Traceback" not in err
    found = re.fullmatch(r"SIGTERM: stopped after step (\d+); the newest checkpoint is run/step-(\d+); "
                         r"microgpt train --resume run goes on", err.splitlines()[-1])  # fmt: skip
    assert found is not None and found[1] == found[2], err
    resumed = shell("train", "--resume", "run", "--steps", str(int(found[1]) + 1), "--num-samples", "1",
                    folder=tmp_path)  # fmt: skip
    assert resumed.returncode == 0 and f"going on after step {found[1]}" in resumed.stderr


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """A callback that never ends holds the step; the second signal ends the process all the same."""
    code = (
        "import time, microgpt\n"
        "class Slow(microgpt.Callback):\n"
        "    def step(self, control):\n"
        "        print('in', flush=True)\n"
        "        time.sleep(60)\n"
        "microgpt.train(steps=5, out='run', callbacks=[Slow()], handle_signals=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment(),
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
    process.stdout.close()


def test_a_configuration_file_and_what_precedes_it(folder: Path) -> None:
    (folder / "run.toml").write_text('layers = 1\nwidth = 8\nheads = 2\nsteps = 9\nema = 0.5\ndata = "names"\n')
    done = run("train", "--config", "run.toml", "--steps", "3", "--num-samples", "0", "--out", "a")
    assert done.exit_code == 0, done.stderr
    state = json.loads((folder / "a" / "step-3" / "trainer_state.json").read_text())["config"]
    assert (state["steps"], state["width"], state["ema"], state["lr"]) == (3, 8, 0.5, TrainConfig.lr)
    again = run("train", "--config", "a/config.toml", "--num-samples", "0", "--out", "b")
    assert again.exit_code == 0, again.stderr
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (folder / "a/step-3" / name).read_bytes() == (folder / "b/step-3" / name).read_bytes()
    (folder / "bad.toml").write_text("widht = 8\n")
    wrong = run("train", "--config", "bad.toml")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: config bad.toml: unknown setting 'widht' (did you mean 'width'?)")


def test_a_dry_run_does_nothing(folder: Path) -> None:
    done = run("train", "--dry-run", "--layers", "3", "--steps", "50")
    assert done.exit_code == 0, done.stderr
    for part in (
        "parameters, float32",
        "FLOPs a token",
        "in 50 steps",
        "of parameters, gradients and optimizer",
        "time  ",
    ):
        assert part in done.stdout, part
    assert list(folder.iterdir()) == []
    assert run("train", "--dry-run", "--heads", "3").exit_code == 2
    assert run("train", "--dry-run", "--data", "nowhere").exit_code == 1


def test_several_data_with_weights(folder: Path) -> None:
    words(folder / "more.txt", count=200)
    done = run("train", *TINY, "--data", "names", "--data", "more.txt", "--weights", "3,1", "--out", "run")
    assert done.exit_code == 0, done.stderr
    state = json.loads((folder / "run" / "step-3" / "trainer_state.json").read_text())["config"]
    assert state["data"] == ["names", "more.txt"] and state["weights"] == [3.0, 1.0]
    assert "documents from names" in done.stderr and "documents from more.txt" in done.stderr
    for weights, message in (("3", "weights: expected one for each of the 2 data"), ("3;1", "not numbers with commas")):
        wrong = run("train", *TINY, "--data", "names", "--data", "more.txt", "--weights", weights)
        assert wrong.exit_code == 2 and message in wrong.stderr


def test_viz(folder: Path) -> None:
    for name, rate in (("a", "0.01"), ("b", "0.001")):
        assert run("train", *TINY, "--steps", "20", "--eval-every", "5", "--lr", rate, "--out", name).exit_code == 0
    done = run("viz", "a")
    assert done.exit_code == 0 and done.stderr == ""
    assert "step 20" in done.stdout and re.search(r"^a +20 ", done.stdout, re.M)
    both = run("viz", "a", "b", "--out", "both.svg")
    assert both.exit_code == 0 and both.stderr == "drawn in both.svg\n"
    assert (folder / "both.svg").read_text().count("<polyline") == 4
    assert run("viz").exit_code == 2 and run("viz", "nowhere").exit_code == 2
    (folder / "none").mkdir()
    wrong = run("viz", "none")
    assert wrong.exit_code == 1 and "is none a run folder?" in wrong.stderr
    assert run("viz", "a", "--out", "x.gif").exit_code == 2

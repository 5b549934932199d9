"""Settings that a hostile or hurried user gives: one typed error each, nothing overwritten, nothing left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt.data.batches import Batches
from microgpt.data.shards import _remove_stale
from microgpt.errors import ConfigError, DataError
from microgpt.training import curves
from microgpt.training.config import TrainConfig
from microgpt.training.settings import read_settings, with_file

SMALL: dict[str, Any] = {"layers": 1, "width": 16, "heads": 1, "steps": 4, "eval_batches": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": 3}, "weights: expected a list"),
        ({"size": 1000000}, "size: expected a text"),
        ({"model": 5}, "model: expected a text"),
        ({"optimizer": ["x"]}, "optimizer: expected a text"),
        ({"schedule": [1]}, "schedule: expected a text"),
        ({"groups": 5}, "groups: expected a list"),
        ({"sample_prompt": 5}, "sample_prompt: expected a text"),
        ({"curriculum": 5}, "curriculum: expected a text"),
        ({"data": ""}, "data: expected a path"),
        ({"data": ["names", ""]}, "data: expected a path"),
        ({"data": "bad\udcff.txt"}, "data: expected text that UTF-8 can write"),
        ({"sample_prompt": "\udcff"}, "sample_prompt: expected text that UTF-8 can write"),
        ({"clip": 10**400}, "clip: expected a number"),
        ({"clip": 10**5000}, "clip: expected a number.*a very long int"),
        ({"weights": [1e308]}, "weights: expected a number"),
        ({"epochs": 1e308}, "epochs: expected a number"),
        ({"patience": 3, "val_fraction": 0}, "patience: expected val_fraction above 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_a_list_that_names_itself_a_billion_times_is_shown_shortly() -> None:
    bomb: Any = ["x"] * 10
    for _ in range(8):
        bomb = [bomb] * 10
    started = time.perf_counter()
    with pytest.raises(ConfigError, match="data: expected a path or several") as caught:
        TrainConfig(data=bomb)
    assert time.perf_counter() - started < 1.0 and len(str(caught.value)) < 2000


def test_size_and_shape(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give size or layers, not both"):
        microgpt.train(size="1m", layers=3)
    path = tmp_path / "c.toml"
    path.write_text('size = "1m"\n')
    assert with_file(read_settings(path), {"layers": 3}) == {"layers": 3}
    assert with_file({"layers": 3, "width": 8, "lr": 1.0}, {"size": "1m"}) == {"lr": 1.0, "size": "1m"}
    run = microgpt.train(size="30k", steps=2, eval_batches=1, out=tmp_path / "run")  # its config.toml has both
    again = with_file(read_settings(tmp_path / "run" / "config.toml"), {})
    assert again["size"] == "30k" and "layers" not in again
    assert microgpt.train(config=tmp_path / "run" / "config.toml").losses == run.losses


def test_files_of_the_user_are_not_overwritten(tmp_path: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "samples.jsonl"):
        place = tmp_path / name.split(".")[0]
        place.mkdir()
        (place / name).write_text("# mine\n")
        with pytest.raises(ConfigError, match=f"{name}: expected a new or empty run folder"):
            microgpt.train(data="names", out=place, **SMALL)
        assert (place / name).read_text() == "# mine\n" and len(list(place.glob("[!.]*"))) == 1


def test_an_empty_name_is_no_folder(tmp_path: Path) -> None:
    for verb in (["train", "--steps", "1"], ["tokenize", "--data", "names", "--tokenizer", "char"]):
        done = subprocess.run(
            [sys.executable, "-m", "microgpt", *verb, "--out", ""], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 2 and "got an empty name" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["tokenize", "dry run"])
def test_sigterm_leaves_nothing(tmp_path: Path, verb: str) -> None:
    text = tmp_path / "big.txt"
    text.write_text("a line of some words that go on\n" * 700_000)
    command = [sys.executable, "-m", "microgpt"]
    if verb == "tokenize":
        command += ["tokenize", "--data", str(text), "--tokenizer", "char", "--documents", "line", "--out", "x"]
    else:
        command += ["train", "--data", str(text), "--documents", "line", "--tokenizer", "char", "--dry-run"]
    place = tmp_path / "place"
    place.mkdir()
    process = subprocess.Popen(
        command, cwd=place, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    )
    deadline = time.monotonic() + 60
    while not any(place.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "SIGTERM: stopped; nothing was kept" in errors
    assert list(place.iterdir()) == []


def test_the_best_weights_are_kept_whenever_they_come(tmp_path: Path) -> None:
    settings = {**SMALL, "steps": 60, "lr": 0.05, "schedule": "constant", "eval_every": 3, "patience": 2}
    run = microgpt.train(data="names", out=tmp_path / "run", **settings)
    assert run.stopped is not None and "in 2 validations" in run.stopped
    best = (tmp_path / "run" / "best").read_text().strip()
    values = {}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "val_loss" in record:
            values[record["step"]] = record["val_loss"]
    assert best == f"step-{min(values, key=values.__getitem__)}" and (tmp_path / "run" / best).is_dir()
    assert best != (tmp_path / "run" / "latest").read_text().strip()


def test_more_windows_in_a_batch_than_are_measured() -> None:
    batches = Batches([np.array([1, 2], np.int32)] * 70_000, 1024, 256, 0)
    assert batches.steps_per_epoch == 1 and 0.2 < batches.efficiency <= 1


def test_leftovers_of_our_own_number_are_removed(tmp_path: Path) -> None:
    mine, alive = (
        tmp_path / f"tokens.tmp.{os.getpid()}.0123456789ab",
        tmp_path / f"tokens.tmp.{os.getppid()}.0123456789ab",
    )
    mine.mkdir()
    alive.mkdir()
    _remove_stale(tmp_path / "tokens")
    assert not mine.exists() and alive.exists()


def test_curves_of_odd_runs(tmp_path: Path) -> None:
    for name, loss in (("flat", "1e20"), ("huge", "1e308"), ("long", "1" + "0" * 400)):
        run = tmp_path / name
        run.mkdir()
        (run / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {loss}}}\n{{"step": 2, "loss": 2.0}}\n' * 2)
        curve = curves.read_curve(run)
        curves.text_chart([curve], 60, 12)
        curves.save_picture([curve], tmp_path / "x.svg")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "metrics.jsonl").write_text('{"step": 1, "loss": 1e20}\n{"step": 2, "loss": 1e20}\n')
    assert len(curves.text_chart([curves.read_curve(tmp_path / "only")], 60, 12)) == 15


def test_a_link_to_nowhere_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"a\.txt: a link to a file that is not there"):
        microgpt.train(data=str(tmp_path), **SMALL)

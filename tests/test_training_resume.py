"""Runs that are interrupted and go on: the same bits as if nothing had happened. And disks that fail meanwhile."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt.errors import StorageError
from microgpt.io import files
from microgpt.io.checkpoint import RunFolder
from microgpt.training.objective import LanguageModeling
from microgpt.training.pretrain import EMA
from tests.checkpoint_tools import stale
from tests.test_checkpoint_faults import FailingOs, small_disk  # noqa: F401 (a fixture)
from tests.training_tools import SMALL, digests, python, same, small, weights, words

# Everything that has a state: averaged weights, dropout, accumulation over several epochs, warm-up, validation.
FULL: dict[str, Any] = {
    "ema": 0.9, "dropout": 0.2, "accumulate": 3, "warmup": 4, "eval_every": 5, "steps": 24, "save_every": 1, "keep": 1,
    "patience": 100, "val_fraction": 0.2, "eval_batches": 0,
}  # fmt: skip
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "epoch", "val_loss")  # of a record; the rest is time and memory


def records(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: values[name] for name in EXACT if name in values} for values in lines]


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is lost here, and waiting for the disk is nearly all of the time."""
    monkeypatch.setattr(files, "fsync_file", lambda path: None)
    monkeypatch.setattr(files, "fsync_dir", lambda path: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The data, and the run that nothing interrupts."""
    place = tmp_path_factory.mktemp("whole")
    data = str(words(place / "words.txt"))
    small(data=data, out=place / "run", **FULL)
    assert len(records(place / "run")) == 24 + 5
    return data, place / "run"


def check(run: Path, whole: Path) -> None:
    assert records(run) == records(whole)
    assert digests(run) == digests(whole)
    places = [RunFolder(each).latest()[0] for each in (run, whole)]
    assert EMA in digests(run)
    states = [json.loads((place / "trainer_state.json").read_text())["trainer"] for place in places]
    for state in states:
        state.pop("data")  # the same place may be written in two ways; losses and tokens tell that it is the same
    assert states[0] == states[1]


def epoch_edge(run: Path) -> int:
    """The first step that reaches into a second epoch."""
    return next(each["step"] for each in records(run) if each.get("epoch", 0.0) > 1.0)


class Boom(Exception):
    pass


class At(microgpt.Callback):
    """Does something after a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.at, self.action = step, action

    def step(self, control: Any) -> None:
        if control.step == self.at:
            self.action(control)


def boom(control: Any) -> None:
    raise Boom


def terminate(control: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [1, 4, 5, 0, 17])  # 4 ends the warm-up, 5 validates, 0 stands for the epoch's edge
@pytest.mark.parametrize("kind", ["exception", "signal"])
def test_interrupted_after_a_step(step: int, kind: str, whole: tuple[str, Path], tmp_path: Path) -> None:
    """An exception loses the step that was not yet saved; SIGTERM saves it."""
    data, run = whole
    step = step or epoch_edge(run)
    out = tmp_path / "run"
    if kind == "exception":
        with pytest.raises(Boom):
            small(data=data, out=out, callbacks=[At(step, boom)], **FULL)
        assert [each.name for each in RunFolder(out).checkpoints()][-1:] == ([f"step-{step - 1}"] if step > 1 else [])
        if step == 1:
            return
    else:
        stopped = small(data=data, out=out, callbacks=[At(step, terminate)], handle_signals=True, **FULL)
        assert (stopped.steps, stopped.stopped, stopped.signal) == (step, "SIGTERM", signal.SIGTERM)
        assert RunFolder(out).latest()[0].name == f"step-{step}"
    microgpt.train(resume=out)
    check(out, run)


@pytest.mark.parametrize("when", ["second micro-batch", "validation"])
def test_interrupted_inside_a_step(
    when: str, whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two micro-batches of step 8, or in the validation after step 10 (buffers number 3)."""
    data, run = whole
    feed = LanguageModeling.feed
    seen = itertools.count(1)

    def stop(self: Any, buffers: Any, block: Any, row: int) -> None:
        feed(self, buffers, block, row)
        if when == "validation":
            if buffers.number == 3 and next(seen) == batches + 2:
                raise Boom
        elif buffers.number == 1 and next(seen) == 8:
            raise Boom

    batches = validation_batches(run)
    monkeypatch.setattr(LanguageModeling, "feed", stop)
    with pytest.raises(Boom):
        small(data=data, out=tmp_path / "run", **FULL)
    monkeypatch.undo()
    assert RunFolder(tmp_path / "run").latest()[0].name == ("step-9" if when == "validation" else "step-7")
    microgpt.train(resume=tmp_path / "run")
    check(tmp_path / "run", run)


def validation_batches(run: Path) -> int:
    """Batches of a validation of the run."""
    from microgpt.training.build import make_data
    from microgpt.training.resume import run_config

    validation = make_data(run_config(run)).validation
    assert validation is not None
    return validation.steps_per_epoch


def test_a_signal_in_validation_does_not_wait_for_its_end(
    whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut short, owed, and made up for first thing."""
    data, run = whole
    feed = LanguageModeling.feed
    fed = []

    def stop(self: Any, buffers: Any, block: Any, row: int) -> None:
        feed(self, buffers, block, row)
        if buffers.number == 3:
            fed.append(row)
            if len(fed) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LanguageModeling, "feed", stop)
    stopped = small(data=data, out=tmp_path / "run", handle_signals=True, **FULL)
    monkeypatch.undo()
    assert stopped.steps == 5 and len(fed) == 1 and stopped.signal == signal.SIGINT and stopped.val_loss is None
    assert [each["step"] for each in records(tmp_path / "run")] == [1, 2, 3, 4, 5]
    microgpt.train(resume=tmp_path / "run")
    check(tmp_path / "run", run)
    assert (tmp_path / "run" / "best").read_text() == (run / "best").read_text()


KILLED = """
import os, signal, sys, microgpt
from tests.training_tools import small
class Kill(microgpt.Callback):
    def step(self, control):
        if control.step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
from tests.test_training_resume import FULL
small(data=sys.argv[1], out=sys.argv[2], callbacks=[Kill()], **FULL)
"""


@pytest.mark.parametrize("step", [6, 21])
def test_killed_after_a_step(step: int, whole: tuple[str, Path], tmp_path: Path) -> None:
    data, run = whole
    done = python(KILLED, data, str(tmp_path / "run"), str(step))
    assert done.returncode == -signal.SIGKILL, done.stderr
    microgpt.train(resume=tmp_path / "run")
    check(tmp_path / "run", run)


def test_threads_and_hash_seeds_change_nothing(whole: tuple[str, Path], tmp_path: Path) -> None:
    """Data order, losses and the hashes of the checkpoint."""
    data, run = whole
    for threads, seed in (("1", "1"), ("2", "2")):
        out = tmp_path / threads
        done = python("import sys; from tests.test_training_resume import FULL, small; "
                      "small(data=sys.argv[1], out=sys.argv[2], **FULL)", data, str(out),
                      MICROGPT_NUM_THREADS=threads, PYTHONHASHSEED=seed)  # fmt: skip
        assert done.returncode == 0, done.stderr
        check(out, run)


def test_the_average_can_be_switched_on_and_off_between_tries(tmp_path: Path) -> None:
    common: dict[str, Any] = {"schedule": "constant", "warmup": 0}
    small(out=tmp_path, **common)
    on = microgpt.train(resume=tmp_path, steps=14, ema=0.5)
    plain = small(steps=14, **common)
    assert on.losses == plain.losses[10:] and not same(weights(on), weights(plain))
    off = microgpt.train(resume=tmp_path, steps=18, ema=0.0)  # goes on from what was trained, not from the average
    assert same(weights(off), weights(small(steps=18, **common)))


def test_the_changes_of_a_resumed_run_are_told(tmp_path: Path) -> None:
    small(out=tmp_path)
    lines: list[str] = []
    microgpt.train(resume=tmp_path, steps=12, lr=1e-3, say=lines.append)
    assert lines[:2] == ["changed: steps 10 -> 12", "changed: lr 0.003 -> 0.001"]
    with pytest.raises(microgpt.MicrogptError) as caught:
        microgpt.train(resume=tmp_path, width=32, seed=1, curriculum="length", tokenizer="bpe", optimizer="sgd", lr=1.0,
                       dtype="bf16")  # fmt: skip
    text = str(caught.value)
    for part in ("width: the run that is resumed has 16, got 32 (the model", "seed: the run", "curriculum: the run",
                 "tokenizer: the run", "optimizer: the run", "dtype: the run", "may change: data, "):  # fmt: skip
        assert part in text
    assert "lr: the run" not in text and ", lr, " in text.partition("may change")[2]


# -- signals -----------------------------------------------------------------------------------------------------------
def test_a_signal_before_the_first_step_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from microgpt.training import pretrain
    from microgpt.training.signals import Interrupted

    make = pretrain.make_data

    def interrupt(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the handler runs between two byte codes
        return make(*arguments)

    monkeypatch.setattr(pretrain, "make_data", interrupt)
    with pytest.raises(Interrupted, match="SIGTERM"):
        small(out=tmp_path, handle_signals=True)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert RunFolder(tmp_path).checkpoints() == []


def test_without_being_asked_no_handler_is_installed() -> None:
    seen = []
    small(callbacks=[At(3, lambda control: seen.append(signal.getsignal(signal.SIGTERM)))])
    assert seen == [signal.SIG_DFL]


# -- disks that fail ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_every_call_of_a_save_may_fail(stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops with a typed error, what was saved before is whole, and the run goes on to the same bits."""
    common: dict[str, Any] = {"ema": 0.5, "eval_every": 1}
    common["data"] = str(words(tmp_path / "words.txt"))
    small(out=tmp_path / "0", save_every=1, **common)
    small(out=tmp_path / "short", steps=10, save_every=9, callbacks=[At(9, lambda c: c.request_stop("x"))], **common)
    stops = 0
    for n in itertools.count(1, stride):
        path = tmp_path / str(n)
        shutil.copytree(tmp_path / "short", path)
        fake = FailingOs(n, errno.EIO)
        monkeypatch.setattr(files, "os", fake)
        try:
            microgpt.train(resume=path)
            done = True
        except (StorageError, microgpt.MicrogptError) as error:
            done = False
            stops += isinstance(error, StorageError) and "EIO" in str(error)
        monkeypatch.undo()
        found, problems = RunFolder(path).latest()
        assert found.name in ("step-9", "step-10") and problems == []
        if not done or fake.failed:
            assert microgpt.train(resume=path).steps == 10
            assert stale(path) == []
        assert digests(path) == digests(tmp_path / "0")
        shutil.rmtree(path)
        if not fake.failed:
            break
    assert n > 60 and stops * stride > 40, (n, stops)


def test_a_disk_that_fills_up(small_disk: Path) -> None:  # noqa: F811
    """2 MiB; a checkpoint takes some 200 kB. The check before lets the run begin, as retention would keep it small."""
    with pytest.raises(StorageError, match=r"No space left on device|ENOSPC"):
        small(out=small_disk / "run", width=32, save_every=1, keep=1000, steps=1000)
    newest, problems = RunFolder(small_disk / "run").latest()
    assert problems == [] and int(newest.name[5:]) >= 3
    assert microgpt.load(small_disk / "run").logits([1, 2]).shape == (2, 27)
    for folder in RunFolder(small_disk / "run").checkpoints()[:-1]:
        shutil.rmtree(folder)
    assert microgpt.train(resume=small_disk / "run", steps=int(newest.name[5:]) + 1, keep=1).losses


def test_room_for_two_checkpoints_with_all_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before training asks for at least what two checkpoints hold."""
    from microgpt.training import pretrain

    asked = []
    monkeypatch.setattr(pretrain, "preflight", lambda path, count: asked.append(count))
    for name, settings in {"plain": {}, "ema": {"ema": 0.9}, "wide": {"width": 64, "ema": 0.9}}.items():
        small(out=tmp_path / name, **settings)
        place = RunFolder(tmp_path / name).latest()[0]
        assert asked[-1] >= 2 * sum(file.stat().st_size for file in place.iterdir())
    assert asked[1] > asked[0]


assert SMALL["log_every"] == 1  # records() counts on it


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """SIGTERM as it was; a test that leaves a handler fails."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before

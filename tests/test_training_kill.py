"""kill -9 of `microgpt train` that saves every step: nothing torn, nothing lost, and in the end the same bits."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt.io.checkpoint import RunFolder
from tests.checkpoint_tools import stale
from tests.cli_tools import environment
from tests.training_tools import digests, words

SETTINGS: dict[str, Any] = {
    "layers": 1, "heads": 2, "width": 16, "block_size": 8, "batch_size": 4, "accumulate": 2, "steps": 100_000,
    "dropout": 0.1, "ema": 0.9, "save_every": 1, "keep": 2, "eval_every": 3, "eval_batches": 1, "log_every": 1,
    "schedule": "constant",
}  # fmt: skip


def start(run: Path, data: Path) -> subprocess.Popen[str]:
    """A trainer of its own: the first of the run, or one that goes on with it."""
    if RunFolder(run).checkpoints():
        arguments = ["--resume", str(run)]
    else:
        shutil.rmtree(run, ignore_errors=True)
        arguments = ["--out", str(run), "--data", str(data)]
        arguments += [text for name, value in SETTINGS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "microgpt", "train", "--num-samples", "0", "--quiet", *arguments]
    return subprocess.Popen(command, env=environment(MICROGPT_NUM_THREADS="1"), stderr=subprocess.PIPE, text=True)


def pointed(run: Path) -> int:
    """The step that `latest` names, 0 for none: what a reader would call saved."""
    try:
        return int((run / "latest").read_text()[5:])
    except FileNotFoundError:
        return 0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_any_instant(kills: int, tmp_path: Path) -> None:
    run, data = tmp_path / "run", words(tmp_path / "words.txt")
    chance = random.Random(7)
    saved, in_save, early, pace = 0, 0, 0, 0.02  # pace: seconds of a step with its checkpoint, measured below
    for kill in range(kills):
        child = start(run, data)
        try:
            if kill % 8 == 5:  # while it starts: cleaning, reading, the first step
                time.sleep(chance.uniform(0.05, 0.8))
                early += pointed(run) == saved
            else:
                end = time.monotonic() + 60
                while pointed(run) <= saved and child.poll() is None and time.monotonic() < end:
                    time.sleep(0.002)
                first, at = pointed(run), time.monotonic()
                assert first > saved, child.stderr.read() if child.stderr and child.poll() is not None else "no step"
                # From here on no temporary of a dead writer is left: the start removed it.
                assert len(stale(run)) <= 2, stale(run)
                time.sleep(chance.uniform(0, 4 * pace))
                pace = max(0.005, (time.monotonic() - at) / max(1, pointed(run) - first))
            saved = max(saved, pointed(run))  # acknowledged before the kill
        finally:
            child.kill()
            child.communicate()
        in_save += len(stale(run)) > 0
        # The temporary, and either what it replaces or a checkpoint on its way out.
        assert len(stale(run)) <= 2, stale(run)
        if not saved and not RunFolder(run).checkpoints():
            continue
        found, problems = RunFolder(run).latest()  # every file's size and hash
        assert problems == [], problems
        assert int(found.name[5:]) >= saved, (kill, found, saved)
        saved = int(found.name[5:])
        if kill % 3 == 0:  # after the other kills the next trainer cleans
            with RunFolder(run) as owner:
                owner.clean()
            assert stale(run) == []
    print(f"{in_save}/{kills} kills left a temporary, {early} came before the first step; {saved} steps")
    assert in_save >= kills // 5 and saved >= kills // 2
    # One run that nothing interrupted is at that step where this one is after all the kills.
    with RunFolder(run) as owner:
        owner.clean()

    class Stop(microgpt.Callback):
        def step(self, control: Any) -> None:
            if control.step == saved:
                control.request_stop("there")

    whole = {**SETTINGS, "save_every": 0}
    microgpt.train(data=str(data), out=tmp_path / "whole", callbacks=[Stop()], **whole)
    assert digests(run) == digests(tmp_path / "whole")

"""Run folders: saving, finding, and every kind of damage."""

from __future__ import annotations

import json
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from microgpt.errors import (
    CheckpointError,
    StorageError,
    UsageError,
)
from microgpt.io import files
from microgpt.io.checkpoint import RunFolder, find_newest_run, verify
from microgpt.io.sealed import seal
from tests.checkpoint_tools import names, stale, text_of, writer


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "runs" / "one", version="1.2.3") as folder:
        yield folder


# --- saving and finding -------------------------------------------------------------------------------------


def test_save_and_read_back(run: RunFolder) -> None:
    target = run.save(1000, writer("a"), best=True)
    assert target == run.path / "step-1000"
    assert (run.path / "latest").read_text() == (run.path / "best").read_text() == "step-1000\n"
    found = verify(target)
    assert (found["format_version"], found["microgpt_version"], found["step"]) == (1, "1.2.3", 1000)
    assert found["info"] == {"text": "a"}
    assert {k: v["size"] for k, v in found["files"].items()} == {"model.bin": 3000, "trainer/state.json": 13}
    run.save(2000, writer("b"))
    assert run.latest() == (run.path / "step-2000", [])
    assert run.best() == target
    assert names(run) == ["step-1000", "step-2000"] and stale(run.path) == []


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with RunFolder(tmp_path / name) as one:
            one.save(1, writer("x"))
    one, two = ((tmp_path / name / "step-1/manifest.json").read_bytes() for name in "ab")
    assert one == two


def test_keep_last_spares_latest_and_best(run: RunFolder) -> None:
    for step in range(1, 8):
        run.save(step, writer(str(step)), keep_last=2, best=step == 3)
    assert names(run) == ["step-3", "step-6", "step-7"]
    # Going back to step 3 and on from there: the abandoned branch is neither counted nor removed.
    run.save(4, writer("again"), keep_last=1)
    assert run.latest() == (run.path / "step-4", [])
    assert names(run) == ["step-3", "step-4", "step-6", "step-7"] and stale(run.path) == []


def test_replacing_a_checkpoint(run: RunFolder) -> None:
    run.save(5, writer("old"))
    run.save(5, writer("new"))
    assert text_of(run.latest()[0]) == "new"
    assert names(run) == ["step-5"] and stale(run.path) == []


def test_steps_sort_as_numbers(run: RunFolder) -> None:
    for step in (9, 10, 100):
        run.save(step, writer("x"))
    for name in ("step-", "step-01", "step-1x", "step--1"):
        (run.path / name).mkdir()
    (run.path / "step-7").symlink_to(run.path / "step-9")
    assert names(run) == ["step-9", "step-10", "step-100"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        with RunFolder(tmp_path / "run") as run:
            target = run.save(1, writer("x"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    run_path = target.parent
    for path in (target / "model.bin", target / "manifest.json", run_path / "latest", run_path / ".lock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_misuse(run: RunFolder) -> None:
    for step, keep in ((-1, None), (1, 0)):
        with pytest.raises(UsageError, match="expected step >= 0 and keep_last >= 1"):
            run.save(step, writer("x"), keep_last=keep)
    with pytest.raises(UsageError, match=r"may not create manifest\.json"):
        run.save(1, lambda folder: (folder / "manifest.json").write_text("") and None)
    with pytest.raises(UsageError, match="must be finite JSON"):
        run.save(1, lambda folder: {"loss": float("nan")})
    with pytest.raises(ZeroDivisionError):
        run.save(1, lambda folder: {"x": 1 / 0})
    assert names(run) == [] and stale(run.path) == []


def test_symlinks_are_not_followed(run: RunFolder, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    run.save(1, writer("x"))
    (run.path / "latest").unlink()
    (run.path / "latest").symlink_to(precious)
    found, warnings = run.latest()
    assert found.name == "step-1" and "latest: missing or altered" in warnings[0]
    run.save(2, writer("y"))
    assert not (run.path / "latest").is_symlink() and precious.read_text() == "kept"

    with pytest.raises(StorageError, match="not a regular file"):
        run.save(3, lambda folder: (folder / "link").symlink_to(precious))
    (run.path / "step-2/model.bin").unlink()
    (run.path / "step-2/model.bin").symlink_to(precious)
    with pytest.raises(CheckpointError, match=r"model\.bin: cannot read: Too many levels of symbolic links"):
        verify(run.path / "step-2")
    with pytest.raises(OSError, match="File exists"):
        files.write_new(run.path / "step-2/model.bin", [b"x"])
    assert precious.read_text() == "kept"


# --- damage -------------------------------------------------------------------------------------------------


def test_damage_is_named_and_the_one_before_is_used(run: RunFolder) -> None:
    for step in (1, 2, 3, 4):
        run.save(step, writer(str(step)))
    (run.path / "step-4/model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"step-4/model\.bin: missing \(.* lists 3000 bytes\)"):
        verify(run.path / "step-4")
    os.truncate(run.path / "step-3/model.bin", 10)
    with pytest.raises(CheckpointError, match=r"step-3/model\.bin: truncated: expected 3000 bytes, found 10"):
        verify(run.path / "step-3")
    (run.path / "step-2/trainer/state.json").write_text('{"text": "7"}')
    with pytest.raises(CheckpointError, match=r"step-2/trainer/state\.json: altered: expected sha256"):
        verify(run.path / "step-2")
    found, warnings = run.latest()
    assert found.name == "step-1"
    assert len(warnings) == 4 and "step-4/model.bin" in warnings[0] and warnings[-1] == "using step-1 instead"
    (run.path / "step-1/manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-4/model\.bin: missing.*step-1 is not a complete"):
        run.latest()


def test_later_ones_come_last_when_the_pointed_one_is_damaged(run: RunFolder) -> None:
    for step in (1, 3, 2):  # step 3 is of a branch that the user went back from
        run.save(step, writer(str(step)))
    (run.path / "step-2/manifest.json").unlink()
    assert run.latest()[0].name == "step-1"
    (run.path / "step-1/manifest.json").unlink()
    assert run.latest()[0].name == "step-3"


@pytest.mark.parametrize("text", ["", "step-1", "step-9\n", "../evil\n", "step-1\nx\n", "\xff"])
def test_damaged_pointer(run: RunFolder, text: str) -> None:
    run.save(1, writer("x"))
    (run.path / "latest").write_text(text, encoding="latin-1")
    found, warnings = run.latest()
    assert found.name == "step-1" and "latest" in warnings[0]


def test_nothing_is_removed_while_the_best_is_unknown(run: RunFolder) -> None:
    for step in (1, 2):
        run.save(step, writer("x"), best=step == 1)
    (run.path / "best").write_text("step-")
    with pytest.raises(StorageError, match=r"removing old .*/best: does not name .*step-3 itself is saved"):
        run.save(3, writer("y"), keep_last=1)
    assert names(run) == ["step-1", "step-2", "step-3"] and run.latest()[0].name == "step-3"
    with pytest.raises(CheckpointError, match="best: does not name a checkpoint"):
        run.best()


def test_no_checkpoint(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="no checkpoint in this run folder"):
            RunFolder(path).latest()
    with pytest.raises(CheckpointError, match="no checkpoint is marked best"):
        RunFolder(tmp_path).best()


def signed(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Rewrite a manifest as somebody would who also corrects its checksum."""

    def apply(path: Path) -> None:
        found = json.loads(path.read_bytes())
        change(found)
        body = {k: v for k, v in found.items() if k != "sha256"}
        path.write_bytes(seal(body))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text(""), "manifest.json: altered or truncated: not JSON"),
        (lambda path: path.write_text("[" * 100_000), "not JSON"),
        (lambda path: path.write_text("[]"), "expected an object, got list"),
        (lambda path: path.write_text("{}"), "expected format_version 1, got None"),
        (lambda path: path.write_text(path.read_text() + " "), "does not match its own sha256"),
        (lambda path: path.write_text(path.read_text().replace(": 3000", ": 3001")), "its own sha256"),
        (
            signed(lambda found: found.update(format_version=2, microgpt_version="9.0")),
            "expected format_version 1, got 2 (written by microgpt 9.0)",
        ),
        (signed(lambda found: found.pop("files")), "'files' must map"),
        (signed(lambda found: found.update(files=[])), "'files' must map"),
        (signed(lambda found: found["files"].update(x=3)), "'files' must map"),
        (signed(lambda found: found["files"].update({"../x": {"size": 1, "sha256": ""}})), "must map"),
        (signed(lambda found: found["files"].update({"/etc/hosts": {"size": 1, "sha256": ""}})), "must map"),
        (signed(lambda found: found["files"].update({"a\0": {"size": 1, "sha256": ""}})), "must map"),
    ],
)
def test_hostile_manifests(run: RunFolder, change: Callable[[Path], None], message: str) -> None:
    target = run.save(1, writer("x"))
    change(target / "manifest.json")
    with pytest.raises(CheckpointError) as caught:
        verify(target)
    assert message in str(caught.value)


def test_every_flipped_bit_is_found(run: RunFolder) -> None:
    target = run.save(1, writer("x", 500))
    chance = random.Random(0)
    every = [path for path in target.rglob("*") if path.is_file()]
    assert len(every) == 3
    for _ in range(400):
        path = chance.choice(every)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=path.name.replace(".", r"\.")):
            verify(target)
        path.write_bytes(good)
    verify(target)


# --- finding a run ------------------------------------------------------------------------------------------


def test_find_newest_run(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with pytest.raises(CheckpointError, match=r"no run with a usable .*runs; train one first \(microgpt"):
        find_newest_run(root)
    for moment, name in enumerate(("b", "a", "c")):
        with RunFolder(root / name) as run:
            run.save(1, writer(name))
        os.utime(root / name / "latest", (1_000_000 + moment, 1_000_000 + moment))
    (root / "empty").mkdir()
    (root / "file").write_text("")
    assert find_newest_run(root).name == "c"
    (root / "c/step-1/model.bin").unlink()
    assert find_newest_run(root).name == "a"
    for name in "ab":
        (root / name / "step-1/manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"c/step-1/model\.bin: missing.*; train one first"):
        find_newest_run(root)

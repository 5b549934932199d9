"""Run folders: kill -9, failing and full disks, two writers, readers meanwhile."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from microgpt.errors import (
    LockError,
    MicrogptError,
    StorageError,
)
from microgpt.io import files
from microgpt.io import safetensors as st
from microgpt.io.checkpoint import RunFolder, preflight
from tests.checkpoint_child import FILES, content
from tests.checkpoint_tools import stale, text_of, writer

CHILD = Path(__file__).with_name("checkpoint_child.py")
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "runs" / "one", version="1.2.3") as folder:
        yield folder


# --- locking ------------------------------------------------------------------------------------------------


def start_child(path: Path, mode: str = "on") -> subprocess.Popen[str]:
    command = [sys.executable, str(CHILD), str(path), mode]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True)


def test_second_trainer_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    child = start_child(tmp_path)
    try:
        assert child.stdout is not None and child.stdout.readline() == "writing 1\n"
        for attempt in (lambda: RunFolder(tmp_path).save(1, writer("x")), RunFolder(tmp_path).clean):
            with pytest.raises(LockError, match=rf"another trainer \(process {child.pid}\) is writing"):
                attempt()
    finally:
        child.kill()
        child.communicate()
    with RunFolder(tmp_path) as run:
        run.lock()  # again is harmless
        with pytest.raises(LockError, match=rf"process {os.getpid()}"):
            RunFolder(tmp_path).lock()
    with RunFolder(tmp_path) as run:
        run.clean()
        run.save(1, writer("x"))


def test_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"opening run folder .* \(ENOTDIR\)|\(EEXIST\)"):
        RunFolder(tmp_path / "file").lock()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "file")
    with pytest.raises(StorageError, match="ELOOP"):
        RunFolder(tmp_path / "run").lock()


# --- kill -9 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=pytest.mark.soak)])
def test_kill_at_any_instant(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "run"
    chance = random.Random(1)
    acknowledged = in_write = left_over = 0
    duration = 0.02  # seconds of one save; measured below, because it depends on the disk
    for kill in range(kills):
        child = start_child(path, "again" if kill % 4 == 3 else "on")
        assert child.stdout is not None
        out = child.stdout.readline()
        for _ in range(kill % 3):  # some die in their first save, some in a later one
            start = time.monotonic()
            out += child.stdout.readline() + child.stdout.readline()
            duration = time.monotonic() - start
        timer = threading.Timer(chance.uniform(0, 1.5 * duration), child.send_signal, [signal.SIGKILL])
        timer.start()
        out += child.communicate(timeout=20)[0]
        timer.join()
        lines = [line.split() for line in out.splitlines()]
        in_write += lines[-1][0] == "writing"
        left_over += len(stale(path)) > 0
        assert len(stale(path)) <= 2, stale(path)  # the new one and the one it replaces, or one being removed
        acknowledged = max([acknowledged, *(int(step) for verb, step in lines if verb == "saved")])
        run = RunFolder(path)
        if run.checkpoints():
            found, warnings = run.latest()
            step = int(found.name.split(".")[0][5:])
            # Only a kill during the very first save can leave a checkpoint that nothing points to.
            assert not warnings or not acknowledged, warnings
            assert step >= acknowledged, (kill, step, acknowledged)
            for number in range(FILES):
                assert (found / f"{number}.bin").read_bytes() == content(step, number)
            if step >= 3:
                assert int((path / "best").read_text()[5:]) >= step // 3 * 3
        else:
            assert not acknowledged
        if kill % 8 == 7:  # after the other kills the cleaning is left to the child
            with RunFolder(path) as owner:
                owner.clean()
                assert stale(path) == []
                if owner.path.joinpath("best").exists():
                    owner.best()
    print(f"{in_write}/{kills} kills during a save, {left_over} left something over, {acknowledged} steps")
    assert in_write >= kills // 2 and left_over >= kills // 8 and acknowledged >= 3 * kills // 8


def test_clean_puts_a_half_replaced_checkpoint_back(run: RunFolder) -> None:
    run.save(5, writer("old"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    # As a crash between the two renames of a replacement leaves it.
    (run.path / "step-5").rename(run.path / f"step-5.old.{dead.pid}.ab12")
    (run.path / f"step-5.tmp.{dead.pid}.ab13").mkdir()
    (run.path / f"latest.tmp.{dead.pid}.ab14").write_text("step-")
    (run.path / "step-5.tmp.1.ab15").mkdir()  # a writer that lives
    (run.path / "my.tmp.file").write_text("not ours")
    found, warnings = run.latest()
    assert text_of(found) == "old" and warnings == []
    gone = run.clean()
    assert [name.rsplit(".")[-1] for name in gone] == ["ab14", "ab12", "ab13"]
    assert text_of(run.latest()[0]) == "old" and run.latest()[0].name == "step-5"
    assert stale(run.path) == ["my.tmp.file", "step-5.tmp.1.ab15"] or len(stale(run.path)) == 2
    # And when the new one had already arrived, the old one goes.
    (run.path / f"step-5.old.{os.getpid()}.ab16").mkdir()
    assert run.clean() == [f"step-5.old.{os.getpid()}.ab16"]
    assert text_of(run.path / "step-5") == "old"


# --- failing disks ------------------------------------------------------------------------------------------


class FailingOs:
    """The `os` module, except that the Nth call to anything that touches the disk fails."""

    CALLS = ("open", "write", "fsync", "replace", "mkdir", "close", "read", "unlink", "scandir")

    def __init__(self, fail_at: int, code: int) -> None:
        self.count, self.fail_at, self.code, self.failed = 0, fail_at, code, ""

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in self.CALLS:
            return real

        def call(*args: object, **kwargs: object) -> object:
            self.count += 1
            if self.count == self.fail_at:
                self.failed = name
                if name == "close":
                    real(*args)  # the descriptor is gone even where close fails
                if name == "write" and self.code == 0:
                    return real(args[0], bytes(args[1])[:1])  # a short write, which is no error
                raise OSError(self.code, os.strerror(self.code))
            if name == "fsync":
                return None  # no power is lost here, and it is nearly all of the time
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize(
    ("code", "replace"),
    [(errno.EIO, False), (errno.EIO, True), (errno.ENOSPC, False), (errno.EACCES, True)],
)
def test_every_call_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, replace: bool) -> None:
    with RunFolder(tmp_path / "0") as run:
        run.save(1, writer("one"))
        run.save(2, writer("two"))
    failed = set()
    for n in range(1, 1000):
        path = tmp_path / str(n)
        shutil.copytree(tmp_path / "0", path)
        with RunFolder(path) as run:
            step = 2 if replace else 3
            fake = FailingOs(n, code)
            monkeypatch.setattr(files, "os", fake)
            try:
                run.save(step, writer("three"), keep_last=2, best=True)
                done = kept = True
            except StorageError as error:
                done, kept = False, "itself is saved" in str(error)
                assert error.errno == code
                assert os.strerror(code) in str(error) and errno.errorcode[code] in str(error)
                assert str(path) in str(error) and (kept or "unharmed" in str(error))
                assert ("bytes free" in str(error)) == (code in (errno.ENOSPC, errno.EDQUOT))
            fake.fail_at = 0
            if done:
                if not fake.failed:
                    break  # more calls than a save makes
                assert fake.failed == "unlink"  # of a temp that is not there
            failed.add(fake.failed)
            # What can be resumed is a whole checkpoint: the one before or, if it got that far, the new one.
            found, warnings = run.latest()
            new = text_of(found) == "three"
            assert not warnings and (new or text_of(found) == "two")
            assert new or not kept
            assert new or text_of(run.path / "step-1") == "one"
            run.clean()
            assert stale(path) == []
            run.save(4, writer("four"), keep_last=1)  # and life goes on
            assert run.latest() == (path / "step-4", [])
    else:
        raise AssertionError("the loop never got through")
    assert {"open", "write", "fsync", "replace", "mkdir", "close", "read"} <= failed, failed
    assert n > 40


def test_short_writes_are_completed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(1, 60):
        fake = FailingOs(n, 0)
        monkeypatch.setattr(FailingOs, "CALLS", ("write",))
        monkeypatch.setattr(files, "os", fake)
        run.save(n, writer("text"), keep_last=1)
        monkeypatch.undo()
        if not fake.failed:
            break
        assert text_of(run.path / f"step-{n}") == "text"
    assert 4 <= n < 60


def test_a_failed_save_leaves_the_pointer_on_the_one_before(run: RunFolder) -> None:
    run.save(1, writer("one"))

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "model.safetensors"))

    with pytest.raises(StorageError, match=r"saving .*step-2 failed .*model\.safetensors: No space .*ENOSPC"):
        run.save(2, full)
    assert run.latest() == (run.path / "step-1", []) and stale(run.path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs privileges that this user lacks")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_full_disk(small_disk: Path) -> None:
    with RunFolder(small_disk / "run") as run:
        run.save(1, writer("one", 600_000))
        with pytest.raises(StorageError, match=r"No space left .*\(ENOSPC\); \d+ bytes free; earlier"):
            run.save(2, writer("two", 1_900_000))
        assert run.latest() == (run.path / "step-1", []) and stale(run.path) == []
        tensors = {"x": np.zeros(1 << 20, np.float32)}
        with pytest.raises(StorageError, match=r"writing m\.safetensors failed at .*ENOSPC"):
            st.save(small_disk / "m.safetensors", tensors)
        (small_disk / "m.safetensors").unlink()
        run.save(2, writer("two", 600_000))
        with pytest.raises(StorageError, match=r"not enough .*: 2000000 bytes needed, \d+ bytes free"):
            preflight(small_disk / "run" / "not" / "yet", 2_000_000)
        preflight(small_disk, 100_000)


def test_preflight_without_a_small_disk(tmp_path: Path) -> None:
    preflight(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError, match=rf"not enough .*yet: {2**62} bytes needed, \d+ bytes free"):
        preflight(tmp_path / "not" / "yet", 2**62)


def test_file_size_limit(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from microgpt.errors import StorageError\n"
        "from tests.checkpoint_tools import RunFolder, writer\n"
        "run = RunFolder(sys.argv[1])\n"
        "run.save(1, writer('one'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    run.save(2, writer('two', 200_000))\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    assert "File too large (EFBIG); earlier checkpoints are unharmed" in done.stdout
    assert text_of(RunFolder(tmp_path).latest()[0]) == "one" and stale(tmp_path) == []


# --- readers meanwhile --------------------------------------------------------------------------------------


def test_reader_beside_a_writer(run: RunFolder) -> None:
    run.save(0, writer("0", 100))
    problems: list[object] = []
    reads = 0
    stop = threading.Event()

    def read() -> None:
        nonlocal reads
        last = 0
        while not stop.is_set():
            try:
                found, warnings = RunFolder(run.path).latest()
                step = int(found.name.split(".")[0][5:])
                if warnings or step < last:
                    problems.append((found, warnings, last))
                last = step
            except MicrogptError as error:
                problems.append(error)
            reads += 1

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(1, 120):
        run.save(step // 2, writer(str(step), 100), keep_last=2)  # every second save replaces
    stop.set()
    reader.join()
    assert not problems, problems[:3]
    assert reads > 20

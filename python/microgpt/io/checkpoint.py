"""The run folder: numbered checkpoints that survive kill -9, a full disk and a flipped bit.

``RUN/step-N/`` is written as ``step-N.tmp.PID.RANDOM``, made durable file by file, closed with a manifest and
renamed into place; only then does the pointer file ``RUN/latest`` name it, and only then are older ones
removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

from microgpt import system
from microgpt.errors import CheckpointError, LockError, StorageError, UsageError
from microgpt.io import files, manifest
from microgpt.io.files import preflight

__all__ = ["RunFolder", "find_newest_run", "preflight", "verify"]

_STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})")
_TEMP = re.compile(r"(step-[0-9]+|latest|best|config\.toml)\.(tmp|old)\.([0-9]{1,10})\.[0-9a-f]+")


def verify(folder: Path | str) -> dict[str, Any]:
    """Check a checkpoint folder against its manifest and return the manifest (``step``, ``info``,
    ``files``…).

    Raises CheckpointError naming the file that is missing, truncated or altered, or the format version found.
    """
    return manifest.verify(Path(folder))


class RunFolder:
    """One training run on disk; `version` is the microgpt version noted in each manifest.

    Reading needs no lock. The first :meth:`save` takes it, and it is held until :meth:`close` or the process
    ends.
    """

    def __init__(self, path: Path | str, version: str = "unknown") -> None:
        self.path = Path(path)
        self.version = version
        self._lock: int | None = None

    # --- the lock -------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Become the only writer of this folder, which is created if need be; does nothing if we already are.

        Raises LockError naming the process that holds it, StorageError if the folder cannot be made.
        """
        if self._lock is not None:
            return
        place = self.path / ".lock"
        try:
            new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in new:
                files.fsync_dir(folder.parent)
            fd = os.open(place, system.flags("RDWR", "CREAT", "NOFOLLOW", "CLOEXEC"), 0o666)
        except OSError as error:
            raise files.storage_error(f"opening run folder {self.path}", place, error) from error
        try:
            if not system.try_lock(fd):
                os.lseek(fd, 0, os.SEEK_SET)
                owner = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(fd)
                raise LockError(
                    f"{self.path}: another trainer (process {owner}) is writing this run; "
                    "wait for it, stop it, or choose another run folder"
                )
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            os.write(fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            os.close(fd)
            raise files.storage_error(f"locking run folder {self.path}", place, error) from error
        self._lock = fd

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        self.lock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- writing --------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        write: Callable[[Path], Mapping[str, Any] | None],
        *,
        keep_last: int | None = None,
        best: bool = False,
    ) -> Path:
        """Store checkpoint `step`; when this returns, it is durable and ``latest`` (and ``best``) name it.

        `write(folder)` puts files into an empty folder and may return JSON-able `info` for the manifest.
        `keep_last` removes all but that many of the checkpoints up to `step`, never the latest or the best.
        Raises StorageError when the disk fails (the checkpoints before this one stay), LockError, UsageError.
        """
        if step < 0 or (keep_last is not None and keep_last < 1):
            raise UsageError(f"expected step >= 0 and keep_last >= 1, got step={step}, keep_last={keep_last}")
        self.lock()
        target = self.path / f"step-{step}"
        temp = files.temp_name(target)
        try:
            files.make_dir(temp)
            self._fill(temp, step, write)
            replaced = self._publish(temp, target)
            if best:  # first: what `latest` names has then had all that its save promised
                self._point("best", target.name)
            self._point("latest", target.name)
        except StorageError:
            raise
        except OSError as error:
            hint = "; earlier checkpoints are unharmed"
            raise files.storage_error(f"saving {target}", temp, error, hint) from error
        finally:
            with contextlib.suppress(OSError):
                files.remove(temp)  # absent after success
        try:
            if replaced is not None:
                files.remove(replaced)
            if keep_last is not None:
                self._retire(step, keep_last)
        except OSError as error:
            hint = f"; {target.name} itself is saved"
            raise files.storage_error("removing old checkpoints", self.path, error, hint) from error
        return target

    def _fill(self, temp: Path, step: int, write: Callable[[Path], Mapping[str, Any] | None]) -> None:
        info = write(temp) or {}
        names = files.regular_files(temp)
        if manifest.NAME in names:
            raise UsageError(f"write() may not create {manifest.NAME}: the run folder writes it last")
        for name in names:
            files.fsync_file(temp / name)
        for folder in {temp / parent for name in names for parent in PurePath(name).parents} - {temp}:
            files.fsync_dir(folder)
        try:
            text = manifest.build(temp, step, self.version, info)
        except (TypeError, ValueError) as error:
            raise UsageError(f"info for the manifest must be finite JSON: {error}") from error
        files.write_new(temp / manifest.NAME, [text])
        files.fsync_file(temp / manifest.NAME)
        files.fsync_dir(temp)

    def _publish(self, temp: Path, target: Path) -> Path | None:
        """Rename `temp` to `target`; returns where a checkpoint that had this name is now, still whole."""
        old = files.temp_name(target, "old") if os.path.lexists(target) else None
        if old is not None:
            files.rename(target, old)
        try:
            files.rename(temp, target)
        except OSError:
            if old is not None:
                # If even this fails, latest() finds the old one and clean() puts it back.
                with contextlib.suppress(OSError):
                    files.rename(old, target)
            raise
        files.fsync_dir(self.path)
        return old

    def _point(self, pointer: str, name: str) -> None:
        files.write_bytes_atomic(self.path / pointer, f"{name}\n".encode())

    def _retire(self, step: int, keep_last: int) -> None:
        # Steps beyond `step` belong to a branch the user went back from: not ours to count or to delete.
        done = [folder for folder in self.checkpoints() if int(folder.name[5:]) <= step]
        keep = {self._pointed("latest"), self._pointed("best")}  # or an error, and nothing is removed
        for folder in done[:-keep_last]:
            if folder.name not in keep:
                dying = files.temp_name(folder)  # half a checkpoint must never bear a checkpoint's name
                files.rename(folder, dying)
                files.remove(dying)

    def clean(self) -> list[str]:
        """Remove what dead writers left behind, put back a checkpoint caught while being replaced; returns
        the names.

        Takes the lock; not for use during :meth:`save`. Raises LockError, StorageError.
        """
        self.lock()
        gone = []
        try:
            for entry in sorted(os.listdir(self.path)):
                match = _TEMP.fullmatch(entry)
                if match is None or _alive(int(match[3])):
                    continue
                target = self.path / match[1]
                if match[2] == "old" and not os.path.lexists(target):
                    files.rename(self.path / entry, target)
                else:
                    files.remove(self.path / entry)
                gone.append(entry)
        except OSError as error:
            raise files.storage_error("removing stale files", self.path, error) from error
        return gone

    # --- reading --------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Folders ``step-N``, by rising N; not verified."""
        try:
            with os.scandir(self.path) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return []
        return [self.path / name for name in sorted(filter(_STEP.fullmatch, names), key=lambda n: int(n[5:]))]

    def latest(self) -> tuple[Path, list[str]]:
        """The checkpoint to resume from, verified, and one line for each thing that was wrong on the way.

        Follows ``RUN/latest``; if that checkpoint is damaged, the one before it, and so on.
        Raises CheckpointError when no checkpoint verifies.
        """
        while True:
            before = self._snapshot()
            found, warnings = self._verified(before[0])
            # A writer may have replaced or removed what we were reading: judge again by what is there now.
            if (found is not None and found.name == before[0]) or self._snapshot() == before:
                break
        if found is None:
            raise CheckpointError("; ".join(warnings) or f"{self.path}: no checkpoint in this run folder")
        return found, warnings

    def best(self) -> Path:
        """The checkpoint ``RUN/best`` names, verified; raises CheckpointError if there is none or it is
        damaged.
        """
        try:
            name = self._pointed("best")
        except OSError as error:
            raise CheckpointError(f"{self.path / 'best'}: {error.strerror or error}") from error
        if name is None:
            raise CheckpointError(f"{self.path}: no checkpoint is marked best")
        manifest.verify(self.path / name)
        return self.path / name

    def _pointed(self, pointer: str) -> str | None:
        """What a pointer file names, None if it is not there; OSError if it is unreadable or altered."""
        path = self.path / pointer
        try:
            text = files.read_bytes(path, 64).decode("ascii", "replace")
        except FileNotFoundError:
            return None
        if not text.endswith("\n") or not _STEP.fullmatch(text[:-1]):
            raise OSError(errno.EINVAL, "does not name a checkpoint", str(path))
        return text[:-1]

    def _snapshot(self) -> tuple[str | None, list[tuple[str, int]]]:
        there = []
        for folder in self.checkpoints():
            with contextlib.suppress(OSError):
                there.append((folder.name, folder.stat().st_ino))
        try:
            return self._pointed("latest"), there
        except OSError:  # a damaged pointer is as good as none: the newest checkpoint then
            return None, there

    def _verified(self, pointed: str | None) -> tuple[Path | None, list[str]]:
        folders = self.checkpoints()[::-1]
        warnings = []
        if pointed is None:
            if folders:
                warnings.append(f"{self.path / 'latest'}: missing or altered")
        else:
            limit = int(pointed[5:])
            # The pointed one, those before it, and only then any later ones.
            folders.sort(key=lambda folder: int(folder.name[5:]) > limit)
            target = self.path / pointed
            if target not in folders:
                # Caught between the two renames of a replacement, the old one is as good as ever.
                folders = [*sorted(self.path.glob(f"{pointed}.old.*")), *folders]
                if not folders or folders[0].name.split(".")[0] != pointed:
                    warnings.append(f"{target}: missing, though {self.path / 'latest'} names it")
        for folder in folders:
            try:
                manifest.verify(folder)
            except CheckpointError as error:
                warnings.append(str(error))
            else:
                if warnings:
                    warnings.append(f"using {folder.name} instead")
                return folder, warnings
        return None, warnings


def _alive(pid: int) -> bool:
    """Whether another process with this id runs; our own id, reused after a restart, counts as dead."""
    return pid != os.getpid() and system.process_runs(pid)


def find_newest_run(root: Path | str = "runs") -> Path:
    """The run folder below `root` that saved last and whose newest checkpoint verifies.

    Raises CheckpointError, with what to do, when there is none.
    """
    root = Path(root)
    advice = "train one first (microgpt train) or name a model folder"
    runs: list[tuple[int, str, Path]] = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        for place in (folder / "latest", *RunFolder(folder).checkpoints()[-1:]):
            with contextlib.suppress(OSError):
                runs.append((place.stat().st_mtime_ns, folder.name, folder))
                break
    problems = []
    for _, _, folder in sorted(runs, reverse=True):
        try:
            RunFolder(folder).latest()
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return folder
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise CheckpointError(f"no run with a usable checkpoint in {root}{detail}; {advice}")

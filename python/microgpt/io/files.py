"""The few file-system calls that durable files are made of.

Everything that changes the disk for a checkpoint goes through here, so that a test can make the Nth call
fail. The functions raise plain :class:`OSError`; :func:`storage_error` turns one into the error a user sees.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from microgpt import system
from microgpt.errors import StorageError

# NONBLOCK: opening a FIFO must not wait for its other end; it means nothing for a regular file.
_READ = system.flags("RDONLY", "NOFOLLOW", "NONBLOCK", "CLOEXEC")
_CREATE = system.flags("WRONLY", "CREAT", "EXCL", "NOFOLLOW", "CLOEXEC")
_CHUNK = 1 << 20


def open_regular(path: Path, follow: bool = False) -> int:
    """Open a regular file for reading; returns the descriptor. A symlink at `path` is an error unless `follow`.

    Raises OSError (ELOOP for a symlink, EINVAL for a folder, FIFO or device).
    """
    return _open_regular(path, _READ & ~system.flags("NOFOLLOW") if follow else _READ, follow)


def _open_regular(path: Path, how: int, follow: bool = False) -> int:
    if not system.POSIX and not follow and path.is_symlink():  # no O_NOFOLLOW there
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    fd = os.open(path, how)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_bytes(path: Path, limit: int, follow: bool = False) -> bytes:
    """The whole regular file, at most `limit` bytes (OSError EFBIG beyond it). `follow`: see open_regular."""
    with os.fdopen(open_regular(path, follow), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return data


def write_new(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    """Create `path` (it must not exist, not even as a symlink), write all chunks; returns the bytes written.

    The mode is 0666 less the umask. The data are not yet durable: call :func:`fsync_file`.
    """
    fd = os.open(path, _CREATE, 0o666)
    total = 0
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            while len(view):
                done = os.write(fd, view)  # a full disk may take only a part before it says so
                if done <= 0:
                    raise OSError(errno.EIO, "write made no progress", str(path))
                view = view[done:]
                total += done
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)  # NFS and quotas report a failed write here
    return total


def fsync_file(path: Path) -> None:
    """Make the content of a regular file durable."""
    # Windows flushes only what may be written.
    fd = open_regular(path) if system.POSIX else _open_regular(path, system.flags("RDWR"))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable; Windows cannot open folders, there it is left to the file system."""
    if not system.POSIX:
        return
    fd = os.open(path, system.flags("RDONLY", "DIRECTORY", "CLOEXEC"))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path) -> None:
    """Create one folder; it must not exist."""
    os.mkdir(path)


def rename(old: Path, new: Path) -> None:
    """Rename within one folder, replacing a file at `new` atomically."""
    os.replace(old, new)


def temp_name(path: Path, kind: str = "tmp") -> Path:
    """An unpredictable sibling ``NAME.KIND.PID.RANDOM`` that :meth:`RunFolder.clean` recognises."""
    return path.with_name(f"{path.name}.{kind}.{os.getpid()}.{os.urandom(6).hex()}")


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees the old content or the new, never a
    part.
    """
    temp = temp_name(path)
    try:
        write_new(temp, [data])
        fsync_file(temp)
        rename(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    fsync_dir(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a symlink (never its target) or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)


def regular_files(folder: Path) -> list[str]:
    """Names of all files below `folder`, relative, with ``/``, sorted; OSError for anything but files and
    folders.
    """
    found: list[str] = []
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    found.append(path.relative_to(folder).as_posix())
                else:
                    raise OSError(errno.EINVAL, "not a regular file", str(path))
    return sorted(found)


def sha256_file(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex) of a regular file; symlinks are refused."""
    digest, size = hashlib.sha256(), 0
    fd = open_regular(path)
    try:
        while block := os.read(fd, _CHUNK):
            digest.update(block)
            size += len(block)
    finally:
        os.close(fd)
    return size, digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes this user may still write on the file system of `path` (or of its nearest existing parent)."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def storage_error(doing: str, path: Path, error: OSError, hint: str = "") -> StorageError:
    """The :class:`StorageError` for `error`: what was being done, the path, the system's text, free space if
    full.
    """
    code = errno.errorcode.get(error.errno or 0, "OSError")
    where = error.filename if isinstance(error.filename, str) else str(path)
    full = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            full = f"; {free_bytes(path)} bytes free"
    result = StorageError(f"{doing} failed at {where}: {error.strerror or error} ({code}){full}{hint}")
    result.errno = error.errno
    return result


def preflight(path: Path | str, bytes_needed: int) -> None:
    """Check that `bytes_needed` more bytes fit on the file system of `path`; raises StorageError with both
    figures.
    """
    path = Path(path)
    try:
        free = free_bytes(path)
    except OSError as error:
        raise storage_error("measuring free space", path, error) from error
    if free < bytes_needed:
        raise StorageError(f"not enough free space at {path}: {bytes_needed} bytes needed, {free} bytes free")

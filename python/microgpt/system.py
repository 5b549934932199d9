"""What differs between operating systems, on the Python side; runtime/platform.cpp is the same in C++."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Result = TypeVar("Result")

#: Directories can be opened and made durable; files can be flushed through any descriptor.
POSIX = os.name == "posix"

_LOCKED_BYTE = 1 << 30  # Windows locks bytes and refuses to read them: one beyond what anybody reads


def flags(*names: str) -> int:
    """The ``os.O_…`` flags of these names, less what this system does not know; always binary."""
    value = getattr(os, "O_BINARY", 0)
    for name in names:
        value |= getattr(os, f"O_{name}", 0)
    return int(value)


def read_at(fd: int, target: memoryview, at: int) -> int:
    """Read from place `at` of an open file into `target`, as much as comes at once; 0 at the end. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [target], at)
    os.lseek(fd, at, os.SEEK_SET)
    data = os.read(fd, len(target))
    target[: len(data)] = data
    return len(data)


def try_lock(fd: int) -> bool:
    """Lock an open file until it is closed; False if another process has the lock. Raises OSError."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def process_runs(pid: int) -> bool:
    """Whether a process with this id runs; one that we may not signal counts."""
    if sys.platform == "win32":  # os.kill would end it
        import ctypes

        limited_information, still_active = 0x1000, 259
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        handle = kernel.OpenProcess(limited_information, False, pid)
        if not handle:
            return ctypes.get_last_error() == 5  # access denied: it is there
        code = ctypes.c_ulong()
        got = kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
        kernel.CloseHandle(ctypes.c_void_p(handle))
        return bool(got) and code.value == still_active
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def allowed_cpus() -> int:
    """How many processors this process may use."""
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask else os.cpu_count() or 1


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all and free for use, from the kernel; None where it does not say."""
    found: dict[str, int] = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None, None
    return found.get("MemTotal"), found.get("MemAvailable")


class Beside(Generic[Result]):
    """A call in a thread of its own beside a `with` block, which waits for it; called afterwards gives its result.

    An exception of the call precedes one of the block: it is raised where the block ends. Where there is no thread to
    be had, the call is made first.

        with Beside(read_names) as names:
            weights = read_weights()
        return names(), weights
    """

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._thread: threading.Thread | None = threading.Thread(target=self._run)
        self._found: list[Result] = []
        self._error: BaseException | None = None

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except BaseException as error:  # raised again in the thread that asked
            self._error = error

    def __enter__(self) -> Beside[Result]:
        assert self._thread
        try:
            self._thread.start()
        except RuntimeError:  # no thread to be had
            self._thread = None
            self._run()
            self._raise()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread:
            self._thread.join()
        if error is None or isinstance(error, Exception):  # an interrupt precedes
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error from None

    def __call__(self) -> Result:
        return self._found[0]

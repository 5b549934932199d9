"""Chat templates, rendered in a process of their own: they are programs from files that nobody vouches for.

The process has no microgpt, no files, no network, and limits on time and memory (template_worker.py). It starts with
the first template and is replaced when one kills it; a caller waits a few seconds at most.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from microgpt.errors import MissingExtraError, TemplateError

_PATIENCE = 5.0  # seconds a caller waits: for the start of the process and an answer, on a busy machine
_INPUT_LIMIT = 64 << 20  # bytes of template and messages
_KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT", "TZ")  # environment of the process


class Renderer:
    """A lazily started worker; several threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, template: str, values: dict[str, Any]) -> str:
        """The text of a Jinja template with these values (JSON types only).

        Raises TemplateError: the template is broken, refuses the messages (then the message is its own), took more
        than 0.25 s or 32 MiB, or wrote more than 1 MiB (plus a multiple of the input). MissingExtraError without
        jinja2.
        """
        try:
            request = json.dumps({"template": template, "values": values}, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateError(f"chat: expected messages of JSON types: {error}") from error
        if len(request) > _INPUT_LIMIT:
            raise TemplateError(f"chat: expected at most {_INPUT_LIMIT} bytes of messages, got {len(request)}")
        with self._lock:
            answer = self._ask(request)
        if "refused" in answer:
            raise TemplateError(f"the chat template refuses these messages: {answer['refused']}")
        if "error" in answer:
            raise TemplateError(f"chat template: {answer['error']}")
        text = answer.get("text")
        if not isinstance(text, str):
            raise TemplateError("chat template: its process answered nothing")
        return text

    def close(self) -> None:
        """End the process; the next template starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._owner != os.getpid():  # a forked child has a copy of the pipes, and no process to end
            process.returncode = 0
        with contextlib.suppress(OSError):
            process.kill() if self._owner == os.getpid() else None
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        if self._owner == os.getpid():
            process.wait()

    def _ask(self, request: bytes) -> dict[str, Any]:
        process = self._worker()
        assert process.stdin is not None and process.stdout is not None
        late = threading.Timer(_PATIENCE, process.kill)  # whatever is waited for then ends
        late.daemon = True
        late.start()
        try:
            process.stdin.write(len(request).to_bytes(8, "little"))
            process.stdin.write(request)
            process.stdin.flush()
            head = process.stdout.read(8)
            data = process.stdout.read(int.from_bytes(head, "little")) if len(head) == 8 else b""
            answer = json.loads(data)
            if isinstance(answer, dict):
                return answer
        except (OSError, ValueError):
            pass
        except BaseException:  # KeyboardInterrupt in the middle of an exchange: what follows would be out of step
            self.close()
            raise
        finally:
            late.cancel()
        code = process.wait()
        self.close()
        if code == getattr(signal, "SIGPROF", 0) * -1:
            raise TemplateError("chat template: it takes more than 0.25 seconds")
        if code == 3:
            raise MissingExtraError("chat templates need jinja2; pip install jinja2")
        raise TemplateError(f"chat template: its process ended with code {code}; it takes too much memory or time")

    def _worker(self) -> subprocess.Popen[bytes]:
        if self._process is not None and (self._owner != os.getpid() or self._process.poll() is not None):
            self.close()
        if self._process is None:
            script = Path(__file__).with_name("template_worker.py")
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(script), json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                start_new_session=True,  # Ctrl-C is for whoever waits, not for the worker
            )
        return self._process


RENDERER = Renderer()
atexit.register(RENDERER.close)

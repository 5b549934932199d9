"""The child's end of a comparison: JSON lines in on stdin, one JSON line out for each.

Requests have `do`: "run" times the step that is set up, anything else is one of the child's own. An exception becomes
{"error": text}; the child goes on. When stdin ends, so does the child.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]
Step = Callable[[], object]

WARM = 0.02  # seconds: a step that takes longer is not run once more before each timing


def timed(step: Step, seconds: float) -> tuple[float, int]:
    """Mean seconds of a call and the number of calls that `seconds` allow, at least one."""
    count = 0
    start = now = time.perf_counter()
    while now - start < seconds or not count:
        for _ in range(max(1, count // 4)):
            step()
            count += 1
        now = time.perf_counter()
    return (now - start) / count, count


class Server:
    """Answers requests until stdin ends. A handler sets `step` to what "run" shall time."""

    def __init__(self, hello: dict[str, Any], handlers: dict[str, Handler]) -> None:
        self.step: Step | None = None
        self._last = 0.0
        self._handlers: dict[str, Handler] = {"run": self._run, **handlers}
        # What libraries print must not be mistaken for an answer.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._answer(hello)

    def prepare(self, step: Step) -> None:
        """Make `step` what is timed, after a call or two that find memory and caches."""
        step()
        self.step = step
        self._last = timed(step, 0.0)[0]

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.step is None:
            raise RuntimeError("nothing is set up")
        if self._last < WARM:
            self.step()
        self._last, calls = timed(self.step, float(request["seconds"]))
        return {"seconds": self._last, "calls": calls}

    def _answer(self, values: dict[str, Any]) -> None:
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()

    def serve(self) -> None:
        """Until stdin ends."""
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = self._handlers[request["do"]](request)
            except Exception as error:  # the driver decides what a failed case means
                self.step = None
                text = " ".join(str(error).split())
                answer = {"error": f"{type(error).__name__}: {text[:300]}"}
            self._answer(answer)

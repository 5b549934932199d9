"""llama.cpp as a rival: its own llama-bench and llama-batched-bench, run once for each turn.

Its process is warm where it matters: each run warms up first and reads the model from the file cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ..errors import ConfigError

NAME = "llama.cpp"
CACHES = {None: "f16", "float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}  # its own names of what caches hold


def find(path: str | None) -> str | None:
    """llama-bench at `path`, or on PATH; None where neither is. Raises ConfigError for a path that cannot be run."""
    if path is None:
        return shutil.which("llama-bench")
    place = str(Path(path) / "llama-bench") if Path(path).is_dir() else path
    if shutil.which(place) is None:
        raise ConfigError(f"--llama-bench: expected the program llama-bench or its folder, got {path!r}")
    return place


class LlamaCpp:
    """Answers as a child does: `case` says what is run, each "run" is a process of its own. Errors: {"error": text}."""

    def __init__(self, program: str, gguf: Path, threads: int, kv_dtype: str | None, timeout: float) -> None:
        self.pid = os.getpid()  # what it starts counts as ours
        self._program, self._timeout = program, timeout
        cache = CACHES[kv_dtype]
        self._common = ["-m", str(gguf), "-t", str(threads), "-ctk", cache, "-ctv", cache, "-fa", "1"]
        self._command: list[str] = []
        self._tokens = 0

    @property
    def batched(self) -> str:
        """The program for several sequences, beside the other."""
        return str(Path(self._program).with_name("llama-batched-bench"))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """`case`: set up; `run`: seconds of its tokens."""
        try:
            return self._case(request) if request["do"] == "case" else self._run()
        except (OSError, ValueError, KeyError, IndexError, subprocess.SubprocessError) as error:
            text = " ".join(str(error).split())
            return {"error": f"{type(error).__name__}: {text[:300]}"}

    def settle(self) -> None:
        """Nothing of it runs between two turns."""

    def stop(self) -> None:
        """Nothing of it runs."""

    def _case(self, request: dict[str, Any]) -> dict[str, Any]:
        tokens, sequences, past = (int(request[name]) for name in ("tokens", "sequences", "past"))
        self._tokens = tokens * sequences
        if request["kind"] == "prompt":
            given = ["-p", str(tokens), "-n", "0", "-r", "1", "-o", "json"]
        elif sequences == 1 and not past:
            given = ["-p", "0", "-n", str(tokens), "-r", "1", "-o", "json"]
        else:
            sizes = ["-npp", past, "-ntg", tokens, "-npl", sequences, "-c", (past + tokens) * sequences]
            self._command = [self.batched, *self._common, *map(str, sizes), "--output-format", "jsonl"]
            if shutil.which(self.batched) is None:
                raise OSError(f"{self.batched} is not there")
            return {}
        self._command = [self._program, *self._common, *given]
        return {}

    def _run(self) -> dict[str, Any]:
        done = subprocess.run(self._command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=self._timeout, check=False)  # fmt: skip
        if done.returncode:
            words = [line for line in done.stderr.split("\n") if line.strip()] or ["no words"]
            return {"error": f"{Path(self._command[0]).name} ended with code {done.returncode}: {words[-1][-200:]}"}
        if self._command[0] == self.batched:
            lines = [json.loads(line) for line in done.stdout.split("\n") if line.strip().startswith("{")]
            rate = float(lines[-1]["speed_tg"])
        else:
            rate = float(json.loads(done.stdout)[0]["avg_ts"])
        return {"seconds": self._tokens / rate, "calls": 1}

"""What the tests of the command line share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

import microgpt
from microgpt.cli import cli

TINY = ["--layers", "1", "--width", "8", "--heads", "2", "--steps", "3", "--num-samples", "0"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def environment(**more: str) -> dict[str, str]:
    paths = [str(Path(microgpt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def shell(*arguments: str, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "microgpt", *arguments],
        cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

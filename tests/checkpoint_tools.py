"""What the tests of run folders share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from microgpt.io import files
from microgpt.io.checkpoint import RunFolder, verify


def writer(text: str, size: int = 3000) -> Callable[[Path], dict[str, str]]:
    """A `write` for RunFolder.save: two files, one of them in a subfolder."""

    def write(folder: Path) -> dict[str, str]:
        files.write_new(folder / "model.bin", [(text.encode() * size)[:size]])
        (folder / "trainer").mkdir()
        files.write_new(folder / "trainer" / "state.json", [json.dumps({"text": text}).encode()])
        return {"text": text}

    return write


def text_of(folder: Path) -> str:
    """The text that a checkpoint was written with, after checking all of it."""
    found = str(verify(folder)["info"]["text"])
    assert json.loads((folder / "trainer/state.json").read_text())["text"] == found
    return found


def names(run: RunFolder) -> list[str]:
    return [folder.name for folder in run.checkpoints()]


def stale(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if ".tmp." in name or ".old." in name]

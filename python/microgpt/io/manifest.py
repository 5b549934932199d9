"""``manifest.json``: the last file of a checkpoint, which proves that all the others are there, whole and
unaltered.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microgpt.errors import CheckpointError
from microgpt.io import files
from microgpt.io.sealed import seal, unseal

FORMAT_VERSION = 1
NAME = "manifest.json"


def build(folder: Path, step: int, version: str, info: Mapping[str, Any]) -> bytes:
    """The manifest of the files now in `folder`: format version, writer, step, `info`, size and SHA-256 of
    each file.
    """
    listed = {}
    for name in files.regular_files(folder):
        size, digest = files.sha256_file(folder / name)
        listed[name] = {"size": size, "sha256": digest}
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "microgpt_version": version,
        "step": step,
        "info": dict(info),
        "files": listed,
    }
    return seal(content)


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, itself proven unaltered.

    Raises CheckpointError when it is missing, unreadable, altered, or of another format version.
    """
    path = folder / NAME

    def check(content: dict[str, Any]) -> None:
        if (found := content.get("format_version")) != FORMAT_VERSION:
            writer = f"written by microgpt {content.get('microgpt_version')!s:.40}"
            raise CheckpointError(f"{path}: expected format_version {FORMAT_VERSION}, got {found!r:.40} ({writer})")

    content = unseal(path, CheckpointError, f"{folder.name} is not a complete checkpoint", check)
    listed = content.get("files")
    if not isinstance(listed, dict) or not all(_sound(name, entry) for name, entry in listed.items()):
        raise CheckpointError(f"{path}: 'files' must map plain relative names to a size and a sha256")
    return content


def _sound(name: str, entry: object) -> bool:
    inside = bool(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")
    return (
        inside
        and isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256"), str)
    )


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest and return the manifest.

    Raises CheckpointError naming the first file that is missing, truncated, grown or altered.
    """
    content = read(folder)
    for name, expected in content["files"].items():
        path = folder / name
        try:
            size, digest = files.sha256_file(path)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: missing (its manifest lists {expected['size']} bytes)") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read: {error.strerror or error}") from error
        if size != expected["size"]:
            what = "truncated" if size < expected["size"] else "altered"
            raise CheckpointError(f"{path}: {what}: expected {expected['size']} bytes, found {size}")
        if digest != expected["sha256"]:
            wanted = expected["sha256"][:12]
            raise CheckpointError(f"{path}: altered: expected sha256 {wanted}…, found {digest[:12]}…")
    return content

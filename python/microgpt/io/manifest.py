"""``manifest.json``: the last file of a checkpoint, which proves that all the others are there, whole and
unaltered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microgpt.errors import CheckpointError
from microgpt.io import files

FORMAT_VERSION = 1
NAME = "manifest.json"
_LIMIT = 64 << 20  # bytes; a manifest takes about 120 a file


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


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
    return _text(content | {"sha256": hashlib.sha256(_text(content)).hexdigest()})


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, itself proven unaltered.

    Raises CheckpointError when it is missing, unreadable, altered, or of another format version.
    """
    path = folder / NAME
    try:
        data = files.read_bytes(path, _LIMIT)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; {folder.name} is not a complete checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror or error}") from error
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: altered or truncated: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: altered: expected an object, got {type(content).__name__}")
    found = content.get("format_version")
    # Before the checksum: a later version may well define that differently.
    if found != FORMAT_VERSION:
        writer = content.get("microgpt_version")
        raise CheckpointError(
            f"{path}: expected format_version {FORMAT_VERSION}, got {found!r:.40} (written by microgpt {writer!s:.40})"
        )
    body = {key: value for key, value in content.items() if key != "sha256"}
    try:
        # The bytes too, so that no change hides in white space or in another spelling of a number.
        same = content.get("sha256") == hashlib.sha256(_text(body)).hexdigest() and _text(content) == data
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise CheckpointError(f"{path}: altered: its content does not match its own sha256")
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

"""A JSON object that carries its own SHA-256: manifests, which prove that other files are whole and unaltered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from microgpt.errors import MicrogptError
from microgpt.io import files

LIMIT = 64 << 20  # bytes; a manifest takes about 120 a file


def seal(content: Mapping[str, Any]) -> bytes:
    """The bytes of `content` with its `sha256`. Raises TypeError, ValueError for what is not finite JSON."""
    return _text({**content, "sha256": hashlib.sha256(_text(content)).hexdigest()})


def unseal(
    path: Path, fail: type[MicrogptError], incomplete: str, check: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The object in `path`, proven unaltered. `check` looks at its format and version first: a later version may well
    define the checksum differently.

    Raises `fail` when the file is missing (which means `incomplete`), unreadable, or altered.
    """
    try:
        data = files.read_bytes(path, LIMIT)
    except FileNotFoundError as error:
        raise fail(f"{path}: missing; {incomplete}") from error
    except OSError as error:
        raise fail(f"{path}: cannot read: {error.strerror or error}") from error
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise fail(f"{path}: altered or truncated: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise fail(f"{path}: altered: expected an object, got {type(content).__name__}")
    check(content)
    body = {key: value for key, value in content.items() if key != "sha256"}
    try:
        # The bytes too, so that no change hides in white space or in another spelling of a number.
        same = content.get("sha256") == hashlib.sha256(_text(body)).hexdigest() and _text(content) == data
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise fail(f"{path}: altered: its content does not match its own sha256")
    return content


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

"""Reading documents: the bundled names, a text file, or a folder of text files."""

from __future__ import annotations

import os
import stat
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microgpt import system
from microgpt.errors import ConfigError, DataError, nearest

Documents = Literal["auto", "line", "file"]

BUNDLED = {"names": "names.txt"}

_SUFFIXES = {
    *(".txt", ".text", ".md", ".rst", ".tex", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml"),
    *(".ini", ".html", ".xml", ".css", ".sql", ".sh", ".py", ".pyx", ".c", ".h", ".cc", ".cpp", ".hpp"),
    *(".cu", ".rs", ".go", ".java", ".js", ".ts", ".rb", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".kt"),
}
# A list of names or words, as opposed to prose: short lines, at least two.
_LONGEST_LINE, _MEDIAN_LINE = 64, 24


@dataclass(frozen=True)
class Corpus:
    """Documents, where they came from, and how they were cut.

    `kind` is "line" (each non-blank line is a document, white space around it removed) or "file" (each file
    is one, unchanged but for a byte-order mark); `skipped` counts the binary files left out of a folder.
    """

    documents: list[str]
    source: str
    kind: Literal["line", "file"]
    skipped: int = 0


def read_documents(source: str | os.PathLike[str], documents: str = "auto") -> Corpus:
    """Read a corpus: "names" (bundled), a UTF-8 text file, or a folder (its text files, recursively, sorted).

    `documents` is "line", "file" or "auto": lines when every file looks like a list of short entries.
    Raises DataError when the source is missing, unreadable, empty, binary or not UTF-8 (with the byte
    offset).
    """
    if documents not in ("auto", "line", "file"):
        hint = nearest(documents, ("auto", "line", "file"))
        raise ConfigError(f"documents: expected 'auto', 'line' or 'file', got {documents!r}{hint}")
    name = os.fspath(source)
    path = Path(__file__).parent / BUNDLED[name] if name in BUNDLED else Path(name)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            names = ", ".join(sorted(BUNDLED)) + nearest(name, BUNDLED)
            raise DataError(f"no data {name!r}: expected a file, a folder, or one of: {names}") from error
        raise _unreadable(path, error) from error
    skipped = 0
    if stat.S_ISDIR(mode):
        texts, skipped = _read_folder(path)
    else:
        data = _read_file(path)
        if b"\0" in data:
            raise DataError(f"{path}: expected text, found a binary file (NUL at byte {data.index(0)})")
        texts = [_decode(path, data)]
    if not any(texts):
        raise DataError(f"{name}: empty (0 bytes of text)")
    if not any(text.strip() for text in texts):
        raise DataError(f"{name}: nothing but white space")
    texts = [text for text in texts if text.strip()]
    if documents == "line" or (documents == "auto" and all(map(_is_list, texts))):
        found = [line.strip() for text in texts for line in text.split("\n") if line.strip()]
        return Corpus(found, name, "line", skipped)
    return Corpus(texts, name, "file", skipped)


def _is_list(text: str) -> bool:
    lengths = [len(line.strip()) for line in text.split("\n") if line.strip()]
    return len(lengths) >= 2 and max(lengths) <= _LONGEST_LINE and statistics.median(lengths) <= _MEDIAN_LINE


def _read_folder(folder: Path) -> tuple[list[str], int]:
    """The texts of all text files below `folder`, by sorted path, and how many were binary; hidden ones are
    ignored.
    """
    paths: list[Path] = []

    def failed(error: OSError) -> None:
        raise _unreadable(Path(error.filename), error) from error

    for place, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in names if Path(name).suffix.lower() in _SUFFIXES and name[0] != "."]
        paths += [Path(place, name) for name in names]
    texts, skipped = [], 0
    for path in sorted(paths):
        data = _read_file(path)
        if b"\0" in data:
            skipped += 1
        else:
            texts.append(_decode(path, data))
    if not texts:
        found = f"{skipped} binary files" if skipped else "none"
        raise DataError(f"{folder}: expected text files (*.txt, *.md, *.py…) in this folder, found {found}")
    return texts, skipped


def _read_file(path: Path) -> bytes:
    try:
        # NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, system.flags("RDONLY", "NONBLOCK", "CLOEXEC"))
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{path}: expected a text file, found something that is not a regular file")
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        bad = data[error.start]
        raise DataError(
            f"{path}: not UTF-8: byte 0x{bad:02x} at byte offset {error.start}; convert it to UTF-8 first"
        ) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: vanished while it was being read")
    return DataError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}")

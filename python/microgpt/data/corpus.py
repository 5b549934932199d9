"""Documents of a source: bundled or standard-library text, a file, a folder, records, or a hub data set."""

from __future__ import annotations

import hashlib
import os
import stat
import statistics
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microgpt.data import files, records
from microgpt.data.files import BinaryFile, Piece, Stamps, unreadable
from microgpt.errors import ConfigError, DataError, nearest

Documents = Literal["auto", "line", "file"]
Kind = Literal["line", "file", "record"]

BUNDLED = {"names": "names.txt"}
STDLIB = "stdlib"
KNOWN = (*BUNDLED, STDLIB)

_TEXT = {
    *(".txt", ".text", ".md", ".rst", ".tex", ".json", ".yaml", ".yml", ".toml"),
    *(".ini", ".html", ".xml", ".css", ".sql", ".sh", ".py", ".pyx", ".c", ".h", ".cc", ".cpp", ".hpp"),
    *(".cu", ".rs", ".go", ".java", ".js", ".ts", ".rb", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".kt"),
}
_RECORDS: dict[str, Callable[[Path, Stamps, records.Say], Iterator[str]]] = {
    ".jsonl": records.json_lines,
    ".ndjson": records.json_lines,
    ".csv": records.csv_rows,
    ".tsv": records.csv_rows,
    ".parquet": records.parquet_rows,
}
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
# A list of names or words, as opposed to prose: short lines, at least two.
_LONGEST_LINE, _MEDIAN_LINE = 64, 24


class Reader:
    """The documents of one source, streamed from the beginning each time they are asked for.

    `kind` is "line" (each non-blank line is a document, white space around it removed), "file" (each file is
    one, unchanged but for a byte-order mark) or "record". With `dedup` a document whose text came before is
    left out; that takes about 100 bytes of memory a document. After a pass, `found` counts the documents,
    `skipped` the binary files left out of a folder and `duplicates` the documents left out.
    """

    def __init__(self, name: str, documents: str, dedup: bool, say: records.Say) -> None:
        self.name, self.dedup = name, dedup
        self.found = self.skipped = self.duplicates = 0
        self._say = say
        self._said: set[str] = set()
        self._stamps: Stamps = {}
        self._tolerant = False  # leave out what is not text
        self._paths: list[Path] | None = self._locate(name)
        self.kind: Kind = "record" if self._paths is None else self._decide(documents)

    def pieces(self) -> Iterator[Piece]:
        """All documents, long ones in pieces; DataError as :func:`open_source` says, and when there are none."""
        self.found = self.skipped = self.duplicates = 0
        seen: set[bytes] = set()
        blank = 0
        for piece in self._documents(seen):
            if piece.first and piece.last:
                if not piece.text.strip():
                    blank += len(piece.text)
                    continue
                if self.dedup and not self._new(seen, hashlib.blake2b(piece.text.encode(), digest_size=16).digest()):
                    continue
            self.found += piece.last
            yield piece
        if not self.found:
            if self._tolerant:
                found = f"{self.skipped} binary files" if self.skipped else "nothing but white space"
                raise DataError(f"{self.name}: expected text files (*.txt, *.md, *.py…) in this folder, found {found}")
            raise DataError(f"{self.name}: " + ("nothing but white space" if blank else "empty (0 bytes of text)"))

    def texts(self) -> Iterator[str]:
        """The text of all pieces."""
        return (piece.text for piece in self.pieces())

    def size(self) -> int | None:
        """Bytes of text, as far as sizes of files tell; None for gzipped files, Parquet and hub data sets."""
        if self._paths is None or any(path.suffix.lower() in (".gz", ".parquet") for path in self._paths):
            return None
        return sum(path.stat().st_size for path in self._paths if path.exists())

    def _new(self, seen: set[bytes], digest: bytes) -> bool:
        if digest in seen:
            self.duplicates += 1
            return False
        seen.add(digest)
        return True

    def _documents(self, seen: set[bytes]) -> Iterator[Piece]:
        if self._paths is None:
            yield from map(Piece, records.hub_rows(self.name, self._once))
            return
        for path in self._paths:
            read = _RECORDS.get(suffix_of(path))
            try:
                if read is not None:
                    yield from map(Piece, read(path, self._stamps, self._once))
                elif self.kind == "line":
                    yield from map(Piece, files.lines(path, self._stamps))
                elif not self.dedup or self._fresh(path, seen):
                    yield from files.whole_file(path, self._stamps)
            except BinaryFile as error:
                if not self._tolerant or error.__context__ is not None:
                    raise
                self.skipped += 1

    def _fresh(self, path: Path, seen: set[bytes]) -> bool:
        """Whether a file that comes in several pieces is new; it is read once for that."""
        digest, size = hashlib.blake2b(digest_size=16), 0
        for chunk in files.text_chunks(path, self._stamps):
            digest.update(chunk.encode())
            size += len(chunk)
        return size <= files.PIECE or self._new(seen, digest.digest())

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _locate(self, name: str) -> list[Path] | None:
        """The files to read, in order; None for a hub data set."""
        if name == STDLIB:
            self._tolerant = True
            root = Path(sysconfig.get_path("stdlib"))
            found = [path for path in _below(root, _NOT_LIBRARY) if path.suffix == ".py"]
            if not found:
                raise DataError(f"{STDLIB}: this interpreter has no Python sources below {root}")
            return found
        path = Path(__file__).parent / BUNDLED[name] if name in BUNDLED else Path(name)
        if name.startswith("hf:"):
            return None
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise unreadable(path, error) from error
            if _names_the_hub(name, path):
                return None
            near = nearest(name, KNOWN)
            if not near and path.parent.is_dir():
                near = nearest(path.name, os.listdir(path.parent))
            names = ", ".join(sorted(KNOWN))
            raise DataError(
                f"no data {name!r}: expected a file, a folder, hf:ORG/NAME, or one of: {names}{near}"
            ) from error
        if not stat.S_ISDIR(mode):
            return [path]
        self._tolerant = True
        found = [each for each in _below(path) if suffix_of(each) in _TEXT or suffix_of(each) in _RECORDS]
        if not found:
            raise DataError(f"{path}: expected text files (*.txt, *.md, *.py…) in this folder, found none")
        return found

    def _decide(self, documents: str) -> Kind:
        assert self._paths is not None
        texts = [path for path in self._paths if suffix_of(path) not in _RECORDS]
        if not texts:
            return "record"
        if documents != "auto":
            return "line" if documents == "line" else "file"
        lists = 0
        for path in texts:
            try:
                text, whole = files.head(path, self._stamps)
            except BinaryFile:
                if not self._tolerant:
                    raise
                continue
            if text.strip():
                if not _is_list(text if whole else text[: text.rfind("\n") + 1]):
                    return "file"
                lists += 1
        return "line" if lists else "file"


@dataclass(frozen=True)
class Corpus:
    """All documents of a source in memory; see :class:`Reader` for `kind` and `skipped`."""

    documents: list[str]
    source: str
    kind: Kind
    skipped: int = 0


def open_source(
    source: str | os.PathLike[str], documents: str = "auto", dedup: bool = False, say: records.Say | None = None
) -> Reader:
    """The documents of "names" (bundled), "stdlib" (this interpreter's standard library, a file a document,
    tests left out), a UTF-8 text file, JSON lines, CSV, Parquet, .gz of these, a folder of them (recursively,
    sorted), or a hub data set.

    `documents` is "line", "file" or "auto" for text: lines when every file looks like a list of short
    entries (by its first million characters). Raises DataError when the source is missing, unreadable, empty,
    binary, not UTF-8 (with the byte offset), malformed (with the line) or changes while it is read.
    """
    if documents not in ("auto", "line", "file"):
        hint = nearest(documents, ("auto", "line", "file"))
        raise ConfigError(f"documents: expected 'auto', 'line' or 'file', got {documents!r}{hint}")
    return Reader(os.fspath(source), documents, dedup, say or (lambda line: None))


def read_documents(source: str | os.PathLike[str], documents: str = "auto") -> Corpus:
    """All documents of a source as :func:`open_source` finds them, in memory."""
    reader = open_source(source, documents)
    found: list[str] = []
    parts: list[str] = []
    for piece in reader.pieces():
        parts.append(piece.text)
        if piece.last:
            found.append("".join(parts))
            parts.clear()
    return Corpus(found, reader.name, reader.kind, reader.skipped)


def suffix_of(path: Path) -> str:
    """A file's suffix in small letters, that before .gz if it is gzipped."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def _is_list(text: str) -> bool:
    lengths = [len(line.strip()) for line in text.split("\n") if line.strip()]
    return len(lengths) >= 2 and max(lengths) <= _LONGEST_LINE and statistics.median(lengths) <= _MEDIAN_LINE


def _names_the_hub(name: str, path: Path) -> bool:
    known = path.suffix.lower() in {*_TEXT, *_RECORDS, ".gz"}
    return not known and not path.parent.exists() and records.HUB_ID.fullmatch(name) is not None


def _below(folder: Path, without: set[str] | None = None) -> list[Path]:
    """All files below `folder`, sorted; hidden ones and folders named in `without` are ignored."""
    found: list[Path] = []

    def failed(error: OSError) -> None:
        raise unreadable(Path(error.filename), error) from error

    for place, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in (without or ())]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)

"""Text files, plain or gzipped, read in pieces: bounded memory, and every defect named with its place."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from microgpt import system
from microgpt.errors import DataError

PIECE = 1 << 18  # characters that are tokenized together
_CHUNK = 1 << 20  # bytes read at a time
_HEAD = 4 << 20  # characters looked at before anything of a file is handed on
_LONGEST = 16 * PIECE  # of text without a place to cut
LONGEST_LINE = 64 << 20  # bytes

_PLACE = re.compile(r"\S(?=[ \n])")  # the end of a word: text may be cut behind it

Stamps = dict[Path, tuple[int, int]]  # size and time of change of the files that were read


class ByteStream(Protocol):
    """What is read from."""

    def read(self, size: int = -1, /) -> bytes: ...

    def readline(self, size: int = -1, /) -> bytes: ...


class Piece(NamedTuple):
    """A part of a document, or all of it; parts of one document come one after another."""

    text: str
    first: bool = True
    last: bool = True


class BinaryFile(DataError):
    """A file that is not text."""


@contextlib.contextmanager
def opened(path: Path, stamps: Stamps) -> Iterator[ByteStream]:
    """The bytes of a regular file, unpacked if its name ends in .gz.

    Raises DataError when it cannot be read, is no regular file, is damaged, or changes while it is read
    or after `stamps` knew it.
    """
    try:
        # NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | system.flags("NONBLOCK", "CLOEXEC"))
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: expected a text file, found something that is not a regular file")
            stamp = status.st_size, status.st_mtime_ns
            if stamps.setdefault(path, stamp) != stamp:
                raise DataError(f"{path}: changed since it was first read; start again with the new content")
            if path.suffix.lower() == ".gz":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked
            else:
                yield file
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != stamp:
                raise DataError(
                    f"{path}: changed while it was being read ({stamp[0]} bytes at first, {status.st_size} at the end)"
                )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or not gzip: {error}") from error
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """The DataError for a file that the system does not give."""
    if isinstance(error, FileNotFoundError):
        what = "a link to a file that is not there" if path.is_symlink() else "vanished while it was being read"
        return DataError(f"{path}: {what}")
    return DataError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}")


def not_utf8(path: Path, byte: int, offset: int) -> DataError:
    """The DataError for a byte that is not UTF-8, by its offset in the (unpacked) file."""
    return DataError(f"{path}: not UTF-8: byte 0x{byte:02x} at byte offset {offset}; convert it to UTF-8 first")


def text_chunks(path: Path, stamps: Stamps) -> Iterator[str]:
    """The text of a UTF-8 file in chunks, without a byte-order mark; BinaryFile where it holds a NUL."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, begun = 0, False
    with opened(path, stamps) as file:
        while True:
            data = file.read(_CHUNK)
            if b"\0" in data:
                place = offset + data.index(0)
                raise BinaryFile(f"{path}: expected text, found a binary file (NUL at byte {place})")
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise not_utf8(path, error.object[error.start], offset - held + error.start) from error
            offset += len(data)
            if text and not begun:
                begun, text = True, text.removeprefix("\ufeff")
            if text:
                yield text
            if not data:
                return


def head(path: Path, stamps: Stamps, limit: int = _CHUNK) -> tuple[str, bool]:
    """The text of a file's first part, about `limit` characters, and whether that is all of it."""
    found, chunks = "", text_chunks(path, stamps)
    for chunk in chunks:
        found += chunk
        if len(found) >= limit:
            return found, next(chunks, None) is None
    return found, True


def whole_file(path: Path, stamps: Stamps) -> Iterator[Piece]:
    """One document: the file, cut into pieces of about PIECE characters where that changes no token.

    The cut is before a space or newline that follows a character which is not white space: a byte-level
    BPE's words never reach across it. Only a file with four million characters and no such place is cut
    elsewhere. A NUL within the first four million characters raises BinaryFile before anything is handed on.
    """
    chunks = text_chunks(path, stamps)
    text, ended = "", False
    while not ended and len(text) < _HEAD:
        chunk = next(chunks, None)
        ended = chunk is None
        text += chunk or ""
    first, limit = True, PIECE
    while True:
        # Pieces are taken from one buffer by position: to cut the buffer itself each time would copy it each time.
        at = 0
        while len(text) - at > limit:
            end = _cut(text, at, at + limit)
            if end == at:
                if limit < _LONGEST:
                    limit *= 2
                    continue
                end = at + limit
            yield Piece(text[at:end], first, False)
            first, limit, at = False, PIECE, end
        text = text[at:]
        if ended:
            break
        chunk = next(chunks, None)
        ended = chunk is None
        text += chunk or ""
    if text or not first:
        yield Piece(text, first, True)


def _cut(text: str, begin: int, end: int) -> int:
    """The last place in begin+1…end to cut at, `begin` if there is none."""
    for near in (max(begin, end - 4096), begin):
        places = [match.end() for match in _PLACE.finditer(text, near, end + 1)]
        if places:
            return places[-1]
    return begin


def lines(path: Path, stamps: Stamps) -> Iterator[str]:
    """The lines of a text file that are not blank, without white space around them; split at newlines only."""
    rest, number = "", 0
    for chunk in text_chunks(path, stamps):
        found = (rest + chunk).split("\n") if "\n" in chunk else [rest + chunk]
        rest = found.pop()
        if len(rest) > LONGEST_LINE:
            line = number + len(found) + 1
            raise DataError(f"{path}: line {line}: longer than {LONGEST_LINE} characters; read it with documents=file")
        number += len(found)
        yield from filter(None, map(str.strip, found))
    if rest := rest.strip():
        yield rest

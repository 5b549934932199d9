"""Token stores: a folder of documents as token ids, written once, proven by a manifest, read where needed.

Files, all little-endian: ``tokens-NNNNN.bin`` (uint16 up to 65,536 ids, else int32; each full but the last),
``documents.bin`` (int64 pairs: where a document ends among the tokens and among the bytes of text),
``tokenizer.json`` and ``tokenizer_config.json``, and last ``manifest.json`` with size and SHA-256 of each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from microgpt import system
from microgpt.data.windows import Longs, spread
from microgpt.errors import ConfigError, DataError
from microgpt.io import files
from microgpt.io.sealed import seal, unseal
from microgpt.tokenizers.base import Tokenizer

FORMAT, FORMAT_VERSION = "microgpt tokens", 1
MANIFEST = "manifest.json"
SHARD_BYTES = 256 << 20
_DOCUMENTS = "documents.bin"
_IN_MEMORY = 32 << 20  # bytes of tokens, and of document ends, that are rather held than read each time


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


class _File:
    """A new file that knows its size and SHA-256."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._digest = path, 0, hashlib.sha256()
        self._file = open(path, "xb")  # noqa: SIM115 - closed by close(), or by the writer when it gives up

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += memoryview(data).nbytes

    def close(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"size": self.size, "sha256": self._digest.hexdigest()}

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class StoreWriter:
    """Writes a token store under a temporary name beside `folder`; :meth:`finish` gives it its own.

    As a context manager it leaves nothing behind when an exception passes. Raises ConfigError when `folder`
    exists, StorageError when the disk does not take it.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self._tokenizer = folder, tokenizer
        if os.path.lexists(folder):
            raise ConfigError(f"{folder}: exists already; choose another folder or remove it")
        self.tokens = self.documents = self.bytes = 0
        self._type = _dtype(tokenizer.vocab_size)
        self._per_shard = max(1, shard_bytes // self._type.itemsize)
        self._written: dict[str, dict[str, Any]] = {}
        self._shard: _File | None = None
        self._ends: list[int] = []
        with self._storing():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
            self._temp = files.temp_name(folder)
            try:
                files.make_dir(self._temp)
                self._index = _File(self._temp / _DOCUMENTS)
            except BaseException:  # a signal too
                shutil.rmtree(self._temp, ignore_errors=True)
                raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for file in filter(None, (self._shard, self._index)):
            file.abandon()
        shutil.rmtree(self._temp, ignore_errors=True)  # not there any more if all went well

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise files.storage_error("writing tokens", self.folder, error) from error

    def add(self, ids: np.ndarray[Any, Any], last: bool, text_bytes: int) -> None:
        """Append ids to the present document, which ends if `last`; `text_bytes` is what they stand for."""
        at = 0
        ids = ids.astype(self._type)
        with self._storing():
            while at < len(ids):
                if self._shard is None:
                    self._shard = _File(self._temp / f"tokens-{self.tokens // self._per_shard:05d}.bin")
                part = ids[at : at + self._per_shard - self.tokens % self._per_shard]
                self._shard.write(part.data)
                at += len(part)
                self.tokens += len(part)
                if self.tokens % self._per_shard == 0:
                    self._close_shard()
            self.bytes += text_bytes
            if last:
                self.documents += 1
                self._ends += (self.tokens, self.bytes)
                if len(self._ends) >= 1 << 16:
                    self._flush()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._written[self._shard.path.name] = self._shard.close()
            self._shard = None

    def _flush(self) -> None:
        self._index.write(np.array(self._ends, "<i8").data)
        self._ends.clear()

    def finish(self, info: dict[str, Any]) -> TokenStore:
        """Make everything durable, name the folder and open it; `info` goes into the manifest."""
        with self._storing():
            self._close_shard()
            self._flush()
            self._written[_DOCUMENTS] = self._index.close()
            self._tokenizer.save(self._temp)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                files.fsync_file(self._temp / name)
                size, digest = files.sha256_file(self._temp / name)
                self._written[name] = {"size": size, "sha256": digest}
            content = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "dtype": self._type.name,
                "tokens_per_shard": self._per_shard,
                "vocab_size": self._tokenizer.vocab_size,
                "tokenizer": self._tokenizer.fingerprint,
                "documents": self.documents,
                "tokens": self.tokens,
                "text_bytes": self.bytes,
                "info": info,
                "files": self._written,
            }
            files.write_bytes_atomic(self._temp / MANIFEST, seal(content))
            files.rename(self._temp, self.folder)
            files.fsync_dir(self.folder.parent)
        return TokenStore(self.folder)


def _remove_stale(folder: Path) -> None:
    """Remove what writers of this folder left that are dead."""
    for entry in os.listdir(folder.parent):
        match = re.fullmatch(re.escape(folder.name) + r"\.tmp\.(\d{1,10})\.[0-9a-f]{12}", entry)
        # Our own number, met again after a restart in a container, was a dead writer's.
        if match and (int(match[1]) == os.getpid() or not system.process_runs(int(match[1]))):
            shutil.rmtree(folder.parent / entry, ignore_errors=True)


def is_store(path: Path) -> bool:
    """Whether a folder claims to be a token store."""
    return (path / MANIFEST).is_file() and (path / _DOCUMENTS).exists()


class TokenStore:
    """The documents of a token store, read from disk as needed: at most 32 MiB of tokens are held in memory.

    Ids are read with `pread`, not mapped: the memory in use stays what a batch needs, and a shard that is cut
    while training raises DataError where a mapping would end the process. Raises DataError naming the file
    that is missing, of another size or version, or altered in its manifest; :meth:`verify` checks the content.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        m = self.manifest
        self.documents, self.tokens, self.bytes = m["documents"], m["tokens"], m["text_bytes"]
        self.vocab_size, self.fingerprint = m["vocab_size"], m["sha256"]
        self._type = np.dtype(m["dtype"]).newbyteorder("<")
        self._per_shard = m["tokens_per_shard"]
        self._opened: list[int] = []
        self._close = weakref.finalize(self, _close_all, self._opened)
        shards = -(-self.tokens // self._per_shard)
        if shards > len(m["files"]):
            raise DataError(
                f"{self.folder / MANIFEST}: altered: it lists fewer files than its {self.tokens} tokens take"
            )
        self._names = [f"tokens-{i:05d}.bin" for i in range(shards)]
        expected = dict.fromkeys(self._names, self._per_shard * self._type.itemsize)
        if shards:
            expected[self._names[-1]] = (self.tokens - (shards - 1) * self._per_shard) * self._type.itemsize
        expected[_DOCUMENTS] = 16 * self.documents
        for name, entry in m["files"].items():
            self._check_size(name, entry["size"])
        for name, size in expected.items():
            if m["files"].get(name, {}).get("size") != size:
                raise DataError(f"{self.folder / MANIFEST}: altered: {name} does not fit its counts")
        self._fds = [self._open(name) for name in self._names]
        self._index = self._open(_DOCUMENTS)
        self._ends: Longs | None = None
        if 16 * self.documents <= _IN_MEMORY:
            self._ends = np.append(0, self._pairs(0, self.documents)[:, 0])
        self._flat: np.ndarray[Any, Any] | None = None
        if self.tokens * self._type.itemsize <= _IN_MEMORY:
            self._flat = np.empty(self.tokens, self._type)
            for i in range(shards):  # in place: joining parts would hold everything twice
                at = i * self._per_shard
                part = self._flat[at : at + self._shard_tokens(i)]
                part[:] = np.frombuffer(self._span(at, len(part)), self._type)
            self._check_ids(self._flat, "tokens")

    def __str__(self) -> str:
        return str(self.folder)

    def _open(self, name: str) -> int:
        try:
            self._opened.append(files.open_regular(self.folder / name))
        except OSError as error:
            raise DataError(f"{self.folder / name}: cannot read: {error.strerror or error}") from error
        return self._opened[-1]

    def _shard_tokens(self, shard: int) -> int:
        return int(min(self._per_shard, self.tokens - shard * self._per_shard))

    def _check_size(self, name: str, expected: int) -> None:
        path = self.folder / name
        try:
            size = os.lstat(path).st_size
        except OSError as error:
            raise DataError(f"{path}: missing (its manifest lists {expected} bytes)") from error
        if size != expected:
            what = "truncated" if size < expected else "altered"
            raise DataError(f"{path}: {what}: expected {expected} bytes, found {size}")

    def verify(self, progress: Callable[[int], object] | None = None) -> None:
        """Check the SHA-256 of every file; DataError names the first that is altered. Calls progress(bytes)."""
        for name, entry in self.manifest["files"].items():
            path = self.folder / name
            try:
                size, digest = files.sha256_file(path)
            except OSError as error:
                raise DataError(f"{path}: cannot read: {error.strerror or error}") from error
            if (size, digest) != (entry["size"], entry["sha256"]):
                raise DataError(f"{path}: altered: expected sha256 {entry['sha256'][:12]}…, found {digest[:12]}…")
            if progress is not None:
                progress(size)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that wrote the ids."""
        return Tokenizer.load(self.folder)

    def _pairs(self, first: int, last: int) -> Longs:
        data = os.pread(self._index, 16 * (last - first), 16 * first)
        if len(data) != 16 * (last - first):
            raise DataError(f"{self.folder / _DOCUMENTS}: truncated while it was in use")
        pairs = np.frombuffer(data, "<i8").reshape(-1, 2)
        ends = pairs[:, 0]
        sound = not len(ends) or (ends[0] >= 0 and ends[-1] <= self.tokens and (np.diff(ends) >= 0).all())
        if not sound:
            raise DataError(f"{self.folder / _DOCUMENTS}: altered: documents end out of order or beyond the tokens")
        return pairs

    def offsets(self, first: int, last: int) -> Longs:
        """See TokenSource."""
        if self._ends is not None:
            return self._ends[first : last + 1]
        if first == 0:
            return np.append(0, self._pairs(0, last)[:, 0])
        return self._pairs(first - 1, last)[:, 0]

    def text_bytes(self, document: int) -> int:
        """Bytes of text of a document."""
        pairs = self._pairs(max(0, document - 1), document + 1)
        return int(pairs[-1, 1] - (pairs[0, 1] if document else 0))

    def _span(self, start: int, count: int) -> bytes:
        """The bytes of `count` ids from `start` on, across shards."""
        size, parts = self._type.itemsize, []
        while count:
            shard, at = divmod(start, self._per_shard)
            part = min(count, self._per_shard - at)
            data = os.pread(self._fds[shard], part * size, at * size) if shard < len(self._fds) else b""
            if len(data) != part * size:
                raise DataError(f"{self.folder / self._names[min(shard, len(self._fds) - 1)]}: truncated while in use")
            parts.append(data)
            start, count = start + part, count - part
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_ids(self, ids: np.ndarray[Any, Any], where: str) -> None:
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            bad = int(ids.max()) if ids.max() >= self.vocab_size else int(ids.min())
            raise DataError(
                f"{self.folder / where}: altered: expected ids from 0 to {self.vocab_size - 1}, found {bad}"
            )

    def read(self, starts: Longs, lengths: Longs) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """See TokenSource."""
        if self._flat is not None:
            at = spread(starts, lengths)
            return self._flat[at], self._flat[1:][at]
        size, pread, per_shard = self._type.itemsize, os.pread, self._per_shard
        parts = []
        for start, count in zip(starts.tolist(), (lengths + 1).tolist(), strict=True):
            shard, at = divmod(start, per_shard)
            if at + count <= per_shard:
                data = pread(self._fds[shard], count * size, at * size)
                parts.append(data if len(data) == count * size else self._span(start, count))
            else:
                parts.append(self._span(start, count))
        joined = np.frombuffer(b"".join(parts), self._type)
        self._check_ids(joined, "tokens")
        at = spread(np.cumsum(lengths + 1) - lengths - 1, lengths)
        return joined[at], joined[at + 1]


class Head:
    """The first `tokens` tokens of a store's only document."""

    def __init__(self, store: TokenStore, tokens: int) -> None:
        self.documents, self.tokens = 1, tokens
        self.fingerprint = f"{store.fingerprint}:{tokens}"
        self._store = store

    def offsets(self, first: int, last: int) -> Longs:
        """See TokenSource."""
        return np.array([0, self.tokens])[first : last + 1]

    def read(self, starts: Longs, lengths: Longs) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """See TokenSource."""
        return self._store.read(starts, lengths)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


_COUNTS = ("documents", "tokens", "text_bytes", "vocab_size", "tokens_per_shard")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST

    def check(content: dict[str, Any]) -> None:
        if content.get("format") != FORMAT:
            raise DataError(f"{path}: expected the manifest of a token store ({FORMAT!r})")
        if (found := content.get("format_version")) != FORMAT_VERSION:
            wanted = f"expected format_version {FORMAT_VERSION}, got {found!r:.40}"
            raise DataError(f"{path}: {wanted}; tokenize the text again")

    content = unseal(path, DataError, f"{folder} is not a complete token store", check)
    listed = content.get("files")
    sound = (
        all(type(content.get(key)) is int and content[key] >= (key in _COUNTS[3:]) for key in _COUNTS)
        and content.get("dtype") == _dtype(content["vocab_size"]).name
        and isinstance(listed, dict)
        and all(_sound(name, entry) for name, entry in listed.items())
    )
    if not sound:
        raise DataError(f"{path}: expected the counts, element type and files of a token store")
    return content


def _sound(name: str, entry: object) -> bool:
    plain = re.fullmatch(r"[\w-][\w.-]*", name) is not None
    return plain and isinstance(entry, dict) and type(entry.get("size")) is int and isinstance(entry.get("sha256"), str)

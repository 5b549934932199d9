"""prepare(): from the names of sources to a tokenizer and batches, in memory or on token shards."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from microgpt.data.batches import Batches, Mixture, Stream, check_weights
from microgpt.data.corpus import Reader, open_source
from microgpt.data.files import Piece
from microgpt.data.shards import Head, StoreWriter, TokenStore, is_store
from microgpt.data.split import check_fraction, held_out, split
from microgpt.data.windows import Curriculum, Ints, TokenSource
from microgpt.errors import ConfigError, DataError, TokenizerError
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.bpe import make_tokenizer

MEMORY_BYTES = 16 << 20  # of text; a larger source is tokenized into shards once
VALIDATION_TOKENS = 1 << 20  # of a source on shards that validate at most
_TOGETHER = 1 << 20  # characters handed to the tokenizer at a time
_MANY = 8192  # pieces handed to the tokenizer at a time

Say = Callable[[str], None]
Progress = Callable[[int], object]


@dataclass(frozen=True)
class DataSettings:
    """What data a run trains on, with the names of the command line. `data` may name several sources; `weights`
    then gives each its share of the training targets (equal shares without).
    """

    data: str | tuple[str, ...] = "names"
    weights: tuple[float, ...] | None = None
    documents: str = "auto"
    dedup: bool = False
    curriculum: Curriculum = "none"
    packing: bool = True
    tokenizer: str = "auto"
    vocab_size: int | None = None
    val_fraction: float = 0.1
    seed: int = 0
    block_size: int = 16
    batch_size: int = 8

    @property
    def sources(self) -> tuple[str, ...]:
        """`data` as a tuple."""
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)


@dataclass
class Prepared:
    """Data ready for the trainer. `validation` is not shuffled; None where nothing was set aside."""

    tokenizer: Tokenizer
    train: Stream
    validation: Batches | None
    summary: list[str] = field(default_factory=list)  # lines for people
    documents: int = 0
    duplicates: int = 0
    val_bytes_per_token: float | None = None  # text bytes for a validation target: nats / (this * ln 2) = bits per byte


@dataclass
class _Part:
    """One source: what trains, what validates, and how it is told."""

    name: str
    kind: str
    documents: int
    duplicates: int
    train: Sequence[Ints] | TokenSource
    left_out: np.ndarray[Any, Any] | None
    validation: list[Ints]
    validation_bytes: float
    notes: list[str] = field(default_factory=list)


def prepare(
    settings: DataSettings,
    tokenizer: Tokenizer | None = None,
    folder: Path | None = None,
    say: Say = lambda line: None,
    progress: bool = False,
) -> Prepared:
    """Read, tokenize, split and batch the sources; `tokenizer` is given when a run goes on or a model is known.

    A source of at most 16 MiB of text is held in memory. A larger one is written once as a token store,
    below ``folder/tokens`` (a temporary folder that goes at exit without `folder`), and read from there; a
    store found there is verified and used instead of the source. A source may be a token store itself.
    Raises ConfigError for settings that cannot be, DataError for sources that cannot be used, TokenizerError,
    StorageError.
    """
    check_fraction(settings.val_fraction)
    sources = settings.sources
    if not sources:
        raise ConfigError("data: expected at least one source, got none")
    check_weights(settings.weights, len(sources))
    places = [_place(folder, i, len(sources)) for i in range(len(sources))]
    found: list[Reader | TokenStore] = []
    for name, place in zip(sources, places, strict=True):
        given = is_store(Path(name))
        if given or (place is not None and place.is_dir() and any(place.iterdir())):
            store = TokenStore(name if given else place)  # type: ignore[arg-type]
            if not given:
                _same_origin(store, name, settings)
            with bar(progress, f"verifying {store.folder}", store_bytes(store)) as tick:
                store.verify(tick)
            found.append(store)
        else:
            found.append(open_source(name, settings.documents, settings.dedup, say))
    tokenizer = _tokenizer(settings, tokenizer, found, progress)
    parts = [
        _stored(settings, sources[i], each)
        if isinstance(each, TokenStore)
        else _read(settings, each, tokenizer, places[i], say, progress)
        for i, each in enumerate(found)
    ]
    return _assemble(settings, tokenizer, parts)


def _place(folder: Path | None, number: int, count: int) -> Path | None:
    if folder is None:
        return None
    return folder / "tokens" if count == 1 else folder / "tokens" / str(number)


def _origin(reader_kind: str, name: str, settings: DataSettings) -> dict[str, Any]:
    return {
        "source": name,
        "kind": reader_kind,
        **{key: getattr(settings, key) for key in ("documents", "dedup", "tokenizer", "vocab_size")},
    }


def _same_origin(store: TokenStore, name: str, settings: DataSettings) -> None:
    info = store.manifest["info"]
    wanted = _origin("", name, settings)
    changed = [f"{k} was {info.get(k)!r}, is {v!r}" for k, v in wanted.items() if k != "kind" and info.get(k) != v]
    if changed:
        raise DataError(f"{store.folder} holds tokens of other settings: {'; '.join(changed)}")


def store_bytes(store: TokenStore) -> int:
    """Bytes of all files of a store."""
    return sum(entry["size"] for entry in store.manifest["files"].values())


def _tokenizer(
    settings: DataSettings, tokenizer: Tokenizer | None, found: list[Reader | TokenStore], progress: bool
) -> Tokenizer:
    stores = [each for each in found if isinstance(each, TokenStore)]
    readers = [each for each in found if isinstance(each, Reader)]
    if tokenizer is None and stores:
        brought = [store for store in stores if store.folder in map(Path, settings.sources)]
        if brought and (settings.tokenizer in ("char", "bpe") or settings.vocab_size is not None):
            raise ConfigError(f"tokenizer: {brought[0]} brings its own; leave tokenizer and vocab_size out")
        if settings.tokenizer in ("auto", "char", "bpe"):
            tokenizer = stores[0].tokenizer()
    if tokenizer is None:
        with bar(progress, "reading text", _sizes(readers)) as tick:
            texts = (_ticked(text, tick) for reader in readers for text in reader.texts())
            lines = bool(readers) and all(reader.kind == "line" for reader in readers)
            tokenizer = make_tokenizer(settings.tokenizer, settings.vocab_size, texts, lines)
    for store in stores:
        if store.manifest["tokenizer"] != tokenizer.fingerprint:
            raise DataError(
                f"{store.folder}: written by another tokenizer ({store.vocab_size} ids) than the one in use "
                f"({tokenizer.vocab_size} ids); tokenize the text again with it"
            )
    return tokenizer


def _ticked(text: str, tick: Progress) -> str:
    tick(len(text))
    return text


def _sizes(readers: Iterable[Reader]) -> int | None:
    sizes = [reader.size() for reader in readers]
    return None if any(size is None for size in sizes) else sum(filter(None, sizes))


@contextmanager
def bar(show: bool, what: str, total: int | None) -> Iterator[Progress]:
    """A progress bar in bytes on stderr; a function to be told of each part."""
    if not show:
        yield lambda count: None
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=False, delay=2) as shown:
        yield shown.update


def encoded(pieces: Iterable[Piece], tokenizer: Tokenizer, name: str) -> Iterator[tuple[Ints, bool, int]]:
    """The ids of each piece, whether it ends its document, and its bytes of text.

    A document begins and ends with the tokenizer's control tokens where it has them. A long one comes in
    several pieces that together are the ids of the whole (for characters, and for byte-level BPE).
    """
    bos, eos = tokenizer.bos_id is not None, tokenizer.eos_id is not None
    document = 0
    for batch in _batched(pieces):
        texts = [piece.text for piece in batch]
        try:
            rows = tokenizer.encode_many(texts, bos, eos)
        except TokenizerError as error:
            raise TokenizerError(f"{name}: after {document:,} documents: {error}") from error
        for piece, ids in zip(batch, rows, strict=True):
            begin = int(bos and not piece.first)
            end = len(ids) - int(eos and not piece.last)
            size = len(piece.text) if piece.text.isascii() else len(piece.text.encode())
            document += piece.last
            yield ids[begin:end], piece.last, size


def _batched(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _TOGETHER or len(batch) >= _MANY:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_store(
    folder: Path,
    reader: Reader,
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    info: dict[str, Any],
    progress: bool = False,
) -> TokenStore:
    """Tokenize `pieces`, which are those of `reader`, into a new token store at `folder`."""
    with StoreWriter(folder, tokenizer) as writer, bar(progress, f"tokenizing {reader.name}", reader.size()) as tick:
        for ids, last, size in encoded(pieces, tokenizer, reader.name):
            writer.add(ids, last, size)
            tick(size)
        return writer.finish({**info, "duplicates": reader.duplicates, "skipped": reader.skipped})


def tokenize(
    readers: Sequence[Reader],
    out: Path,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    say: Say = lambda line: None,
    progress: bool = False,
) -> tuple[TokenStore, int]:
    """Write the documents of all readers as one token store at `out`; returns it and the duplicates left out.

    `tokenizer` is as for :func:`~microgpt.tokenizers.bpe.make_tokenizer`. Raises ConfigError when `out` exists,
    and what reading, tokenizing and writing raise.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists already; choose another folder or remove it")
    with bar(progress, "reading text", _sizes(readers)) as tick:
        texts = (_ticked(text, tick) for reader in readers for text in reader.texts())
        made = make_tokenizer(tokenizer, vocab_size, texts, all(reader.kind == "line" for reader in readers))
    if tokenizer in ("auto", "bpe", "char"):
        say(f"tokenizer of {made.vocab_size:,} ids trained")
    with StoreWriter(out, made) as writer, bar(progress, "tokenizing", _sizes(readers)) as tick:
        for reader in readers:
            for ids, last, size in encoded(reader.pieces(), made, reader.name):
                writer.add(ids, last, size)
                tick(size)
        duplicates = sum(reader.duplicates for reader in readers)
        kinds = sorted({reader.kind for reader in readers})
        info = {
            "source": ", ".join(reader.name for reader in readers),
            "kind": kinds[0] if len(kinds) == 1 else "record",
            "duplicates": duplicates,
            "skipped": sum(reader.skipped for reader in readers),
        }
        return writer.finish(info), duplicates


def _read(
    settings: DataSettings, reader: Reader, tokenizer: Tokenizer, place: Path | None, say: Say, progress: bool
) -> _Part:
    """Hold a small source in memory; write a large one as shards."""
    pieces = reader.pieces()
    held: list[Piece] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece.text) if piece.text.isascii() else len(piece.text.encode())
        if size > MEMORY_BYTES:
            break
    else:
        return _in_memory(settings, reader, tokenizer, held)
    temporary = None
    if place is None:
        temporary = tempfile.mkdtemp(prefix="microgpt-")
        place = Path(temporary) / "tokens"
    try:
        info = _origin(reader.kind, reader.name, settings)
        store = write_store(place, reader, itertools.chain(_drained(held), pieces), tokenizer, info, progress)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if temporary is not None:
        weakref.finalize(store, shutil.rmtree, temporary, True)
    else:
        say(f"{store.tokens:,} tokens of {reader.name} written to {store.folder}")
    return _stored(settings, reader.name, store)


def _drained(held: list[Piece]) -> Iterator[Piece]:
    held.reverse()
    while held:
        yield held.pop()


def _in_memory(settings: DataSettings, reader: Reader, tokenizer: Tokenizer, pieces: list[Piece]) -> _Part:
    documents: list[str] = []
    for piece in pieces:
        if piece.first:
            documents.append(piece.text)
        else:
            documents[-1] += piece.text
    train, validation = split(documents, settings.val_fraction, settings.seed)

    def ids(texts: list[str]) -> list[Ints]:
        found: list[Ints] = []
        open_ = False
        for row, last, _ in encoded(map(Piece, texts), tokenizer, reader.name):
            if open_:
                found[-1] = np.concatenate([found[-1], row])
            else:
                found.append(row)
            open_ = not last
        return found

    held = sum(len(text.encode()) for text in validation)
    return _Part(reader.name, reader.kind, len(documents), reader.duplicates, ids(train), None, ids(validation), held)


def _stored(settings: DataSettings, name: str, store: TokenStore) -> _Part:
    """Choose what validates: whole documents by number, or the tail of a single one."""
    info = store.manifest["info"]
    duplicates = int(info.get("duplicates", 0))
    kind = str(info.get("kind", "record"))
    validation: list[Ints] = []
    size = 0.0
    train: TokenSource = store
    left_out = None
    notes = []
    fraction = settings.val_fraction
    if store.documents == 1 and fraction:
        tail = min(store.tokens - 2, max(2, round(store.tokens * fraction)))
        if tail >= 2:
            kept = min(tail, VALIDATION_TOKENS)
            validation = [_ids(store, store.tokens - tail, kept)]
            size = store.bytes * kept / store.tokens
            train = Head(store, store.tokens - tail)
    elif fraction:
        chosen = held_out(store.documents, fraction, settings.seed)
        left_out = _bits(chosen, store.documents)
        room = VALIDATION_TOKENS
        taken: list[tuple[int, int, int, int]] = []
        for number in map(int, chosen):
            if room < 2:
                notes.append(f"{name}: {len(taken):,} of {len(chosen):,} validation documents are used")
                break
            start, end = store.offsets(number, number + 1).tolist()
            taken.append((number, start, min(end - start, room), end - start))
            room -= end - start
        for number, start, count, whole in sorted(taken):
            if count:
                validation.append(_ids(store, start, count))
                size += store.text_bytes(number) * count / whole
    return _Part(name, kind, store.documents, duplicates, train, left_out, validation, size, notes)


def _ids(store: TokenStore, start: int, count: int) -> Ints:
    if count < 2:
        return np.zeros(count, np.int32)  # nothing to predict
    ids, behind = store.read(np.array([start]), np.array([count - 1]))
    return np.append(ids, behind[-1:]).astype(np.int32)


def _bits(chosen: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    bits = np.zeros(-(-count // 8), np.uint8)
    np.bitwise_or.at(bits, chosen >> 3, (1 << (7 - (chosen & 7))).astype(np.uint8))
    return bits


def _assemble(settings: DataSettings, tokenizer: Tokenizer, parts: list[_Part]) -> Prepared:
    def batches(source: Sequence[Ints] | TokenSource, shuffle: bool, left_out: Any, curriculum: Curriculum) -> Batches:
        return Batches(source, settings.block_size, settings.batch_size, settings.seed, shuffle,
                       vocab_size=tokenizer.vocab_size, packing=settings.packing, curriculum=curriculum,
                       left_out=left_out)  # fmt: skip

    trains = [batches(part.train, True, part.left_out, settings.curriculum) for part in parts]
    for part, each in zip(parts, trains, strict=True):
        if each.targets_per_epoch < settings.block_size:
            raise DataError(
                f"{part.name}: {each.targets_per_epoch} training tokens are fewer than one sequence "
                f"(block_size {settings.block_size}); more text, or a smaller block_size"
            )
    train = trains[0] if len(trains) == 1 else Mixture(trains, settings.weights)
    held = [ids for part in parts for ids in part.validation]
    validation = batches(held, False, None, "none") if any(len(ids) > 1 for ids in held) else None
    if validation:  # one recorded program takes both
        validation.widen(train.sequences)
        train.widen(validation.sequences)
    size = sum(part.validation_bytes for part in parts)
    lines = []
    for part, each in zip(parts, trains, strict=True):
        removed = f", {part.duplicates:,} duplicates removed" if part.duplicates else ""
        lines.append(
            f"{part.documents:,} documents from {part.name} (one per {part.kind}){removed}, "
            f"{each.targets_per_epoch:,} training tokens, vocabulary {tokenizer.vocab_size}"
        )
        lines += part.notes
    if settings.packing:
        lines.append(f"packing fills {train.efficiency:.1%} of a batch of {settings.batch_size * settings.block_size}")
    return Prepared(
        tokenizer, train, validation, lines, sum(part.documents for part in parts),
        sum(part.duplicates for part in parts), size / validation.targets_per_epoch if validation and size else None,
    )  # fmt: skip

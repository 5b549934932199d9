"""Documents that are records: JSON lines, CSV, Parquet, and data sets of the Hugging Face hub."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from microgpt.data.files import LONGEST_LINE, Stamps, not_utf8, opened, text_chunks
from microgpt.errors import DataError, MissingExtraError

FIELD = "text"
HUB_ID = re.compile(r"(?:hf:)?([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.-]+))?")
_ROWS = 64  # of a Parquet file in memory
_SHOWN = 8

Say = Callable[[str], None]


def _keys(names: Sequence[object]) -> str:
    shown = ", ".join(str(name)[:40] for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "") if names else "none"


def _checked(text: str, where: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: character {error.start} is half of a surrogate pair, not text") from error
    return text


def json_lines(path: Path, stamps: Stamps, say: Say) -> Iterator[str]:
    """Field "text" of each line's object; DataError naming the line and, where it lacks that, its keys."""
    offset = 0
    with opened(path, stamps) as file:
        for number in itertools.count(1):
            data = file.readline(LONGEST_LINE + 1)
            where = f"{path}: line {number}"
            if not data:
                return
            if len(data) > LONGEST_LINE:
                raise DataError(f"{where}: longer than {LONGEST_LINE} bytes")
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                # Past the byte-order mark, which the decoder does not count.
                mark = len(data) - len(error.object)
                raise not_utf8(path, error.object[error.start], offset + mark + error.start) from error
            offset += len(data)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{where}: expected an object with the field {FIELD!r}, got {type(record).__name__}")
            if FIELD not in record:
                raise DataError(f"{where}: expected the field {FIELD!r}, found the keys {_keys(list(record))}")
            if not isinstance(record[FIELD], str):
                raise DataError(f"{where}: {FIELD!r}: expected a string, got {type(record[FIELD]).__name__}")
            yield _checked(record[FIELD], where)


def _numeric(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return not value.strip()
    return True


def csv_rows(path: Path, stamps: Stamps, say: Say) -> Iterator[str]:
    """Column "text" of each row, or the only column, or the first that holds no number; the first row has the names.

    Raises DataError naming the line of a row that has another number of fields or broken quotes.
    """
    if csv.field_size_limit() < LONGEST_LINE:
        csv.field_size_limit(LONGEST_LINE)  # of the process; a document may well have more than 131,072 characters
    tabs = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
    rows = csv.reader(_physical_lines(path, stamps), strict=True, delimiter="\t" if tabs else ",")
    column = -1
    try:
        names = next(rows, None)
        if names is None:
            return
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(f"{path}: line {rows.line_num}: expected {len(names)} fields, got {len(row)}")
            if column < 0:
                column = _column(path, names, row)
                if names[column] != FIELD:
                    say(f"{path}: documents are column {names[column]!r}")
            yield row[column]
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: broken CSV: {error}") from error


def _column(path: Path, names: list[str], row: list[str]) -> int:
    if FIELD in names:
        return names.index(FIELD)
    texts = [i for i, value in enumerate(row) if not _numeric(value)]
    if len(names) == 1 or texts:
        return texts[0] if texts else 0
    raise DataError(f"{path}: expected a column {FIELD!r} or one that holds text, found {_keys(names)}")


def _physical_lines(path: Path, stamps: Stamps) -> Iterator[str]:
    rest = ""
    for chunk in text_chunks(path, stamps):
        found = io.StringIO(rest + chunk, newline="").readlines()
        # A last line may go on in the next chunk; so may "\r" with "\n".
        rest = found.pop()
        if len(rest) > LONGEST_LINE:
            raise DataError(f"{path}: a line longer than {LONGEST_LINE} characters")
        yield from found
    if rest:
        yield rest


def parquet_rows(path: Path, stamps: Stamps, say: Say) -> Iterator[str]:
    """Column "text" of a Parquet file, or its first column of strings, some rows at a time; needs `pyarrow`."""
    try:
        import pyarrow as arrow  # type: ignore[import-not-found,import-untyped,unused-ignore]
        import pyarrow.parquet as parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading Parquet needs pyarrow; pip install 'microgpt[data]'") from error
    with opened(path, stamps) as raw:
        try:
            table = parquet.ParquetFile(raw, pre_buffer=False)
            schema = table.schema_arrow
            kinds = (arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_string_view)
            texts = [field.name for field in schema if any(kind(field.type) for kind in kinds)]
            if not texts:
                raise DataError(f"{path}: expected a column of strings, found {_keys(schema.names)}")
            name = FIELD if FIELD in texts else texts[0]
            if name != FIELD:
                say(f"{path}: documents are column {name!r}")
            for batch in table.iter_batches(_ROWS, columns=[name]):
                yield from filter(None, batch.column(0).to_pylist())
        except arrow.ArrowException as error:
            raise DataError(f"{path}: broken Parquet: {error}") from error


def hub_rows(source: str, say: Say) -> Iterator[str]:
    """Column "text" (or the first of strings) of a hub data set's split "train", streamed; needs `datasets`.

    `source` is ORG/NAME or hf:ORG/NAME, then :CONFIG if need be. Code in a data set is never run. Without
    network what the cache holds is used; DataError says which cache was searched.
    """
    match = HUB_ID.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: expected hf:ORG/NAME or hf:ORG/NAME:CONFIG")
    name, config = match[1], match[2]
    try:
        import datasets  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        cache = Path("~/.cache/huggingface/datasets").expanduser()
        raise MissingExtraError(
            f"no file or folder {source!r}; to read the hub's data set {name} (or its copy in {cache}) install "
            "datasets: pip install 'microgpt[data]'"
        ) from error
    rows = _load(datasets, name, config)
    column = None
    try:
        for row in rows:
            if column is None:
                texts = [key for key, value in row.items() if isinstance(value, str)]
                if not texts:
                    raise DataError(f"{name}: expected a column of strings, found {_keys(list(row))}")
                column = FIELD if FIELD in texts else texts[0]
                if column != FIELD:
                    say(f"{name}: documents are column {column!r}")
            value = row.get(column)
            if isinstance(value, str):
                yield _checked(value, name)
    except DataError:
        raise
    except Exception as error:  # the library, its file systems and its decoders raise whatever they like
        raise DataError(f"{name}: reading the data set failed: {type(error).__name__}: {error}") from error


def _load(datasets: Any, name: str, config: str | None) -> Any:
    try:
        return datasets.load_dataset(name, config, split="train", streaming=True)
    except Exception as error:
        first = error
    try:
        return datasets.load_dataset(name, config, split="train")  # which takes a copy in the cache without network
    except Exception:
        cache = datasets.config.HF_DATASETS_CACHE
        raise DataError(
            f"data set {name}: not to be had from the hub ({type(first).__name__}: {str(first)[:200]}) and not in the "
            f"cache {cache}; check the name and the network, or load it once where there is one and copy that folder"
        ) from first

"""Readers: every kind of source gives its documents, streamed; every defect is named with its place."""

from __future__ import annotations

import builtins
import csv
import gzip
import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt.data import files, records
from microgpt.data.corpus import Reader, open_source, read_documents
from microgpt.data.files import Piece
from microgpt.errors import DataError, MissingExtraError

PROSE = "A sentence that is rather long for an entry of a list, number "


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def packed(path: Path, data: str | bytes) -> Path:
    return write(path, gzip.compress(data.encode() if isinstance(data, str) else data, mtime=0))


# --- text -------------------------------------------------------------------------------------------------------------
def test_gzip_reads_as_what_is_inside(tmp_path: Path) -> None:
    assert read_documents(packed(tmp_path / "list.txt.gz", "\ufeffemma\nava\n")).documents == ["emma", "ava"]
    records_ = '{"text": "one"}\n{"text": "two"}\n'
    assert read_documents(packed(tmp_path / "r.jsonl.gz", records_)).documents == ["one", "two"]
    found = read_documents(tmp_path)  # a folder with both
    assert sorted(found.documents) == ["ava", "emma", "one", "two"] and found.kind == "line"


def test_damaged_gzip(tmp_path: Path) -> None:
    data = gzip.compress(PROSE.encode() * 3000, mtime=0)
    for name, bad in (("cut", data[:-20]), ("none", b"plain text"), ("flip", data[:40] + b"\xff\xff" + data[42:])):
        with pytest.raises(DataError, match=rf"{name}\.txt\.gz: damaged or not gzip"):
            read_documents(write(tmp_path / f"{name}.txt.gz", bad))


def test_a_gzip_bomb_is_read_in_pieces(tmp_path: Path) -> None:
    """100 MB of spaces in 100 kB: nothing is handed on that is larger than the largest piece."""
    path = tmp_path / "bomb.txt.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(100):
            file.write(b" " * 10**6)
    sizes = [len(piece.text) for piece in files.whole_file(path, {})]
    assert sum(sizes) == 10**8 and max(sizes) <= 16 * files.PIECE
    with pytest.raises(DataError, match=r"line 1: longer than \d+ characters; read it with documents=file"):
        list(files.lines(path, {}))


def pieces_of(path: Path) -> list[Piece]:
    return list(files.whole_file(path, {}))


def test_a_long_document_comes_in_pieces_cut_between_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE", 64)
    monkeypatch.setattr(files, "_HEAD", 100)
    monkeypatch.setattr(files, "_CHUNK", 37)
    text = "caf\u00e9  \n\n  au lait,\tencore\u2003 une fois\r\n" * 40
    found = pieces_of(write(tmp_path / "t.txt", text))
    assert "".join(piece.text for piece in found) == text and len(found) > 20
    assert [piece.first for piece in found] == [True] + [False] * (len(found) - 1)
    assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True]
    for before, after in pairwise(found):
        assert not before.text[-1].isspace() and after.text[0] in " \n" and len(before.text) <= 64
    # No place to cut: up to sixteen pieces together, then anywhere.
    monkeypatch.setattr(files, "_LONGEST", 16 * 64)
    found = pieces_of(write(tmp_path / "a.txt", "a" * 3000))
    assert [len(piece.text) for piece in found] == [1024, 1024, 952]
    assert [len(piece.text) for piece in pieces_of(write(tmp_path / "b.txt", "ab"))] == [2]


def test_utf8_errors_are_placed_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_CHUNK", 7)
    good = "\u65e5\u672c\u8a9e caf\u00e9 " * 9
    assert read_documents(write(tmp_path / "good.txt", "\ufeff" + good)).documents == [good]
    for bad in (b"\xff", b"\xe6\x97", b"\xc3("):
        data = good.encode() + bad + b"x" * 30
        with pytest.raises(DataError, match=rf"not UTF-8: byte 0x{bad[0]:02x} at byte offset {len(good.encode())};"):
            read_documents(write(tmp_path / "bad.txt", data))
    with pytest.raises(DataError, match=rf"byte 0xe6 at byte offset {len(good.encode())};"):
        read_documents(write(tmp_path / "bad.txt", good.encode() + b"\xe6"))  # ends within a character
    with pytest.raises(DataError, match=rf"NUL at byte {len(good.encode()) + 2}"):
        read_documents(write(tmp_path / "bad.txt", good.encode() + b"ab\0c"))


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", "one\ntwo\n" * 10)
    reader = open_source(path, "line")
    stream = reader.pieces()
    assert next(stream).text == "one"
    with open(path, "a") as file:
        file.write("three\n")
    with pytest.raises(
        DataError, match=r"t\.txt: changed while it was being read \(80 bytes at first, 86 at the end\)"
    ):
        list(stream)
    with pytest.raises(DataError, match=r"t\.txt: changed since it was first read"):
        list(reader.pieces())
    path.unlink()
    with pytest.raises(DataError, match=r"t\.txt: vanished"):
        list(reader.pieces())


def test_duplicates_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_source(write(tmp_path / "t.txt", "ava\nemma\nava\n ava \nada\n"), "line", dedup=True)
    for _ in range(2):  # each pass by itself
        assert [piece.text for piece in reader.pieces()] == ["ava", "emma", "ada"]
        assert (reader.found, reader.duplicates) == (3, 2)
    monkeypatch.setattr(files, "PIECE", 100)
    for name, text in (("a", PROSE * 5), ("b", PROSE * 5), ("c", "short"), ("d", "short")):
        write(tmp_path / "folder" / f"{name}.txt", text)
    reader = open_source(tmp_path / "folder", "file", dedup=True)
    assert "".join(reader.texts()) == PROSE * 5 + "short"
    assert (reader.found, reader.duplicates) == (2, 2)


def test_standard_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = open_source("stdlib")
    assert reader.kind == "file" and reader._paths is not None
    names = [path.name for path in reader._paths]
    assert len(names) > 400 and {"argparse.py", "dataclasses.py"} <= set(names) and "test_argparse.py" not in names
    assert reader._paths == sorted(reader._paths)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="no Python sources below"):
        open_source("stdlib")


def test_missing_path_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "shakespeare.txt", "x")
    with pytest.raises(DataError, match=r"did you mean 'shakespeare\.txt'\?"):
        open_source(tmp_path / "shakespear.txt")


# --- records ----------------------------------------------------------------------------------------------------------
def test_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl", '\ufeff{"id": 1, "text": "caf\\u00e9\\nau lait"}\n\n{"text": "\\u0000"}\r\n{"text": " "}'
    )
    found = read_documents(path)
    assert found.kind == "record" and found.documents == ["caf\u00e9\nau lait", "\0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"content": "x", "id": 3}', r"d\.jsonl: line 2: expected the field 'text', found the keys content, id$"),
        (b"{}", r"line 2: expected the field 'text', found the keys none"),
        (b'{"text": "x"', r"line 2: not JSON: "),
        (b"[" * 100_000, r"line 2: not JSON"),
        (b'["text"]', r"line 2: expected an object with the field 'text', got list"),
        (b'{"text": 3}', r"line 2: 'text': expected a string, got int"),
        (b'{"text": "a\\ud800"}', r"line 2: character 1 is half of a surrogate pair"),
        (b'{"text": "\xff"}', r"d\.jsonl: not UTF-8: byte 0xff at byte offset 27"),
    ],
)
def test_broken_json_lines(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "d.jsonl", b'{"text": "good"}' + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=message):
        read_documents(path)


def test_a_record_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST_LINE", 50)
    with pytest.raises(DataError, match=r"line 1: longer than 50 bytes"):
        read_documents(write(tmp_path / "d.jsonl", '{"text": "' + "a" * 100))


def test_csv(tmp_path: Path) -> None:
    said: list[str] = []

    def rows(name: str, text: str) -> list[str]:
        return list(open_source(write(tmp_path / name, text), say=said.append).texts())

    assert rows("a.csv", 'id,text\n1,"one, ""two""\r\nthree"\n2,four\n') == ['one, "two"\r\nthree', "four"]
    assert rows("b.csv", "name\nava\n") == ["ava"]
    assert said == [f"{tmp_path / 'b.csv'}: documents are column 'name'"]
    assert rows("c.csv", "n,date,body,tail\n1,2.5,long text,x\n,3,more,y\n") == ["long text", "more"]
    assert rows("d.tsv", "id\ttext\n1\ta,b\n") == ["a,b"]
    long = "x" * 300_000  # beyond the csv module's own limit
    assert rows("e.csv", f"id,text\n1,{long}\n") == [long]
    assert csv.field_size_limit() >= 300_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text\n1,a\n2,b,c\n", r"d\.csv: line 3: expected 2 fields, got 3"),
        ('id,text\n1,"a"b\n', r"d\.csv: line 2: broken CSV"),
        ('id,text\n1,"a\n', r"d\.csv: line 2: broken CSV"),
        ("id,size\n1,2\n", r"d\.csv: expected a column 'text' or one that holds text, found id, size"),
        ("", r"d\.csv: empty"),
        ("text\n", r"d\.csv: empty"),
    ],
)
def test_broken_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_documents(write(tmp_path / "d.csv", text))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9),
                         min_size=2, max_size=2), min_size=1, max_size=6), st.integers(3, 9))  # fmt: skip
def test_csv_is_read_in_chunks_of_any_size(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], chunk: int):
    path = tmp_path_factory.getbasetemp() / "chunks.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    before, files._CHUNK = files._CHUNK, chunk
    try:
        assert list(records.csv_rows(path, {}, print)) == [row[1] for row in rows]
    finally:
        files._CHUNK = before


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'data')")
    import pyarrow.parquet as parquet

    said: list[str] = []
    texts = [f"{PROSE}{i}" for i in range(500)]
    parquet.write_table(arrow.table({"id": range(500), "text": texts}), tmp_path / "a.parquet", row_group_size=90)
    assert read_documents(tmp_path / "a.parquet").documents == texts
    parquet.write_table(arrow.table({"n": [1, 2], "body": ["x", None]}), tmp_path / "b.parquet")
    assert list(open_source(tmp_path / "b.parquet", say=said.append).texts()) == ["x"]
    assert said == [f"{tmp_path / 'b.parquet'}: documents are column 'body'"]
    parquet.write_table(arrow.table({"n": [1, 2]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: expected a column of strings, found n"):
        read_documents(tmp_path / "c.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    for bad in (b"", b"PAR1", data[:-9], data[: len(data) // 2]):
        with pytest.raises(DataError, match=r"d\.parquet: "):
            read_documents(write(tmp_path / "d.parquet", bad))


# --- the hub ----------------------------------------------------------------------------------------------------------
class FakeHub:
    """Stands for the `datasets` library: rows, or the errors of a machine without network."""

    class config:
        HF_DATASETS_CACHE = "/some/cache"

    def __init__(self, rows: list[dict[str, object]] | None, cached: bool = False) -> None:
        self.rows, self.cached = rows, cached
        self.calls: list[tuple[object, ...]] = []

    def load_dataset(self, name: str, config: str | None, *, split: str, streaming: bool = False) -> Iterator[object]:
        self.calls.append((name, config, split, streaming))
        if self.rows is None or (self.cached and streaming):
            raise ConnectionError("Couldn't reach the hub")
        return iter(self.rows)


def test_hub_rows_are_streamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    hub = FakeHub([{"id": 1, "story": "once"}, {"id": 2, "story": None}, {"id": 3, "story": "upon"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    said: list[str] = []
    for name in ("org/tales", "hf:org/tales", "hf:org/tales:small"):
        reader = open_source(name, say=said.append)
        assert reader.kind == "record" and list(reader.texts()) == ["once", "upon"]
    assert hub.calls[1:] == [("org/tales", None, "train", True), ("org/tales", "small", "train", True)]
    assert said[0] == "org/tales: documents are column 'story'"
    with pytest.raises(DataError, match="expected a column of strings, found id"):
        list(hub_reader(monkeypatch, FakeHub([{"id": 1}])).texts())


def hub_reader(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> Reader:
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    return open_source("hf:org/tales")


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(hub_reader(monkeypatch, FakeHub([{"text": "x"}], cached=True)).texts()) == ["x"]
    with pytest.raises(DataError, match=r"org/tales: not to be had from the hub \(ConnectionError.*cache /some/cache;"):
        list(hub_reader(monkeypatch, FakeHub(None)).texts())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"copy in .*huggingface/datasets\).*pip install 'microgpt\[data\]'"):
        list(open_source("hf:org/tales").texts())
    with pytest.raises(DataError, match="expected hf:ORG/NAME"):
        list(open_source("hf:tales").texts())


def test_a_missing_path_is_not_a_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for name in ("books/novel", "other/novel.txt", "a/b/c"):
        with pytest.raises(DataError, match=f"no data '{re.escape(name)}'"):
            open_source(name)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"needs pyarrow; pip install 'microgpt\[data\]'"):
        read_documents(write(tmp_path / "a.parquet", b"PAR1"))


def test_nothing_is_opened_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source is read-only and left as it was."""
    path = write(tmp_path / "d.jsonl", json.dumps({"text": "x"}))
    path.chmod(0o444)
    before = os.stat(path)
    monkeypatch.setattr(builtins, "open", None)
    assert list(open_source(path).texts()) == ["x"]
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns

"""`microgpt tokenize`."""

from __future__ import annotations

import time
from pathlib import Path

from ..errors import ConfigError
from .common import Command, Folder, Option, say, stoppable

EXAMPLES = """\
microgpt tokenize --train --data novels/ --vocab-size 4096 --out tokens/novels
microgpt tokenize --data more.txt.gz --tokenizer tokens/novels --out tokens/more
microgpt tokenize --data names --tokenizer char --out tokens/names"""


def _run(
    data: tuple[str, ...],
    out: Path,
    train: bool,
    tokenizer: str | None,
    vocab_size: int | None,
    documents: str,
    dedup: bool,
    quiet: bool,
) -> None:
    from ..data.corpus import open_source
    from ..data.prepare import tokenize

    if train == (tokenizer is not None):
        raise ConfigError("give --train to train a tokenizer, or --tokenizer PATH to use one")
    if vocab_size is not None and not train:
        raise ConfigError("--vocab-size: only for --train")
    tell = (lambda line: None) if quiet else say
    started = time.perf_counter()
    with stoppable():
        readers = [open_source(source, documents, dedup, tell) for source in data]
        store, duplicates = tokenize(readers, out, tokenizer or "bpe", vocab_size, tell, not quiet)
    if quiet:
        return
    seconds = time.perf_counter() - started
    removed = f", {duplicates:,} duplicates removed" if dedup else ""
    say(
        f"{store.documents:,} documents, {store.tokens:,} tokens of {store.vocab_size:,} ids, "
        f"{store.bytes / max(1, store.tokens):.2f} bytes/token, {store.bytes / 1e6 / seconds:.1f} MB/s{removed}"
    )
    say(f"saved in {store.folder}")
    say(f"next: microgpt train --data {store.folder}")


command = Command(
    "tokenize",
    callback=_run,
    params=[
        Option(["--data"], multiple=True, required=True, metavar="PATH|names|stdlib|hf:ORG/NAME", section="Data",
               help="Text, .gz, JSON lines, CSV, Parquet, a folder of these, or a data set of the hub. Several are "
               "read one after another."),
        Option(["--documents"], default="auto", metavar="KIND", section="Data",
               help="How to cut texts: line (each line is a document), file, or auto. [default: auto]"),
        Option(["--dedup"], is_flag=True, section="Data", help="Leave out documents whose text came before."),
        Option(["--train"], is_flag=True, section="Tokenizer", help="Train a byte-level BPE on the data."),
        Option(["--vocab-size"], type=int, metavar="N", section="Tokenizer",
               help="Ids of the trained tokenizer, at least 257. [default: 4096, 16384 above 64 MiB of text]"),
        Option(["--tokenizer"], metavar="PATH|char", section="Tokenizer",
               help="A tokenizer.json, a folder with one, or char for the characters of the data."),
        Option(["--out"], type=Folder(path_type=Path), required=True, metavar="FOLDER", section="Result",
               help="Folder to create: token shards, their manifest and the tokenizer."),
        Option(["--quiet"], is_flag=True, section="Result", help="Print nothing but errors and warnings."),
    ],
    examples=EXAMPLES,
    help="Turn text into token shards, and train the tokenizer for it.\n\n"
    "The folder that comes out is data for `microgpt train`: tokens that are read where needed, so that a corpus may "
    "be larger than memory. It is complete or not there: an interrupted run leaves nothing under its name.",
)  # fmt: skip

"""Byte-level BPE trained from text by the `tokenizers` library, and the choice of a tokenizer for a corpus."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from microgpt.errors import ConfigError, MissingExtraError, TokenizerError
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.char import END_OF_TEXT, CharTokenizer
from microgpt.tokenizers.hub import HubTokenizer, guard

SAMPLE_BYTES = 32 << 20  # of text that a vocabulary is trained on
CHAR_BYTES = 2 << 20  # below this a corpus gets characters
LARGE_BYTES = 64 << 20  # above this it gets the larger vocabulary
SMALL_VOCAB, LARGE_VOCAB = 4096, 16384
SMALLEST = 257  # every byte, and the control token


class Sample:
    """At most `limit` bytes of a stream of texts, evenly from all of it, and what there is to know about the whole.

    Whenever the kept texts outgrow the limit every second one is dropped, and from then on half as many are
    kept: between half the limit and all of it remains, the same for the same texts.
    """

    def __init__(self, texts: Iterable[str], limit: int = SAMPLE_BYTES) -> None:
        self.bytes = 0
        self.texts: list[str] = []
        seen = np.zeros(0x110000, bool)
        kept, stride = 0, 1
        for number, text in enumerate(texts):
            size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            self.bytes += size
            seen[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)] = True
            if number % stride:
                continue
            self.texts.append(text)
            kept += size
            while kept > limit and len(self.texts) > 1:
                self.texts, stride = self.texts[::2], stride * 2
                kept = sum(len(each.encode("utf-8", "surrogatepass")) for each in self.texts)
        self.characters = [chr(point) for point in np.flatnonzero(seen).tolist()]


def train_bpe(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> HubTokenizer:
    """A byte-level BPE of at most `vocab_size` ids on the words of GPT-2's pattern; it encodes any text.

    Id 0 is ``<|endoftext|>``, which begins and ends a document; then the 256 bytes, then merges of pairs that
    occur `min_frequency` times. The same texts give the same vocabulary on any number of threads. Sennrich et al.
    2016 (BPE), Radford et al. 2019 (bytes). Raises ConfigError for a vocabulary below 257, TokenizerError for
    no text, MissingExtraError without the `tokenizers` library.
    """
    if type(vocab_size) is not int or not SMALLEST <= vocab_size <= 1 << 20:
        raise ConfigError(f"vocab_size: expected {SMALLEST} to {1 << 20} for bpe, got {vocab_size!r}")
    try:
        import tokenizers as library
    except ImportError as error:
        raise MissingExtraError("training BPE needs the 'tokenizers' library; pip install tokenizers") from error
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    empty = True

    def given() -> Iterator[str]:
        nonlocal empty
        for text in texts:
            empty = empty and not text
            yield text

    guard("cannot train on this text", lambda: made.train_from_iterator(given(), trainer))
    if empty:
        raise TokenizerError("training BPE needs text, got none")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    content = json.dumps(json.loads(made.to_str()), ensure_ascii=False, indent=1) + "\n"
    return HubTokenizer(content, config, "trained vocabulary")


def make_tokenizer(kind: str, vocab_size: int | None, texts: Iterable[str], lines: bool = False) -> Tokenizer:
    """The tokenizer "auto", "char" or "bpe" for `texts`, which are read once, or that of a path (a model folder
    or a tokenizer.json), for which they are not read.

    "auto" takes characters for `lines` (a corpus of short entries) and for less than 2 MiB of text, else BPE.
    A BPE without `vocab_size` has 4,096 ids, 16,384 for more than 64 MiB of text; it is trained on at most
    32 MiB, evenly from all of the text. Raises ConfigError where `vocab_size` fits no such tokenizer.
    """
    if kind not in ("auto", "char", "bpe"):
        if vocab_size is not None:
            raise ConfigError(f"vocab_size: tokenizer {kind} has its own; leave it out")
        if not os.path.exists(kind):
            raise ConfigError(f"tokenizer: expected auto, char, bpe, or a path, got {kind!r}")
        return Tokenizer.load(Path(kind))
    if kind == "char" and vocab_size is not None:
        raise ConfigError("vocab_size: characters have as many ids as the text has characters; leave it out")
    if vocab_size is not None and vocab_size < SMALLEST:
        raise ConfigError(f"vocab_size: expected at least {SMALLEST} for bpe, got {vocab_size}")
    sample = Sample(texts)
    small = lines or sample.bytes < CHAR_BYTES
    if kind == "char" or (kind == "auto" and vocab_size is None and small):
        return CharTokenizer(sample.characters)
    default = LARGE_VOCAB if sample.bytes > LARGE_BYTES else SMALL_VOCAB
    return train_bpe(sample.texts, vocab_size or default)


__all__ = ["SAMPLE_BYTES", "Sample", "make_tokenizer", "train_bpe"]

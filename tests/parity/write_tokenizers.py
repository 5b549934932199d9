"""Writes tests/golden/tokenizers: small vocabularies and what their own libraries make of 2,000 texts.

    python -m tests.parity.write_tokenizers

needs sentencepiece, tiktoken and transformers. Unigram ids are kept in order and sorted: where one piece, two and one
again score the same in any order (runs of a character), sentencepiece chooses by the rounding of its float32 sums.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tiktoken
from transformers.utils.chat_template_utils import render_jinja_template

from tests.chat_cases import CONVERSATIONS, TEMPLATES
from tests.tokenizer_fuzz import RUNS, SENTENCES, make, sums

FOLDER = Path(__file__).parents[1] / "golden" / "tokenizers"
COUNT = 2000
RULES = {
    "ﬁ": "fi",
    "①": "1",
    "e\u0301": "é",
    "\t": " ",
    "\u00a0": " ",
    "\u3000": " ",
    "\r\n": "\n",
    "Ａ": "A",
    "ａｂ": "ab",
}
WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"  # as tiktoken writes it
)


def train(name: str, **options: Any) -> sentencepiece.SentencePieceProcessor:
    made = io.BytesIO()
    corpus = [*SENTENCES * 3, *(run * 12 for run in RUNS)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.replace("\n", " ") for text in corpus]), model_writer=made,
        minloglevel=2, num_threads=1, hard_vocab_limit=False, **options,
    )  # fmt: skip
    (FOLDER / f"{name}.model").write_bytes(made.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def ranks(size: int) -> dict[bytes, int]:
    """Byte pairs joined most frequent first, on whole sentences without regard to words."""
    found = {bytes([value]): value for value in range(256)}
    rows = [[bytes([value]) for value in text.encode()] for text in SENTENCES * 2]
    while len(found) < size:
        counts: dict[tuple[bytes, bytes], int] = {}
        for row in rows:
            for pair in itertools.pairwise(row):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        found[best[0] + best[1]] = len(found)
        for row in rows:
            at = 0
            while at < len(row) - 1:
                if (row[at], row[at + 1]) == best:
                    row[at : at + 2] = [best[0] + best[1]]
                at += 1
    return found


def write_soak(bpe: Any, unigram: Any, reference: Any) -> None:
    """Digests of the ids of 100,000 texts."""
    texts = make(2, 100_000)
    found = {
        "bpe.model": sums(bpe.encode(texts)),
        "unigram.model": sums(map(sorted, unigram.encode(texts))),
        "cl100k_base.tiktoken": sums(reference.encode_batch(texts, disallowed_special=())),
    }
    digests = {name: hashlib.sha256(each.tobytes()).hexdigest() for name, each in found.items()}
    (FOLDER / "soak.json").write_text(json.dumps(digests, indent=1) + "\n")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = make(1, COUNT)
    rules = FOLDER / "rules.tsv"
    codes = [
        " ".join(f"{ord(c):X}" for c in key) + "\t" + " ".join(f"{ord(c):X}" for c in value)
        for key, value in RULES.items()
    ]
    rules.write_text("\n".join(codes) + "\n")
    unigram = train(
        "unigram",
        model_type="unigram",
        vocab_size=500,
        character_coverage=0.98,
        normalization_rule_tsv=str(rules),
        user_defined_symbols=["<user>"],
    )
    rules.unlink()
    bpe = train(
        "bpe", model_type="bpe", vocab_size=1000, normalization_rule_name="identity", byte_fallback=True,
        remove_extra_whitespaces=False, add_dummy_prefix=True, control_symbols=["<pad>"], split_digits=True,
        user_defined_symbols=["<user>", "a<b>b"], allow_whitespace_only_pieces=True, character_coverage=0.98,
    )  # fmt: skip
    vocabulary = ranks(600)
    lines = [base64.b64encode(token).decode() + f" {rank}" for token, rank in vocabulary.items()]
    (FOLDER / "cl100k_base.tiktoken").write_text("\n".join(lines) + "\n")
    reference = tiktoken.Encoding(
        "small", pat_str=WORDS, mergeable_ranks=vocabulary, special_tokens={"<|endoftext|>": 100257}
    )
    found = {
        "bpe": sums(bpe.encode(texts)),
        "unigram": sums(unigram.encode(texts)),
        "unigram_sorted": sums(map(sorted, unigram.encode(texts))),
        "tiktoken": sums(reference.encode_batch(texts, disallowed_special=())),
    }
    np.savez_compressed(FOLDER / "sums.npz", **found)
    write_soak(bpe, unigram, reference)
    renders: dict[str, list[str | None]] = {}
    for name, template in TEMPLATES.items():
        renders[name] = []
        for messages, values in CONVERSATIONS:
            copy = json.loads(json.dumps([messages, {"bos_token": "<s>", "eos_token": "</s>", **values}]))
            try:
                text = render_jinja_template([copy[0]], chat_template=template, **copy[1])[0][0]
            except Exception:  # the template's refusal
                text = None
            renders[name].append(text)
    (FOLDER / "renders.json").write_text(json.dumps(renders, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()

"""Memory of streaming: a corpus larger than memory is tokenized, stored, and read in shuffled batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from .test_data_shards import child

MEMORY = """
import resource, sys
from pathlib import Path
from microgpt.data.prepare import DataSettings, prepare
import microgpt.tokenizers.bpe, tokenizers
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
settings = DataSettings(data=sys.argv[1], tokenizer=sys.argv[3], block_size=256, batch_size=8, seed=1)
data = prepare(settings, folder=Path(sys.argv[2]))
for _ in range(20):
    data.train.next_many(64)
print((peak() - before) // 1024)
"""


def big_text(path: Path, megabytes: int, kind: str) -> Path:
    words = Path(json.__file__).read_text("utf-8").split()
    rng = np.random.default_rng(0)
    separator = {"file": "\n", "line": "\n", "jsonl": ""}[kind]
    with open(path, "w", encoding="utf-8") as file:
        size = 0
        while size < megabytes * 10**6:
            text = "".join(
                json.dumps({"text": line}) + "\n" if kind == "jsonl" else line + separator
                for line in (" ".join(words[i : i + 12]) for i in rng.integers(0, len(words), 2000).tolist())
            )
            size += file.write(text)
    return path


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "tokenizer"), [("file", "char"), ("line", "char"), ("jsonl", "bpe"), ("file", "bpe")])
def test_streaming_is_bounded(tmp_path: Path, kind: str, tokenizer: str) -> None:
    """400 MB of text through tokenizer, shards and shuffled batches take less than 300 MB of memory."""
    path = big_text(tmp_path / ("t.jsonl" if kind == "jsonl" else "t.txt"), 400, kind)
    assert int(child(MEMORY, str(path), str(tmp_path / "run"), tokenizer)) < 300

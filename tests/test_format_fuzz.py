"""Mutants of model files: each is loaded or refused with a typed error, quickly and within a bound of memory.

2,000 a format here (of recurrent, hybrid and expert models 300), 20,000 in `make soak`.
"""

from __future__ import annotations

import random
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt.errors import MicrogptError
from microgpt.models.decoder import Decoder
from microgpt.models.gguf import save_gguf
from microgpt.models.pretrained import load_decoder, save_decoder
from tests.format_tools import a_model, llama2c, mlx, sharded
from tests.packed_tools import folder_of as packed_folder
from tests.test_gguf_models import tiny

EDGES = [0, 1, 2, 3, *(2**bits + off for bits in (7, 8, 15, 16, 24, 31, 32, 53, 62, 63) for off in (-1, 0)), 2**64 - 1]
JSON_BYTES = b'\0\xff0129e.-+"{}[]:,\\/tfnu FIUB86'
JSON_WORDS = [b"null", b"true", b"-1", b"0", b"1e400", b"NaN", b"99999999999999999999", b"[]", b"{}", b'""', b'"../x"',
              b"0.5", b"[[[[[[[[", b'"F64"', b'"U8"']  # fmt: skip


def mutate(data: bytes, chance: random.Random, head: int, text: bool) -> bytes:
    """The data with one to three changes, most of them within the first `head` bytes."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        span = min(len(made), head if chance.random() < 0.9 else len(made))
        at = chance.randrange(max(1, span))
        kind = chance.randrange(6 if text else 7)
        if kind == 0:
            made[at : at + 1] = bytes([chance.choice(JSON_BYTES) if text else chance.randrange(256)])
        elif kind == 1:
            del made[at : len(made) if chance.random() < 0.3 else at + chance.randint(1, 9)]
        elif kind == 2:
            other = chance.randrange(max(1, span))
            made[at:at] = made[other : other + chance.randint(1, 40)]
        elif kind == 3:
            made[at : at + 1] = bytes([made[at] ^ (1 << chance.randrange(8))]) if at < len(made) else b""
        elif kind == 4 and text:
            made[at : at + chance.randint(1, 8)] = chance.choice(JSON_WORDS)
        elif text:
            made += chance.randbytes(chance.randint(1, 40))
        else:
            width = "Q" if kind < 6 else "I"
            edge = chance.choice(EDGES) & (2 ** (64 if width == "Q" else 32) - 1)
            value = struct.pack("<" + width, edge)
            made[at : at + len(value)] = value
    return bytes(made)


def peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)


def hunt(place: Path, victim: Path, count: int, seed: int, head: Callable[[bytes], int], text: bool) -> Counter[str]:
    """Load `count` mutants of the file `victim` as the model `place`; how many ended in which way."""
    good, chance = victim.read_bytes(), random.Random(seed)
    limit, ends = head(good), Counter[str]()
    load_decoder(place)
    before, slowest = peak(), 0.0
    for number in range(count):
        bad = mutate(good, chance, limit, text)
        victim.write_bytes(bad)
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = load_decoder(place)
            for array in model.arrays().values():
                assert np.asarray(array).size >= 0
            ends["loaded"] += 1
        except MicrogptError as error:
            assert str(error) and len(str(error)) < 8_000
            ends[type(error).__name__] += 1
        except Exception as error:
            raise AssertionError(f"mutant {number} of seed {seed} ({bad[:80]!r}...) ended in {error!r}") from error
        slowest = max(slowest, time.process_time() - started)
    grown = peak() - before
    print(f"{victim.name}: {dict(ends)}, slowest {1e3 * slowest:.0f} ms, memory +{grown / 1e6:.1f} MB")
    assert slowest < 1.0
    assert grown <= 64 << 20
    return ends


def small(family: str = "llama", **settings: Any) -> Decoder:
    return a_model(family, **{"llama": {"num_hidden_layers": 1}, "gpt2": {"n_layer": 1}}[family], **settings)


def gguf(family: str) -> Callable[[Path], tuple[Path, Path, Callable[[bytes], int], bool]]:
    def make(folder: Path) -> tuple[Path, Path, Callable[[bytes], int], bool]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_gguf(small(family), folder / "m.gguf", "q8_0", {"v.strings": ["a", "bc"] * 9, "v.ints": [1, 2, 3]})
        return folder / "m.gguf", folder / "m.gguf", lambda data: 4000, False

    return make


def folder_of(name: str, text: bool, make: Callable[[Path], None]) -> Callable[..., tuple[Path, Path, object, bool]]:
    def build(folder: Path) -> tuple[Path, Path, Callable[[bytes], int], bool]:
        make(folder / "m")
        head = len if name.endswith(".json") else lambda data: 8 + int.from_bytes(data[:8], "little")
        return folder / "m", folder / "m" / name, head, text

    return build


def plain(folder: Path) -> None:
    folder.mkdir()
    save_decoder(small(), folder)


def c_file(folder: Path) -> tuple[Path, Path, Callable[[bytes], int], bool]:
    llama2c(small(tie_word_embeddings=True), folder / "m.bin")
    return folder / "m.bin", folder / "m.bin", lambda data: 40, False


FORMATS = {
    "gguf_llama": gguf("llama"),
    "gguf_gpt2": gguf("gpt2"),
    "safetensors": folder_of("model.safetensors", True, plain),
    "config": folder_of("config.json", True, plain),
    "index": folder_of("model.safetensors.index.json", True, lambda folder: sharded(small(), folder)),
    "mlx_config": folder_of("config.json", True, lambda folder: mlx(small(), folder)),
    "gptq": folder_of("model.safetensors", True, lambda folder: packed_folder("gptq", folder)),
    "gptq_config": folder_of("config.json", True, lambda folder: packed_folder("gptq", folder)),
    "bitsandbytes": folder_of("model.safetensors", True, lambda folder: packed_folder("bitsandbytes", folder)),
    "compressed_config": folder_of("config.json", True, lambda folder: packed_folder("compressed", folder)),
    "llama2c": c_file,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=pytest.mark.soak)])
def test_mutants(tmp_path: Path, name: str, count: int) -> None:
    refused(FORMATS[name](tmp_path), count)


HYBRIDS = ["mamba2", "jamba_moe", "bamba", "nemotron_h_moe", "lfm2_moe", "qwen3_5", "qwen3_next", "gpt_oss"]


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.parametrize("kind", ["gguf", "model.safetensors"])
def test_mutants_of_other_layers(tmp_path: Path, name: str, kind: str, count: int) -> None:
    path = tmp_path / "m.gguf"
    if kind == "gguf":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_gguf(tiny(name), path, "q8_0")
        refused((path, path, lambda data: 6000, False), count)
        return

    def make(folder: Path) -> None:
        folder.mkdir()
        save_decoder(tiny(name), folder)

    refused(folder_of(kind, True, make)(tmp_path), count)


def refused(made: tuple[Path, Path, Callable[[bytes], int], bool], count: int) -> None:
    place, victim, head, text = made
    ends = hunt(place, victim, count, count, head, text)
    assert sum(ends.values()) == count
    # The mutants are near enough to good files to reach every stage, and far enough to be refused.
    assert ends.total() - ends["loaded"] > count // 5 and len(ends) >= 2


def test_our_header_check_is_at_least_as_strict_as_the_library(tmp_path: Path) -> None:
    """What `safetensors` refuses we refuse; what it takes we take, but for metadata that it reads more leniently."""
    import safetensors

    from microgpt.errors import FormatError
    from microgpt.io.safetensors import open_weights

    plain(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    good, chance, ends = path.read_bytes(), random.Random(9), Counter[tuple[bool, bool]]()
    for _ in range(1000):
        path.write_bytes(mutate(good, chance, 8 + int.from_bytes(good[:8], "little"), True))
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                theirs: dict[str, list[int]] | None = {
                    name: file.get_slice(name).get_shape() for name in sorted(file.keys())
                }
        except Exception:
            theirs = None
        try:
            ours = {name: list(stored.shape) for name, stored in open_weights(path).items()}
        except FormatError:
            ours = None
        assert ours is None or ours == theirs
        ends[theirs is not None, ours is not None] += 1
    print(dict(ends))
    assert ends[True, True] > 20 and ends[False, False] > 300 and ends[True, False] < 30

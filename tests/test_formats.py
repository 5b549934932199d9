"""Models in shards, MLX and llama2.c forms: the weights that come back, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import resource
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt.errors import CheckpointError, ConfigError, FormatError
from microgpt.io import safetensors, stored
from microgpt.models.decoder import Decoder
from microgpt.models.gguf import save_gguf
from microgpt.models.presets import MODELS
from microgpt.models.pretrained import copy, load_decoder, open_checkpoint, save_decoder, take
from microgpt.tokenizers.ids import IdsTokenizer
from tests.format_tools import LLAMA, a_model, llama2c, mlx, same, sharded, theirs
from tests.training_tools import python

# --- folders ----------------------------------------------------------------------------------------------------------


def test_sharded_folders(tmp_path: Path) -> None:
    model = a_model("gpt2")
    sharded(model, tmp_path / "m")
    assert same(load_decoder(tmp_path / "m"), model)
    linked = tmp_path / "linked"  # as the hub's cache has it
    linked.mkdir()
    for path in (tmp_path / "m").iterdir():
        (linked / path.name).symlink_to(path)
    assert same(load_decoder(linked), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": "../x.safetensors"}, "'../x.safetensors' is not the plain name"),
        ({"model.norm.weight": "/etc/passwd"}, "is not the plain name"),
        ({"model.norm.weight": "C:\\x"}, "is not the plain name"),
        ({"model.norm.weight": "a\0b"}, "is not the plain name"),
        ({"model.norm.weight": "x" * 300}, "is not the plain name"),
        ({"model.norm.weight": ".."}, "is not the plain name"),
        ({"model.norm.weight": 5}, "an object of file names"),
        ({"model.norm.weight": "none.safetensors"}, "none.safetensors is missing, though"),
        ({"model.norm.weight": "pipe"}, "pipe: cannot read: not a regular file"),
        ({"other": "model-00001-of-00003.safetensors"}, "tensors in none of the files: other"),
        ({"model.norm.weight": "model-00001-of-00003.safetensors"}, "tensor 'model.norm.weight' of .* stands in"),
    ],
)
def test_wrong_indexes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import os

    sharded(a_model(), tmp_path / "m")
    os.mkfifo(tmp_path / "m" / "pipe")
    place = tmp_path / "m" / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    index["weight_map"].update(change)
    place.write_text(json.dumps(index))
    with pytest.raises((FormatError, CheckpointError), match=message):
        load_decoder(tmp_path / "m")


@pytest.mark.parametrize("bad", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000])
def test_broken_indexes(tmp_path: Path, bad: str) -> None:
    sharded(a_model(), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(bad)
    with pytest.raises(FormatError, match=r"index\.json: "):
        load_decoder(tmp_path / "m")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_folders(tmp_path: Path, bits: int) -> None:
    model = a_model()
    mlx(model, tmp_path / "m", bits)
    assert same(load_decoder(tmp_path / "m"), model)
    assert len(np.unique(model.arrays()["embed.weight"])) > 61 * 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (None, "config.json has no 'quantization'"),
        ({"bits": 9, "group_size": 32}, "bits expected 2 to 8, got '9'"),
        ({"bits": 8, "group_size": 32}, "8 bits a row do not fit"),
        ({"bits": 3, "group_size": 32}, "do not fit"),
        ({"bits": 4, "group_size": 64}, "do not fit"),
        ({"bits": 4, "group_size": 0}, "group_size expected 1 to 65536"),
        ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, "mode expected 'affine', got 'mxfp4'"),
    ],
)
def test_wrong_mlx_settings(tmp_path: Path, setting: Any, message: str) -> None:
    mlx(a_model(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization"] = setting
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, FormatError), match=message):
        load_decoder(tmp_path / "m")


def test_weights_of_a_bare_base_model(tmp_path: Path) -> None:
    """gpt2 on the hub itself has no "transformer." before its names."""
    for family in ("gpt2", "llama"):
        model = a_model(family, tie_word_embeddings=True)
        folder = tmp_path / family
        folder.mkdir()
        save_decoder(model, folder)
        (folder / "model.safetensors").unlink()
        bare = {name.removeprefix("transformer.").removeprefix("model."): each for name, each in theirs(model).items()}
        if family == "gpt2":
            bare["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.float32)
        safetensors.save(folder / "model.safetensors", bare)
        assert same(load_decoder(folder), model)


def test_missing_extra_and_misshaped_weights_are_all_named(tmp_path: Path) -> None:
    model = a_model()
    save_decoder(model, tmp_path)
    weights = theirs(model)
    (tmp_path / "model.safetensors").unlink()
    wrong = {**weights, "model.norm.weight": np.ones(31, np.float32), "lm_head.weight": np.ones((61, 31), np.float32)}
    safetensors.save(tmp_path / "model.safetensors", wrong)
    with pytest.raises(CheckpointError) as caught:
        load_decoder(tmp_path)
    for line in ("model.norm.weight expected (32,), got (31,)", "lm_head.weight expected (61, 32), got (61, 31)"):
        assert line in str(caught.value)
    (tmp_path / "model.safetensors").unlink()
    del weights["model.norm.weight"], weights["lm_head.weight"]
    safetensors.save(tmp_path / "model.safetensors", {**weights, "x": np.ones(1), "y": np.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"missing \['model.norm.weight', 'lm_head.weight'\]; unexpected \['x', 'y'\]"
    ):
        load_decoder(tmp_path)


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    bare, zipped = tmp_path / "pytorch_model.bin", tmp_path / "model.pt"
    payload = pickle.dumps(Trap(str(tmp_path / "payload")))
    bare.write_bytes(payload)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    for path in (bare, zipped):
        with pytest.raises(
            CheckpointError, match=r"a pickle, which is never opened.*: convert it where you trust it, python -c"
        ):
            microgpt.load(path)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "model_type": "llama", "model_file": "x.py"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match=r"no model\.safetensors; model\.pt is a pickle"):
            microgpt.load(tmp_path)
    assert not (tmp_path / "payload").exists()
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="give the folder"):
        microgpt.load(tmp_path / "x.safetensors")


# --- llama2.c ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_files(tmp_path: Path, tied: bool) -> None:
    model = a_model(tie_word_embeddings=tied, rms_norm_eps=1e-5)
    llama2c(model, tmp_path / "m.bin")
    found = microgpt.load(tmp_path / "m.bin")
    assert same(found.decoder, model) and found.decoder.config == model.config
    assert isinstance(found.tokenizer, IdsTokenizer)
    data = (tmp_path / "m.bin").read_bytes()
    for bad, message in [
        (data[:-4], "makes a file of .* bytes, got"),
        (data + b"\0", "makes a file of"),
        (data[:20], "too few for a llama2.c header"),
        (b"24ka" + data[4:], "a versioned llama2.c file"),
        (data[:4] + b"\xff" * 4 + data[8:], "impossible sizes"),
        (data[:12] + bytes(4) + data[16:], "impossible sizes"),
        (b"\xff" * 100, "impossible sizes"),
    ]:
        (tmp_path / "bad.bin").write_bytes(bad)
        with pytest.raises(FormatError, match=message):
            microgpt.load(tmp_path / "bad.bin")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_pieces_are_copied_in_any_layout() -> None:
    from microgpt.io.stored import Stored

    x = np.arange(6 * 500_000, dtype=np.float32).reshape(6, -1)
    for value in (x, x.T, x.astype(np.float64), x[:, ::2], np.float32(3.0).reshape(())):
        target = np.zeros(value.shape, np.float32)
        copy(Stored(value.shape, "float32", lambda value=value: value), target)  # type: ignore[misc]
        assert np.array_equal(target, value)


def test_nothing_is_allocated_for_what_the_file_cannot_fill(tmp_path: Path) -> None:
    save_decoder(a_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"vocab_size": 2**24}, {"intermediate_size": 2**28}, {"hidden_size": 2**19, "head_dim": 8}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=r"wrong shapes: .* got \(61, 32\)|_proj.weight expected"):
            load_decoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(ConfigError, match="num_hidden_layers: expected a whole number from 1 to 1024"):
        load_decoder(tmp_path)
    ours = tmp_path / "ours"  # a layout without rules
    ours.mkdir()
    save_decoder(Decoder(dataclasses.replace(a_model().config, family="microgpt")), ours)
    config = json.loads((ours / "config.json").read_text())
    (ours / "config.json").write_text(json.dumps({**config, "spec": {**config["spec"], "vocab_size": 2**24}}))
    with pytest.raises(CheckpointError, match="parameters, the files 22,496"):
        load_decoder(ours)


def test_a_model_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from microgpt import system

    save_decoder(a_model(), tmp_path)
    need = open_checkpoint(tmp_path).bytes_needed("float64")
    assert need == 8 * a_model().config.num_parameters()
    monkeypatch.setattr(system, "memory", lambda: (10**9, 100_000))
    with pytest.raises(CheckpointError, match=r"the weights need 0 MB of memory as float64, 0 MB are free"):
        load_decoder(tmp_path, "float64")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told in another unit elsewhere")
def test_opening_reads_nothing_and_loading_needs_the_weights(tmp_path: Path) -> None:
    """60 MB of bfloat16: beyond what Python and its libraries take, 4 MB to open, 1.1 times the size to load."""
    model = Decoder(MODELS.get("llama")(32768, 512, 4, 8, 64, 0.0), "bfloat16")
    save_decoder(model, tmp_path)
    size = 2 * model.config.num_parameters()
    code = f"""
import resource
from pathlib import Path
import microgpt.api, ml_dtypes
from microgpt.models.pretrained import open_checkpoint, take
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
base = peak()
found = open_checkpoint(Path({str(tmp_path)!r}))
opened = peak()
model = take(found)
print(opened - base, peak() - base)
"""
    opened, loaded = map(int, python(code).stdout.split())
    assert size > 55e6 and opened < 4e6 and loaded < 1.1 * size + 8e6
    assert resource.getpagesize() <= size


def test_no_file_is_mapped() -> None:
    """A map of a file that somebody cuts short would end the process."""
    for path in Path(microgpt.__file__).parent.rglob("*.py"):
        assert re.search(r"\b(mmap|memmap|mmap_mode)\b", path.read_text(encoding="utf-8")) is None, path


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "llama2c"])
def test_a_file_that_is_cut_short_between_its_size_and_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = a_model()
    if kind == "safetensors":
        save_decoder(model, tmp_path)
        place, victim = tmp_path, tmp_path / "model.safetensors"
    elif kind == "llama2c":
        place = victim = tmp_path / "m.bin"
        llama2c(a_model(tie_word_embeddings=True), victim)
    else:
        place = victim = tmp_path / "m.gguf"
        save_gguf(model, victim, "f32")
    size = victim.stat().st_size
    whole = stored.WeightFile.__init__

    def opened(self: stored.WeightFile, path: Path) -> None:
        whole(self, path)
        os.truncate(victim, 12)

    monkeypatch.setattr(stored.WeightFile, "__init__", opened)
    message = f"cut short while it was read: it had {size} bytes and has 12|12 bytes, too few"
    with pytest.raises(FormatError, match=message):
        open_checkpoint(place)


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "llama2c", "quantized"])
def test_a_file_that_is_cut_short_while_it_is_open(tmp_path: Path, kind: str) -> None:
    """A typed error and no SIGBUS: nothing is mapped."""
    model = a_model(hidden_size=64, tie_word_embeddings=True)
    if kind == "safetensors":
        save_decoder(model, tmp_path)
        place, victim = tmp_path, tmp_path / "model.safetensors"
    elif kind == "llama2c":
        place = victim = tmp_path / "m.bin"
        llama2c(model, victim)
    else:
        place = victim = tmp_path / "m.gguf"
        save_gguf(model, victim, "f32" if kind == "gguf" else "q8_0")
    found = open_checkpoint(place)
    size = victim.stat().st_size
    os.truncate(victim, size // 2)
    with pytest.raises(FormatError, match=f"cut short while it was read: it had {size} bytes and has {size // 2}"):
        take(found)

"""`microgpt convert`: there and back, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import microgpt
from microgpt.errors import CheckpointError, ConfigError, StorageError, TokenizerError
from microgpt.io import safetensors
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.ids import IdsTokenizer
from tests.cli_tools import environment, run
from tests.format_tools import a_model, llama2c, same


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a tokenizer."""
    return microgpt.LanguageModel(a_model(vocab_size=4), CharTokenizer("abc")).save(tmp_path / "folder")


def test_convert_there_and_back(folder: Path, tmp_path: Path) -> None:
    done = run("convert", str(folder), str(tmp_path / "m.gguf"), "--type", "f32")
    assert done.exit_code == 0 and done.stdout == ""
    said = done.stderr.splitlines()
    assert said[0].endswith("folder: llama, 18,848 parameters, 0.1 MB of memory as float32")
    assert "saved in " in said[1] and "bits a parameter" in said[1]
    assert run("convert", str(tmp_path / "m.gguf"), str(tmp_path / "back"), "--quiet").stderr == ""
    one, two = microgpt.load(folder), microgpt.load(tmp_path / "back")
    assert same(one.decoder, two.decoder) and two.tokenizer.decode([1, 2]) == "ab"
    assert (folder / "config.json").read_text() == (tmp_path / "back" / "config.json").read_text()
    bf16 = run("convert", str(tmp_path / "m.gguf"), str(tmp_path / "bf16"), "--type", "bf16")
    assert bf16.exit_code == 0 and microgpt.load(tmp_path / "bf16").decoder.dtype == "bfloat16"
    written = run("generate", "--model", str(tmp_path / "m.gguf"), "--prompt", "ab", "--seed", "1", "--max-tokens", "5")
    assert written.exit_code == 0 and written.stdout.startswith("ab")


def test_convert_refuses(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    for arguments, code, message in [
        ([str(folder), str(target), "--type", "q4"], 2, "unknown GGUF type"),
        ([str(folder), str(tmp_path / "x"), "--type", "q4_0"], 2, "a folder holds f32 or bf16"),
        ([str(tmp_path / "none"), str(target)], 2, "does not exist"),
        ([str(folder), str(folder)], 2, "exists; --force replaces it"),
        ([str(folder)], 2, "TARGET"),
        ([str(tmp_path), str(target)], 1, "no config.json"),
        ([str(folder), str(tmp_path / "no" / "m.gguf")], 1, "No such file or directory"),
    ]:
        done = run("convert", *arguments)
        assert done.exit_code == code and message in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.splitlines()) <= 2
    assert not target.exists()
    target.write_text("old")
    assert run("convert", str(folder), str(target)).exit_code == 2 and target.read_text() == "old"
    assert run("convert", str(folder), str(target), "--force").exit_code == 0 and target.read_bytes()[:4] == b"GGUF"
    for place, other in ((tmp_path / "d.gguf", "file"), (target.rename(tmp_path / "f"), "folder")):
        if other == "file":
            place.mkdir()
        done = run("convert", str(folder), str(place), "--force")
        assert done.exit_code == 2 and f"expected a {other} to replace" in done.stderr


def test_a_save_that_fails_leaves_no_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("writing model.safetensors failed: disk full")

    model = microgpt.load(folder)
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(safetensors, "save", full)
    for name in ("new", "kept"):
        with pytest.raises(StorageError, match=r"^writing model.safetensors failed: disk full$"):
            model.save(tmp_path / name)
    assert not (tmp_path / "new").exists() and list((tmp_path / "kept").iterdir()) == []


def test_a_folder_that_is_replaced_keeps_nothing_of_the_model_before(folder: Path, tmp_path: Path) -> None:
    """Shards, indexes, pickles, other vocabularies and chat templates would be taken for parts of the new one."""
    model = microgpt.load(folder)
    model.tokenizer.chat_templates.update({"default": "{{ messages }}", "tools": "{{ tools }}"})
    old = model.save(tmp_path / "old")
    (old / "model.safetensors").rename(old / "model-00001-of-00002.safetensors")
    stale = """model-00002-of-00002.safetensors model.safetensors.index.json pytorch_model.bin vocab.json merges.txt
        tokenizer.model added_tokens.json 1_Pooling/config.json""".split()
    own = ["README.md", "notes/config.json", "data.safetensors", "1_Pooling/mine"]
    for name in [*stale, *own]:
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text("{}")
    assert run("convert", str(folder), str(old), "--force", "--quiet").exit_code == 0
    left = {path.relative_to(old).as_posix() for path in old.rglob("*") if path.is_file()}
    assert left == {path.name for path in folder.iterdir()} | set(own)
    assert microgpt.load(old).tokenizer.chat_templates == {}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "vocab.json").write_text("{}")  # of no model
    model.save(tmp_path / "new")
    assert (tmp_path / "new" / "vocab.json").exists()


def test_a_name_that_is_not_utf8_and_a_number_beyond_float32(folder: Path, tmp_path: Path) -> None:
    model = microgpt.load(folder)
    place = tmp_path / os.fsdecode(b"a\xff.gguf")
    try:
        place.touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert microgpt.load(model.export(place, "f32")).decoder.config == model.decoder.config
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e308}))
    with pytest.raises(ConfigError, match=r"cannot say what this model is: .*norm eps .*: expected a number"):
        microgpt.load(folder).export(tmp_path / "m.gguf")


def test_load_names_the_place(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, message in [
        (tmp_path / "none", "none: cannot open: No such file"), (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "a\0b", "null"), (tmp_path / "pipe.gguf", "got a device or pipe"),
    ]:  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            microgpt.load(path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 0}))
    done = run("generate", "--model", str(folder))
    assert done.exit_code == 1 and done.stderr.startswith(f"error: {folder / 'config.json'}: vocab_size: expected")


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    made = microgpt.train(data="names", model="mistral", steps=1, layers=1, width=16, heads=2, out=tmp_path / "run")
    assert made is not None
    model = microgpt.load(tmp_path / "run")
    back = microgpt.load(model.export(tmp_path / "m.gguf", "f32"))
    options = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    assert back.generate("e", **options).ids == model.generate("e", **options).ids


def test_generate_with_a_closed_stdout(folder: Path) -> None:
    command = f"{sys.executable} -m microgpt generate --model {folder} --prompt ab --max-tokens 2 --seed 1 >&-"
    done = subprocess.run(command, shell=True, env=environment(), stderr=subprocess.PIPE, text=True, timeout=120,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_without_a_vocabulary_stays_one_of_ids(tmp_path: Path) -> None:
    """A folder says so too; llama2.c keeps the vocabulary in a file beside, tokenizer.bin."""
    from tests.tokenizer_tools import llama2c as vocabulary

    llama2c(a_model(vocab_size=600, tie_word_embeddings=True), tmp_path / "m.bin")
    assert run("convert", str(tmp_path / "m.bin"), str(tmp_path / "m")).exit_code == 0
    back = microgpt.load(tmp_path / "m")
    assert isinstance(back.tokenizer, IdsTokenizer) and back.tokenizer.vocab_size == 600
    assert back.tokenizer.encode("5 7") == [5, 7]
    config = tmp_path / "m" / "tokenizer_config.json"
    for bad in ({"vocab_size": 0}, {"vocab_size": "x"}, {"bos_token_id": [1]}, {"vocab_size": 2**25}):
        config.write_text(json.dumps({"tokenizer_class": "IdsTokenizer", "vocab_size": 600, **bad}))
        with pytest.raises(TokenizerError, match="expected a vocab_size of 1 to"):
            microgpt.load(tmp_path / "m")
    (tmp_path / "tokenizer.bin").write_bytes(vocabulary()[:9000])
    with pytest.raises(TokenizerError, match=r"tokenizer\.bin"):
        microgpt.load(tmp_path / "m.bin")
    (tmp_path / "tokenizer.bin").write_bytes(vocabulary())
    size = Tokenizer.load(tmp_path / "tokenizer.bin").vocab_size
    llama2c(a_model(vocab_size=size, tie_word_embeddings=True), tmp_path / "m.bin")
    assert microgpt.load(tmp_path / "m.bin").tokenizer.encode("a b") != []


def test_gguf_in_capitals_and_weights_of_other_quantizers(folder: Path, tmp_path: Path) -> None:
    assert run("convert", str(folder), str(tmp_path / "M.GGUF"), "--quiet").exit_code == 0
    assert (tmp_path / "M.GGUF").read_bytes()[:4] == b"GGUF"
    assert microgpt.load(tmp_path / "M.GGUF").decoder.config.family == "llama"
    config = json.loads((folder / "config.json").read_text())
    for method in ("hqq", "eetq", "fp8", 7):
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        with pytest.raises(ConfigError, match=f"weights quantized by .*{method}.*: plain ones, MLX's"):
            microgpt.load(folder)

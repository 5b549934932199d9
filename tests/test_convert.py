"""`microgpt convert`: there and back, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import microgpt
from microgpt.tokenizers.char import CharTokenizer
from tests.cli_tools import run
from tests.format_tools import a_model, same


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

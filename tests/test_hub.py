"""Models by id: what is asked of the hub's library, and what is said when that fails. Nothing here needs a network."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt.errors import CheckpointError, MissingExtraError
from microgpt.io import hub
from tests.cli_tools import environment

library = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hub") / "snapshot"
    run = microgpt.train(out=None, layers=1, width=8, heads=2, steps=1)
    return microgpt.LanguageModel(run.model, run.tokenizer).save(place)


def test_what_is_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org/there").mkdir()
    for name in ("org/name", "HuggingFaceTB/SmolLM2-135M", "a/b.c-d_e", "org/name@refs/pr/1", "org/name@main"):
        assert hub.is_id(name)
    for name in (
        "name",
        "org/there",
        "./org/name",
        "/org/name",
        "a/b/c",
        "../a",
        "a/..",
        "a/b\n",
        "",
        "a/",
        "~/x",
        "é/x",
    ):
        assert not hub.is_id(name)


def test_load_asks_for_what_a_model_needs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(model)

    monkeypatch.setattr(library, "snapshot_download", snapshot)
    loaded = microgpt.load("org/name@v1.0")
    assert loaded.generate(max_tokens=3, seed=1).text == microgpt.load(model).generate(max_tokens=3, seed=1).text
    assert (asked["repo_id"], asked["revision"]) == ("org/name", "v1.0")
    files = {
        "config.json": 1, "model.safetensors": 1, "model-00001-of-00002.safetensors": 1, "tokenizer.json": 1,
        "model.safetensors.index.json": 1, "chat_template.jinja": 1, "tokenizer.model": 1, "qwen.tiktoken": 1,
        "additional_chat_templates/tool_use.jinja": 1, "pytorch_model.bin": 0, "model.onnx": 0, "README.md": 0,
        "original/consolidated.00.pth": 0, "tf_model.h5": 0, "onnx/model.onnx": 0, "modeling_x.py": 0,
        "original/model.safetensors": 0, "consolidated.safetensors": 0, "training_args.bin": 0,
    }  # fmt: skip
    for name, wanted in files.items():
        assert any(fnmatch.fnmatch(name, each) for each in asked["allow_patterns"]) == bool(wanted), name
    microgpt.load("org/name")
    assert asked["revision"] is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", r"^org/name: its owner grants access"),
        ("RepositoryNotFoundError", r"^org/name: no such model on the hub \(or a private one\), and no folder"),
        ("RevisionNotFoundError", r"^org/name: the model has no revision 'x'"),
        (
            "LocalEntryNotFoundError",
            r"^org/name: no such file or folder here; the hub cannot be reached, and the model is not in the cache .+",
        ),
        (
            "OfflineModeIsEnabled",
            r"^org/name: no such file or folder here; the hub cannot be reached, and the model is not in the cache .+",
        ),
        ("OSError", r"^org/name: the download into .+ failed; try again to go on \(no space\)"),
    ],
)
def test_what_goes_wrong(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = getattr(library.errors, name, OSError)
    error = kind.__new__(kind)  # some of them want the response of a server
    Exception.__init__(error, "no space")

    def fail(repo_id: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(library, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message.replace("org/name", "org/name@x")):
        microgpt.load("org/name@x")


def test_a_folder_without_config_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "snapshot_download", lambda repo_id, **options: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^org/name: no config\.json in .*not complete, or it is no model"):
        microgpt.load("org/name")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install microgpt\[hub\]"):
        microgpt.load("org/name")


def test_offline_for_real(model: Path, tmp_path: Path) -> None:
    """The real library with an empty cache and HF_HUB_OFFLINE, then with the model in the cache."""
    code = "import microgpt\nprint(microgpt.load('org/name').generate(max_tokens=3, seed=1).text)"
    cache = tmp_path / "cache"
    env = environment(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache), HF_HOME=str(tmp_path / "home"))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)

    done = run()
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(
        f"org/name: no such file or folder here; the hub cannot be reached, and the model is not in the cache {cache}"
    ), done.stderr
    commit = "0" * 40
    snapshot = cache / "models--org--name" / "snapshots" / commit
    blobs = cache / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in model.iterdir():  # as the library lays it out: links to blobs
        (blobs / file.name).write_bytes(file.read_bytes())
        os.symlink(f"../../blobs/{file.name}", snapshot / file.name)
    (cache / "models--org--name" / "refs").mkdir()
    (cache / "models--org--name" / "refs" / "main").write_text(commit)
    done = run()
    assert done.returncode == 0, done.stderr
    with warnings.catch_warnings():
        assert done.stdout == microgpt.load(model).generate(max_tokens=3, seed=1).text + "\n"

"""Models by id: what is asked of the hub's library, and what is said when that fails. Nothing here needs a network."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt.errors import CheckpointError, MissingExtraError
from microgpt.io import hub
from microgpt.models.decoder import Decoder
from microgpt.models.presets import MODELS
from microgpt.tokenizers.char import CharTokenizer
from tests.cli_tools import environment, run
from tests.hub_server import COMMIT, serve

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


# -- the real library, and a hub on this machine ------------------------------


CODE = """
import sys
import microgpt
for name in sys.argv[1:]:
    try:
        print(microgpt.load(name).logits([1, 2]).tobytes().hex()[:200])
    except microgpt.errors.CheckpointError as error:
        print(f"CheckpointError: {error}")
"""
NOISE = {"pytorch_model__bin": b"x" * 5000, "README__md": b"x", "model__fp16__safetensors": b"x" * 5000,
         "tf_model__h5": b"x" * 5000, "modeling_x__py": b"raise SystemExit"}  # fmt: skip


def settings(place: Path, endpoint: str, **more: str) -> dict[str, str]:
    """The environment of a process whose hub is at `endpoint` and whose cache is below `place`."""
    usual = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(place / "cache"), "HF_HOME": str(place / "home"),
             "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}  # fmt: skip
    without = {key: "" for key in os.environ if key.lower().endswith("_proxy")}
    return environment(**{**usual, **without, **more})


def ask(place: Path, endpoint: str, *names: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Load models in such a process; a line for each."""
    command = [sys.executable, "-c", CODE, *(names or ["org/name"])]
    env = settings(place, endpoint, **more)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The error that the process ended with."""
    assert done.returncode == 0 and done.stdout.startswith("CheckpointError: "), done.stderr
    return done.stdout.strip().removeprefix("CheckpointError: ")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 MB: the library fetches in pieces of 10 MiB."""
    place = tmp_path_factory.mktemp("hub") / "large"
    decoder = Decoder(MODELS.get("llama")(25_000, 256, 1, 4, 16, 0.0))
    return microgpt.LanguageModel(decoder, CharTokenizer("abc")).save(place)


def first(folder: Path) -> str:
    """What the process says of this model."""
    return microgpt.load(folder).logits([1, 2]).tobytes().hex()[:200] + "\n"


def test_a_whole_download_and_then_without_a_network(model: Path, tmp_path: Path) -> None:
    wanted = first(model)
    with serve(model, **NOISE) as hub_here:
        done = ask(tmp_path, hub_here.endpoint)
        assert (done.returncode, done.stdout) == (0, wanted), done.stderr
        files = {path.name for path in model.iterdir()}
        assert hub_here.fetched() == files and not files & {"pytorch_model.bin", "model.fp16.safetensors"}
        assert hub_here.sent == {name: len(hub_here.files[name]) for name in files}
        assert "Fetching" in done.stderr and "%" in done.stderr  # progress
        again = ask(tmp_path, hub_here.endpoint)
        assert again.stdout == wanted
        assert hub_here.sent == {name: len(hub_here.files[name]) for name in files}  # nothing twice
    gone = ask(tmp_path, hub_here.endpoint)  # nobody answers there now
    assert (gone.returncode, gone.stdout) == (0, wanted), gone.stderr
    offline = ask(tmp_path, hub_here.endpoint, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, wanted), offline.stderr


def test_without_a_network_and_without_the_model(model: Path, tmp_path: Path) -> None:
    with serve(model) as hub_here:
        endpoint = hub_here.endpoint
    for more in ({"HF_HUB_OFFLINE": "1"}, {}):
        assert said(ask(tmp_path, endpoint, **more)) == (
            "org/name: no such file or folder here; the hub cannot be reached, and the model is not in the cache "
            f"{tmp_path / 'cache'}"
        )


def test_a_connection_that_breaks_is_taken_up_where_it_broke(large: Path, tmp_path: Path) -> None:
    name, cut = "model.safetensors", 20 << 20  # two pieces
    with serve(large) as hub_here:
        hub_here.breaks[name] = cut
        done = ask(tmp_path, hub_here.endpoint)
        assert done.returncode == 0, done.stderr
        size = len(hub_here.files[name])
        assert size > cut + 100_000 and hub_here.sent[name] == size  # each byte once
        ranges = [given for way, path, given in hub_here.asked if way == "GET" and path.endswith(name)]
        assert ranges == ["", f"bytes={cut}-"]
    assert done.stdout == first(large)
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_download_that_was_stopped_goes_on_with_what_is_missing(large: Path, tmp_path: Path) -> None:
    """Killed in the middle of the weights; what was complete is not fetched again."""
    name = "model.safetensors"
    with serve(large) as hub_here:
        hub_here.breaks[name], hub_here.waits = 12 << 20, threading.Event()
        with subprocess.Popen([sys.executable, "-c", CODE, "org/name"], env=settings(tmp_path, hub_here.endpoint),
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # fmt: skip
            assert hub_here.reached.wait(60)
            snapshot = tmp_path / "cache" / "models--org--name" / "snapshots" / COMMIT
            deadline = time.monotonic() + 30
            while len(list(snapshot.glob("*"))) < len(hub_here.files) - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            process.kill()
        hub_here.waits.set()
        message = said(ask(tmp_path, hub_here.endpoint, HF_HUB_OFFLINE="1"))
        assert (
            message
            == f"org/name: the hub cannot be reached, and the model is not complete in the cache {tmp_path / 'cache'}"
        )
        done = ask(tmp_path, hub_here.endpoint)
        assert done.returncode == 0, done.stderr
        sizes = {each: len(data) for each, data in hub_here.files.items()}
        assert hub_here.sent == {**sizes, name: sizes[name] + (12 << 20)}


REFUSED = {
    "org/other": "no such model on the hub (or a private one), and no folder of that name",
    "org/private": "no such model on the hub (or a private one), and no folder of that name",
    "org/name@v9": "the model has no revision 'v9'",
    "org/gated": "its owner grants access; ask for it on the hub, then `hf auth login`",
    "org/closed": "its owner grants access; ask for it on the hub, then `hf auth login`",
    "org/down": "no such file or folder here; the hub cannot be reached, and the model is not in the cache ",
}


def test_what_the_hub_refuses(model: Path, tmp_path: Path) -> None:
    with serve(model) as hub_here:
        hub_here.errors = {
            "org/private": (401, "RepoNotFound"),
            "org/closed": (403, "GatedRepo"),
            "org/down": (500, ""),
        }
        done = ask(tmp_path, hub_here.endpoint, *REFUSED)
    assert done.returncode == 0, done.stderr
    for line, (name, message) in zip(done.stdout.splitlines(), REFUSED.items(), strict=True):
        assert line.startswith(f"CheckpointError: {name}: {message}"), line


def test_pickles_alone_are_not_fetched(model: Path, tmp_path: Path) -> None:
    with serve(model, **NOISE) as hub_here:
        del hub_here.files["model.safetensors"], hub_here.files["model.fp16.safetensors"]
        message = said(ask(tmp_path, hub_here.endpoint))
        assert message.startswith("org/name: the model has no safetensors; a pickle is never opened")
        assert "from_pretrained('org/name')" in message
        assert "pytorch_model.bin" not in hub_here.fetched()


def test_every_verb_that_reads_models_takes_ids(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def snapshot(repo_id: str, **options: Any) -> str:
        asked.append(repo_id)
        return str(model)

    monkeypatch.setattr(library, "snapshot_download", snapshot)
    (tmp_path / "text.txt").write_text("annaemma")
    for command in (
        ["generate", "--model", "org/name", "--max-tokens", "2"],
        ["convert", "org/name", "m.gguf"],
        ["quantize", "org/name", "--out", "q"],
        ["perplexity", "org/name", "text.txt"],
    ):
        done = run(*command)
        assert done.exit_code == 0, done.stderr
    assert asked == ["org/name"] * 4
    (tmp_path / "runs").mkdir()  # a path that is mistyped, and nothing that is asked for elsewhere
    wrong = run("generate", "--model", "runs/nmes-1")
    assert wrong.exit_code == 2 and "'runs/nmes-1' does not exist" in wrong.stderr and len(asked) == 4

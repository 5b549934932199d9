"""Training when something is wrong: the error says what and where, and what was good stays good."""

from __future__ import annotations

import collections
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LockError,
    MicrogptError,
    NonFiniteError,
    StorageError,
)
from microgpt.io.checkpoint import RunFolder
from microgpt.training.callback import Callback
from microgpt.training.config import TrainConfig
from microgpt.training.pretrain import pretrain
from microgpt.training.trainer import Trainer
from tests.training_tools import SMALL, digests, python, same, small, weights, words


# -- numbers that are not finite ---------------------------------------------------------------------------------------
class Patch(Callback):
    """A callback that spoils a weight after a step, and keeps the trainer's model."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value
        self.before: dict[str, Any] = {}
        self.model: Any = None

    def record(self, values: dict[str, Any]) -> None:
        if values["step"] == self.step:
            self.model.embed.weight.numpy()[3, 2] = self.value
            self.before = {name: array.copy() for name, array in self.model.arrays().items()}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("replay", ["0", "1"])
def test_a_weight_that_is_not_finite_stops_the_run(
    value: float, replay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROGPT_REPLAY", replay)
    patch = Patch(5, value)
    run = Trainer.run

    def remember(self: Trainer) -> None:
        patch.model = self.objective.model  # type: ignore[attr-defined]
        run(self)

    monkeypatch.setattr(Trainer, "run", remember)
    config = TrainConfig(**{**SMALL, "save_every": 2, "batch_size": 32, "steps": 20, "packing": False})
    message = r"^step 6: (loss|gradient norm) is (nan|inf) \(sequences 160 to 191 "
    with pytest.raises(NonFiniteError, match=message) as caught:
        pretrain(config, tmp_path, callbacks=[patch])
    assert "weights are those of the step before" in str(caught.value)
    assert same({name: array.copy() for name, array in patch.model.arrays().items()}, patch.before)
    newest, problems = RunFolder(tmp_path).latest()
    assert newest.name == "step-4" and problems == []
    assert all(np.isfinite(array).all() for array in microgpt.load(tmp_path).decoder.arrays().values())
    monkeypatch.setattr(Trainer, "run", run)
    assert microgpt.train(resume=tmp_path).steps == 20  # from good weights it goes on
    assert np.isfinite(microgpt.load(tmp_path).logits([0, 1, 2])).all()


def test_a_router_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No expert is chosen out of range, and the weights stay those of the step before."""

    class Spoiled(Patch):
        def record(self, values: dict[str, Any]) -> None:
            if values["step"] == self.step:
                self.model.blocks[0].ffn.router.weight.numpy()[1, 2] = self.value
                self.before = {name: array.copy() for name, array in self.model.arrays().items()}

    patch, run = Spoiled(3, np.nan), Trainer.run

    def remember(self: Trainer) -> None:
        patch.model = self.objective.model  # type: ignore[attr-defined]
        run(self)

    monkeypatch.setattr(Trainer, "run", remember)
    with pytest.raises(NonFiniteError, match=r"^step 4: (loss|gradient norm) is nan"):
        pretrain(TrainConfig(**{**SMALL, "model": "moe"}), tmp_path, callbacks=[patch])
    assert same({name: array.copy() for name, array in patch.model.arrays().items()}, patch.before)


def test_a_learning_rate_that_is_far_too_large(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"^step \d+: ") as caught:
        small(lr=1e30, warmup=0, steps=50, save_every=1, out=tmp_path)
    assert "lower lr" in str(caught.value)
    for folder in RunFolder(tmp_path).checkpoints():
        assert all(np.isfinite(array).all() for array in microgpt.load(folder).decoder.arrays().values())


def test_weights_that_overflowed_in_the_last_step_are_not_saved(tmp_path: Path) -> None:
    """The loss of that step was finite: only the weights tell."""
    config = TrainConfig(**{**SMALL, "steps": 4, "save_every": 2, "log_every": 1})
    patch = Patch(4, np.inf)
    run = Trainer.run

    def remember(self: Trainer) -> None:
        patch.model = self.objective.model  # type: ignore[attr-defined]
        run(self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, "run", remember)
        with pytest.raises(NonFiniteError, match="step 4: weights are no longer finite and were not saved"):
            pretrain(config, tmp_path, callbacks=[patch])
    assert [folder.name for folder in RunFolder(tmp_path).checkpoints()] == ["step-2"]


# -- run folders -------------------------------------------------------------------------------------------------------
def test_two_trainers_on_one_folder(tmp_path: Path) -> None:
    small(out=tmp_path)
    before = digests(tmp_path)
    with RunFolder(tmp_path):
        with pytest.raises(LockError, match=f"process {os.getpid()}"):
            microgpt.train(resume=tmp_path, steps=20)
        done = python("import sys, microgpt; microgpt.train(resume=sys.argv[1], steps=20)", str(tmp_path))
        assert done.returncode != 0 and f"LockError: {tmp_path}: another trainer (process {os.getpid()})" in done.stderr
    assert digests(tmp_path) == before
    assert microgpt.train(resume=tmp_path, steps=12).steps == 12


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    small(out=tmp_path)
    before = digests(tmp_path)
    with pytest.raises(ConfigError, match="already holds a run"):
        small(out=tmp_path)
    assert digests(tmp_path) == before
    with pytest.raises(ConfigError, match="out or resume"):
        microgpt.train(out=tmp_path, resume=tmp_path)


def remove(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def truncate(name: str) -> Callable[[Path], None]:
    return lambda place: os.truncate(place / name, (place / name).stat().st_size // 2)


def flip(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        data = bytearray((place / name).read_bytes())
        data[len(data) // 2] ^= 1
        (place / name).write_bytes(data)

    return change


def other_version(place: Path) -> None:
    path = place / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))


FILES = ("model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json", "tokenizer.json")
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"missing {name}": (remove(name), f"{name}: missing") for name in (*FILES, "manifest.json")},
    **{f"truncated {name}": (truncate(name), f"{name}: truncated") for name in FILES},
    **{f"altered {name}": (flip(name), f"{name}: altered") for name in (*FILES, "manifest.json")},
    "truncated manifest.json": (truncate("manifest.json"), "manifest.json: altered or truncated"),
    "other version": (other_version, "manifest.json: expected format_version 1, got 2"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps with checkpoints 5 and 10."""
    path = tmp_path_factory.mktemp("finished") / "run"
    small(out=path, save_every=5)
    return path


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_checkpoints(damage: Callable[[Path], None], message: str, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    damage(run / "step-10")
    lines: list[str] = []
    assert microgpt.train(resume=run, steps=6, say=lines.append).steps == 6  # from the one before
    assert any(message in line for line in lines) and any("using step-5 instead" in line for line in lines)
    shutil.rmtree(run)
    shutil.copytree(finished, run)
    for name in ("step-5", "step-10"):
        damage(run / name)
    for attempt in (lambda: microgpt.load(run), lambda: microgpt.train(resume=run)):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert message in str(caught.value)
    if "manifest.json: missing" not in message:  # without its manifest a folder is a model like any other
        with pytest.raises(CheckpointError) as caught:
            microgpt.load(run / "step-10")
        assert message in str(caught.value)


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    for attempt in (microgpt.load, lambda place: microgpt.train(resume=place)):
        with pytest.raises(CheckpointError):
            attempt(tmp_path)
        with pytest.raises(CheckpointError):
            attempt(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    small(out=tmp_path / "run")
    place = tmp_path / "run" / "step-10"
    (place / "manifest.json").unlink()
    (place / "model.safetensors").rename(place / "model.bin")
    with pytest.raises(CheckpointError, match=r"model\.bin is a pickle, which is never opened"):
        microgpt.load(place)


def test_resume_with_changed_data(tmp_path: Path) -> None:
    corpus = words(tmp_path / "words.txt")
    small(data=str(corpus), out=tmp_path / "run")
    text = corpus.read_text()
    corpus.write_text(text.replace("a", "b", 1))
    with pytest.raises(DataError, match="data differ from those of the checkpoint: fingerprint was"):
        microgpt.train(resume=tmp_path / "run", steps=20)
    corpus.write_text(text + "abc\n")
    with pytest.raises(DataError, match="data differ from those of the checkpoint: documents was"):
        microgpt.train(resume=tmp_path / "run", steps=20)
    corpus.unlink()
    with pytest.raises(DataError, match="no data"):
        microgpt.train(resume=tmp_path / "run", steps=20)
    corpus.write_text(text)
    with pytest.raises(ConfigError, match=r"batch_size: the run that is resumed has 4, got 2 .the order of the data"):
        microgpt.train(resume=tmp_path / "run", steps=20, batch_size=2)
    assert microgpt.train(resume=tmp_path / "run", steps=20).steps == 20


def test_a_full_disk_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 4096, 4096))
    with pytest.raises(StorageError) as caught:
        small(out=tmp_path / "run")
    assert "4096" in str(caught.value) or "4,096" in str(caught.value) or "4.0" in str(caught.value)
    assert RunFolder(tmp_path / "run").checkpoints() == []
    assert small().steps == 10  # without a folder there is nothing to store


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        small(out=tmp_path / "file" / "run")


# -- settings ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batchsize": 4}, "unknown setting 'batchsize' (did you mean 'batch_size'?)"),
        ({"learning_rate": 1}, "unknown setting 'learning_rate'"),
        ({"model": "gtp"}, "unknown model 'gtp' (did you mean 'gpt'?)"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam' (did you mean 'adamw'?)"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin' (did you mean 'cosine'?)"),
        ({"documents": "lines"}, "did you mean 'line'?"),
        ({"heads": 3}, "heads: expected a divisor of the width 16, got 3"),
        ({"heads": 32}, "heads: expected a divisor of the width 16, got 32"),
        ({"heads": 0}, "heads: expected a whole number from 1"),
        ({"layers": 0}, "layers"),
        ({"layers": 1025}, "from 1 to 1024"),
        ({"width": -4}, "width"),
        ({"width": 16.0}, "width"),
        ({"width": True}, "width"),
        ({"block_size": 0}, "block_size"),
        ({"steps": 0}, "steps"),
        ({"steps": 5, "epochs": 1}, "steps or epochs"),
        ({"steps": None, "epochs": 0}, "epochs"),
        ({"steps": None, "epochs": float("nan")}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"lr": 1e39}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"min_lr": 1.5}, "min_lr"),
        ({"dropout": 1.0}, "dropout"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta2": -0.1}, "beta2"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum"),
        ({"clip": -1}, "clip"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"dtype": "int8"}, "dtype: expected one of f32, bf16, f64, auto, float32, bfloat16, float64, got 'int8'"),
        ({"ema": 1.0}, "ema: expected a number from 0.0 to"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected"),
        ({"z_loss": -1.0}, "z_loss: expected"),
        ({"patience": 2}, "patience: expected eval_every above 0"),  # SMALL validates at the end only
        ({"weights": (1.0, 2.0)}, "weights: expected one for each of the 1 data"),
        ({"data": ("names", "names"), "weights": (1.0, 0.0)}, "weights: expected a number from"),
        ({"data": ()}, "data: expected a path or several"),
        ({"groups": ({"where": "nothing.*", "lr_scale": 0.5},)}, "groups[0]: filter 'nothing.*' matches no parameter"),
        ({"groups": ({"where": "*"},)}, "groups[0]: expected weight_decay, lr_scale or both"),
        ({"groups": ({"where": "*", "lr": 1.0},)}, "groups[0]: unknown key 'lr'"),
        ({"groups": ({"where": len, "lr_scale": 1.0},)}, "groups[0].where: expected a glob"),
        ({"groups": ({"where": "*", "lr_scale": 1.0}, {"where": "*", "lr_scale": 2.0})}, "nothing: all are taken"),
        ({"tensorboard": "yes"}, "tensorboard: expected true or false"),
        ({"keep": 0}, "keep"),
        ({"accumulate": 0}, "accumulate"),
        ({"log_every": 0}, "log_every"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        microgpt.train(**{**SMALL, **settings}, out=tmp_path / "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert RunFolder(tmp_path / "run").checkpoints() == []


# -- data --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b" \n\t\n", "nothing but white space"),
        (b"abc\0def", "binary file (NUL at byte 3)"),
        (b"abc\xff", "byte 0xff at byte offset 3"),
        (b"\xff\xfea\0b\0", "binary"),
        (None, "no data"),
    ],
)
def test_unusable_data(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        small(data=str(path))
    assert message in str(caught.value) and "corpus.txt" in str(caught.value)


def test_data_that_vanish_or_are_not_readable(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    with pytest.raises(DataError, match="expected text files"):
        small(data=str(folder))
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.txt: a link to a file that is not there"):
        small(data=str(folder))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        small(data=str(tmp_path / "pipe"))


def test_the_smallest_corpus_trains(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a")
    with pytest.raises(DataError, match=r"one\.txt: 2 training tokens are fewer than one sequence \(block_size 8\)"):
        small(data=str(tmp_path / "one.txt"), documents="file")
    run = small(data=str(tmp_path / "one.txt"), documents="file", block_size=2)
    assert run.steps == 10 and np.isfinite(run.loss)
    with pytest.raises(MicrogptError):
        microgpt.LanguageModel(run.model, run.tokenizer).generate("b")
    assert weights(run)["embed.weight"].shape == (2, 16)

"""Training through the public face: it learns, and the same settings give the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt.errors import ConfigError
from microgpt.models.presets import MODELS
from microgpt.nn.context import Dropout
from microgpt.optim.arena import Arenas, decay_groups
from microgpt.optim.rules import RULES
from microgpt.optim.schedule import KINDS, Schedule
from microgpt.training.build import make_data, make_model
from microgpt.training.callback import Callback
from microgpt.training.config import TrainConfig
from microgpt.training.objective import LanguageModeling
from microgpt.training.pretrain import make_trainer
from microgpt.training.trainer import Trainer
from tests.training_tools import SMALL, digests, python, same, small, weights, words

# Enough work that every kernel is shared among threads.
WIDE: dict[str, Any] = {"layers": 2, "heads": 4, "width": 64, "block_size": 32, "batch_size": 16, "steps": 10}


# -- it learns ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", list(MODELS))
def test_loss_falls_on_names(model: str) -> None:
    """From ln 27 = 3.30 for a guess among 27 characters. Knowing only how frequent each one is gives 2.8 nats."""
    run = microgpt.train(model=model, layers=1, width=32, steps=150, batch_size=16, lr=1e-2, eval_every=0)
    assert abs(run.losses[0] - np.log(27)) < 1.0
    assert run.loss < 2.7
    assert run.val_loss is not None and run.val_loss < 2.7
    assert run.steps == 150 and len(run.losses) == 15


def test_karpathys_configuration_learns() -> None:
    run = microgpt.train(model="micro", layers=1, heads=4, width=16, block_size=16, batch_size=1, steps=1000,
                         lr=0.01, schedule="linear", min_lr=0.0, warmup=0, beta1=0.85, weight_decay=0.0)  # fmt: skip
    assert run.model.num_parameters() == 4192
    # His thousand steps of one name end at about 2.65, mean of the last hundred.
    assert np.mean(run.losses[-10:]) < 2.75


@pytest.mark.parametrize("optimizer", list(RULES))
@pytest.mark.parametrize("schedule", list(KINDS))
def test_every_optimizer_with_every_schedule_learns(optimizer: str, schedule: str) -> None:
    lr = {"adamw": 1e-2, "sgd": 0.3}[optimizer]
    run = small(optimizer=optimizer, schedule=schedule, lr=lr, steps=100)
    assert np.mean(run.losses[-10:]) < run.losses[0] - 0.25  # which is ln 27, a guess
    again = small(optimizer=optimizer, schedule=schedule, lr=lr, steps=100)
    assert same(weights(run), weights(again)) and run.losses == again.losses


def test_learning_rate_follows_the_schedule(tmp_path: Path) -> None:
    small(steps=20, warmup=5, lr=1e-2, min_lr=0.25, schedule="linear", out=tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [each["lr"] for each in records if "lr" in each]
    schedule = Schedule("linear", 20, 5, 0.25)
    assert rates == [1e-2 * schedule(step) for step in range(20)]
    assert rates[4] == 1e-2 and max(rates) == 1e-2 and rates[0] == pytest.approx(2e-3, rel=1e-12)
    assert [each["step"] for each in records if "loss" in each] == list(range(1, 21))


def test_sgd_is_what_its_definition_says(tmp_path: Path) -> None:
    """One step without momentum, decay and clipping: w - lr g. The gradient is that of a model of its own."""
    corpus = words(tmp_path / "words.txt", length=7)
    settings = {**SMALL, "data": str(corpus), "val_fraction": 0.0, "dtype": "float64", "block_size": 8}
    config = TrainConfig(**{**settings, "steps": 1})
    data = make_data(config)
    train, model = data.train, make_model(config, data.tokenizer.vocab_size)
    Arenas(model, decay_groups(0.0))  # where q, k and v are one product: the same sums in the same order
    objective = LanguageModeling(model, 32, train.sequences, 0)
    buffers, block = objective.buffers(), train.next_many(1)
    objective.feed(buffers, block, 0)
    objective.loss(buffers, None).backward()
    expected = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected[name] = parameter.numpy() - 0.5 * parameter.grad
    run = microgpt.train(**{**settings, "steps": 1, "warmup": 0, "optimizer": "sgd", "lr": 0.5},
                         momentum=0.0, weight_decay=0.0, clip=0.0)  # fmt: skip
    for name, value in weights(run).items():
        assert np.array_equal(value, expected[name]), name


# -- the same bits -----------------------------------------------------------------------------------------------------
def test_any_number_of_threads_trains_the_same_bits() -> None:
    found = []
    for threads in (1, 2, 3, 4, 8):
        k.set_num_threads(threads)
        run = microgpt.train(**WIDE, log_every=1, eval_every=5, dropout=0.1)
        found.append((weights(run), run.losses, run.val_loss))
    for arrays, losses, value in found[1:]:
        assert same(arrays, found[0][0])
        assert losses == found[0][1] and value == found[0][2]


@pytest.mark.soak
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7, 8, 16])
def test_fifty_steps_on_any_number_of_threads(threads: int) -> None:
    k.set_num_threads(threads)
    run = microgpt.train(**{**WIDE, "steps": 50}, dropout=0.1)
    k.set_num_threads(1)
    alone = microgpt.train(**{**WIDE, "steps": 50}, dropout=0.1)
    assert same(weights(run), weights(alone)) and run.losses == alone.losses


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.2, "accumulate": 3}, {"optimizer": "sgd", "model": "micro"}])
def test_eager_and_replayed_steps_are_the_same_bits(settings: dict[str, Any], monkeypatch: Any) -> None:
    replayed = small(**settings, eval_every=4)
    monkeypatch.setenv("MICROGPT_REPLAY", "0")
    eager = small(**settings, eval_every=4)
    assert same(weights(replayed), weights(eager))
    assert replayed.losses == eager.losses and len(eager.losses) == 10
    assert replayed.val_loss == eager.val_loss


def test_recomputed_activations_train_the_same_bits() -> None:
    plain = small(layers=3, dropout=0.1)
    again = small(layers=3, dropout=0.1, checkpointing=True)
    assert same(weights(plain), weights(again)) and plain.losses == again.losses


def test_another_seed_is_another_run() -> None:
    assert not same(weights(small(seed=1)), weights(small(seed=2)))


TRAIN = "import sys, microgpt; microgpt.train(out=sys.argv[1], steps=20, width=16, heads=2, dropout=0.1, eval_every=5)"


def test_the_files_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """String hashes, and with them the order of sets, differ between these two processes."""
    for seed in ("1", "2"):
        done = python(TRAIN, str(tmp_path / seed), PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


# -- resume ------------------------------------------------------------------------------------------------------------
RESUMED = {
    "plain": {"steps": 12},
    "dropout_accumulate": {"steps": 12, "accumulate": 2, "dropout": 0.2},
    "sgd": {"steps": 12, "optimizer": "sgd", "lr": 0.1},
    "several_epochs": {"epochs": 2.5, "accumulate": 2},
    "validated": {"steps": 12, "eval_every": 2},
    "checkpointing": {"steps": 12, "checkpointing": True, "dropout": 0.2},
    "float64": {"steps": 12, "dtype": "float64"},
    "bfloat16": {"steps": 12, "dtype": "bf16"},
    "bfloat16_averaged": {"steps": 12, "dtype": "bf16", "ema": 0.9, "eval_every": 3},
    "averaged": {"steps": 12, "ema": 0.9, "eval_every": 3},
    "unpacked": {"epochs": 2.5, "packing": False},
    "curriculum": {"epochs": 2.5, "curriculum": "length"},
    "mixture": {"steps": 12, "data": ("names", "names"), "weights": (3.0, 1.0)},
    "smoothed": {"steps": 12, "label_smoothing": 0.1, "z_loss": 1e-3},
    "groups": {"steps": 12, "groups": ({"where": "embed.*", "lr_scale": 0.1, "weight_decay": 1.0},)},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED.keys())
def test_resumed_is_uninterrupted(settings: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after step 5, in the middle of an epoch and of the block of batches prepared ahead."""
    settings = {"data": str(words(tmp_path / "words.txt")), **settings}
    whole = small(out=tmp_path / "whole", **settings)
    assert whole.steps >= 12

    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 7:  # after the checkpoint of step 5
            raise Stop

    config = TrainConfig(**{**SMALL, "save_every": 5, **({"steps": None} if "epochs" in settings else {}),
                            **settings})  # fmt: skip
    from microgpt.training.pretrain import pretrain

    callback = type("Stopping", (Callback,), {"record": lambda self, line: stop(line)})()
    with pytest.raises(Stop):
        pretrain(config, tmp_path / "parts", callbacks=[callback])
    resumed = microgpt.train(resume=tmp_path / "parts")
    assert resumed.steps == whole.steps
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert resumed.losses == whole.losses[5:] and resumed.val_loss == whole.val_loss
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "val_loss" not in line]
    assert steps == list(range(1, whole.steps + 1))


def test_resume_for_more_steps(tmp_path: Path) -> None:
    first = small(out=tmp_path, schedule="constant", warmup=0)
    assert first.steps == 10
    done = microgpt.train(resume=tmp_path)
    assert done.steps == 10 and done.losses == []
    more = microgpt.train(resume=tmp_path, steps=14)
    whole = small(schedule="constant", warmup=0, steps=14)
    assert more.steps == 14 and same(weights(more), weights(whole))


@pytest.mark.parametrize("name, value", [("layers", 2), ("width", 32), ("model", "micro"), ("dropout", 0.5)])
def test_resume_with_another_model(name: str, value: Any, tmp_path: Path) -> None:
    small(out=tmp_path)
    with pytest.raises(ConfigError, match=f"^{name}: the run that is resumed has"):
        microgpt.train(resume=tmp_path, **{name: value})
    assert microgpt.train(resume=tmp_path, layers=1).steps == 10  # the same value is no change


# -- accumulation, validation ------------------------------------------------------------------------------------------
def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """Documents of one length, so that every batch has as many targets. The gradients differ in the order of sums
    only: eps = 2.2e-16 times some hundred terms, and SGD passes that on without amplifying it."""
    data = str(words(tmp_path / "words.txt", length=7))
    common: dict[str, Any] = {"data": data, "dtype": "float64", "optimizer": "sgd", "lr": 0.1}
    large, parts = small(batch_size=8, **common), small(batch_size=4, accumulate=2, **common)
    a, b = weights(large), weights(parts)
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) < 1e-12
    assert np.allclose(large.losses, parts.losses, rtol=1e-13, atol=0)


def test_micro_batches_have_their_own_dropout() -> None:
    config = TrainConfig(**SMALL, dropout=0.5)
    data = make_data(config)
    train, model = data.train, make_model(config, data.tokenizer.vocab_size)
    objective = LanguageModeling(model, 32, train.sequences, 0)
    buffers, block = [objective.buffers() for _ in range(2)], train.next_many(1)
    step = k.from_numpy(np.array([3], np.int64))
    losses = []
    for each in (buffers[0], buffers[1], buffers[0]):
        objective.feed(each, block, 0)
        losses.append(objective.loss(each, step).item())
    assert losses[0] == losses[2] != losses[1]
    assert Dropout(1, step).seed == 1


def test_validation_disturbs_nothing_and_repeats() -> None:
    without = small(val_fraction=0.2)
    often = small(val_fraction=0.2, eval_every=1, eval_batches=3)
    assert same(weights(without), weights(often))
    assert without.losses == often.losses
    assert small(val_fraction=0.2, eval_every=1, eval_batches=3).val_loss == often.val_loss


def trainer(config: TrainConfig) -> Trainer:
    data = make_data(config)
    return make_trainer(config, make_model(config, data.tokenizer.vocab_size), data)


def test_validation_is_the_mean_over_all_targets(tmp_path: Path) -> None:
    """Against the loss of each document alone, in float64: sums of a few hundred numbers in another order."""
    data = str(words(tmp_path / "words.txt", count=40))
    config = TrainConfig(
        **{**SMALL, "block_size": 16, "dtype": "float64", "eval_batches": 0}, data=data, val_fraction=0.3
    )
    it = trainer(config)
    assert it.evaluate() == it.evaluate()
    model = it.objective.model  # type: ignore[attr-defined]
    from microgpt.api import LanguageModel
    from microgpt.data.corpus import read_documents
    from microgpt.data.split import split

    tokenizer = make_data(config).tokenizer
    _, documents = split(read_documents(data).documents, 0.3, config.seed)
    language_model = LanguageModel(model, tokenizer)
    total = targets = 0.0
    for text in documents:
        ids = tokenizer.encode(text, add_bos=True, add_eos=True)
        total += language_model.loss(ids) * (len(ids) - 1)
        targets += len(ids) - 1
    assert len(documents) == 12
    assert it.evaluate() == pytest.approx(total / targets, rel=1e-12)


def test_weights_and_logits_survive_saving(tmp_path: Path) -> None:
    for name, settings in [*((name, {}) for name in MODELS), ("gpt", {"dtype": "bf16"}), ("gpt", {"ema": 0.9}),
                           ("gpt", {"dtype": "bf16", "ema": 0.9})]:  # fmt: skip
        name = f"{name}-{len(settings)}-{settings.get('dtype')}"
        run = small(model=name.split("-")[0], out=tmp_path / name, **settings)
        ids = [0, 3, 5, 9, 1]
        trained = microgpt.LanguageModel(run.model, run.tokenizer)
        loaded = microgpt.load(tmp_path / name)
        assert np.array_equal(loaded.logits(ids), trained.logits(ids))
        assert loaded.decoder.config == run.model.config
        again = microgpt.load(trained.save(tmp_path / f"{name}-saved"))
        assert np.array_equal(again.logits(ids), trained.logits(ids))
        assert again.tokenizer.encode("anna") == run.tokenizer.encode("anna")


def test_configuration_round_trip() -> None:
    config = TrainConfig(data="x", epochs=2.5, lr=1e-4, checkpointing=True)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="unknown key 'batchsize' \\(did you mean 'batch_size'"):
        TrainConfig.from_dict({"batchsize": 3})


def test_epochs_cover_the_documents() -> None:
    run = small(epochs=0.25, batch_size=8, log_every=1000)
    config = run.config
    train = make_data(config, run.tokenizer).train
    assert run.steps == -(-train.steps_per_epoch // 4)

"""What a run can do besides steps: averaged weights, early stopping, groups, callbacks, samples, files, charts."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import json
import math
import sys
import textwrap
import tomllib
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt.errors import ConfigError, MissingExtraError, StorageError, TokenizerError
from microgpt.io.checkpoint import RunFolder
from microgpt.training import curves
from microgpt.training.build import make_data, make_model, make_optimizer
from microgpt.training.config import TrainConfig
from microgpt.training.ema import decay_at
from microgpt.training.plan import plan
from microgpt.training.pretrain import EMA
from microgpt.training.probe import peak_flops
from microgpt.training.resume import run_config
from microgpt.training.settings import HEADER, read_settings, to_toml
from microgpt.training.trainer import Trainer
from tests.training_tools import SMALL, digests, same, small, weights, words


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """Collects the trainers that run."""
    found: list[Trainer] = []
    run = Trainer.run

    def remember(self: Trainer) -> None:
        found.append(self)
        run(self)

    monkeypatch.setattr(Trainer, "run", remember)
    return found


class Watch(microgpt.Callback):
    """Keeps the weights after each step."""

    def __init__(self, trainers: list[Trainer]) -> None:
        self.trainers = trainers
        self.weights: list[dict[str, Any]] = []

    def step(self, control: Any) -> None:
        model = self.trainers[0].objective.model  # type: ignore[attr-defined]
        self.weights.append({name: array.copy() for name, array in model.arrays().items()})


# -- averaged weights --------------------------------------------------------------------------------------------------
def test_the_average_is_its_recursion(trainers: list[Trainer]) -> None:
    """Beside NumPy in float64. A step of ours is w + d (a - w): three roundings of numbers below 1 in ten steps that
    each shrink what was wrong before, so at most 3 / (1 - d) = 30 times 2^-53 apart."""
    watch = Watch(trainers)
    config = TrainConfig(**{**SMALL, "dtype": "float64"})
    average = make_model(config, make_data(config).tokenizer.vocab_size).arrays()
    average = {name: array.copy() for name, array in average.items()}
    run = small(dtype="float64", ema=0.9, callbacks=[watch])
    for step, now in enumerate(watch.weights, 1):
        d = min(0.9, (1 + step) / (10 + step))
        assert d == decay_at(0.9, step)
        average = {name: d * array + (1 - d) * now[name] for name, array in average.items()}
    assert len(watch.weights) == 10
    found = weights(run)  # a finished run's model has the average
    assert all(np.abs(found[name] - array).max() < 30 * 2.0**-53 for name, array in average.items())
    assert not same(found, watch.weights[-1])


def test_the_average_is_validated_saved_and_opened(tmp_path: Path, trainers: list[Trainer]) -> None:
    watch = Watch(trainers)
    run = small(ema=0.9, eval_every=5, out=tmp_path, callbacks=[watch])
    assert same(weights(run), microgpt.load(tmp_path).decoder.arrays())
    plain = small(eval_every=5)
    assert plain.losses == run.losses  # training itself is the same
    assert plain.val_loss != run.val_loss and run.val_loss == trainers[0].evaluate()
    place = RunFolder(tmp_path).latest()[0]
    from microgpt.io import safetensors

    raw = safetensors.load(place / EMA)
    raw = {name.removeprefix("weights."): array for name, array in raw.items()}
    assert same(raw, watch.weights[-1]) and same(raw, weights(plain))


def test_of_a_bfloat16_model_the_masters_are_averaged(trainers: list[Trainer]) -> None:
    """In float32 (three roundings a step, as above), shown to the model rounded to bfloat16."""
    masters = []

    class Masters(microgpt.Callback):
        def step(self, control: Any) -> None:
            masters.append(trainers[0].optimizer.arenas.params.numpy().copy())

    run = small(dtype="bf16", ema=0.9, callbacks=[Masters()])
    it = trainers[0]
    assert it.ema is not None and it.optimizer.arenas.rounded is not None
    config = TrainConfig(**{**SMALL, "dtype": "bf16"})
    model = make_model(config, run.tokenizer.vocab_size)
    expected = make_optimizer(config, model).arenas.params.numpy().astype(np.float64)
    for step, now in enumerate(masters, 1):
        d = float(np.float32(decay_at(0.9, step)))
        expected = d * expected + (1 - d) * now
    found = it.ema.average.numpy()
    assert np.abs(found - expected).max() < 30 * 2.0**-24
    assert np.array_equal(it.optimizer.arenas.rounded.numpy(), found.astype(it.optimizer.arenas.rounded.numpy().dtype))
    assert run.model.embed.weight.dtype == "bfloat16"


@pytest.mark.parametrize("replay", ["0", "1"])
def test_the_average_is_the_same_eager_and_replayed(replay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = small(ema=0.8, dropout=0.1, accumulate=2, eval_every=5)
    monkeypatch.setenv("MICROGPT_REPLAY", replay)
    found = small(ema=0.8, dropout=0.1, accumulate=2, eval_every=5)
    assert same(weights(found), weights(expected)) and found.val_loss == expected.val_loss


# -- the loss ----------------------------------------------------------------------------------------------------------
def test_smoothing_and_z_loss_act_in_training_only() -> None:
    """At lr 0 the weights stay as they are, so the validation loss must be the same to the last bit. The training loss
    of a model that guesses among V hardly changes by smoothing, and by z (ln V)^2 with the z-loss: its logits are
    within 0.1 of 0, so ln of the sum is within 0.1 of ln V."""
    common: dict[str, Any] = {"lr": 0.0, "steps": 2, "eval_every": 1}
    plain, smooth, z = small(**common), small(label_smoothing=0.3, **common), small(z_loss=0.1, **common)
    assert plain.val_loss == smooth.val_loss == z.val_loss
    assert plain.losses[0] != smooth.losses[0] and abs(plain.losses[0] - smooth.losses[0]) < 0.1
    vocab = plain.tokenizer.vocab_size
    expected = 0.1 * math.log(vocab) ** 2
    assert z.losses[0] - plain.losses[0] == pytest.approx(expected, abs=0.1 * 2 * math.log(vocab) * 0.1 + 1e-3)
    assert small(label_smoothing=0.3).losses[-1] != small().losses[-1]


# -- early stopping ----------------------------------------------------------------------------------------------------
def test_early_stopping_stops_when_it_should(tmp_path: Path) -> None:
    """A learning rate that only makes things worse after some steps: the best validation, and 3 more."""
    run = small(steps=400, lr=0.3, schedule="constant", eval_every=5, patience=3, out=tmp_path)
    values = [(each["step"], each["val_loss"]) for each in records(tmp_path) if "val_loss" in each]
    best = min(values, key=lambda each: each[1])
    assert run.steps == values[-1][0] == best[0] + 15 < 400
    assert run.stopped == f"no better validation loss than {best[1]:.4f} in 3 validations"
    assert run.best == best[1] and run.val_loss == values[-1][1]
    assert (tmp_path / "latest").read_text() == f"step-{run.steps}\n"
    again = microgpt.train(resume=tmp_path)  # it has stopped; asking again changes nothing
    assert again.steps == run.steps and again.losses == [] and again.stopped == run.stopped
    more = microgpt.train(resume=tmp_path, patience=0, steps=run.steps + 2)
    assert more.steps == run.steps + 2 and more.stopped is None


def test_without_patience_nothing_stops() -> None:
    assert small(steps=60, lr=0.3, schedule="constant", eval_every=5).steps == 60


# -- groups ------------------------------------------------------------------------------------------------------------
def test_groups_decay_and_scale_by_name() -> None:
    config = TrainConfig(**SMALL, weight_decay=0.1, groups=(
        {"where": "embed.*", "lr_scale": 0.5},
        {"where": ["blocks.*.ffn.*", "re:positions.*"], "weight_decay": 0.3},
    ))  # fmt: skip
    model = make_model(config, 27)
    optimizer = make_optimizer(config, model)
    found = {}
    for name, (place, _) in optimizer.arenas.places.items():
        segment = next(each for each in optimizer.arenas.segments if each.start <= place < each.stop)
        found[name] = (segment.group.weight_decay, segment.group.lr_scale)
    assert found["embed.weight"] == (0.1, 0.5)
    assert found["positions.weight"] == (0.3, 1.0)
    assert {value for name, value in found.items() if ".ffn." in name} == {(0.3, 1.0)}
    assert found["blocks.0.mixer.q.weight"] == (0.1, 1.0) and found["norm.weight"] == (0.0, 1.0)
    assert found.keys() == dict(model.named_parameters()).keys()


def test_a_group_with_rate_zero_stays_as_it_is() -> None:
    config = TrainConfig(**SMALL)
    before = make_model(config, make_data(config).tokenizer.vocab_size).arrays()
    run = small(groups=[{"where": "blocks.*", "lr_scale": 0.0}])
    after = weights(run)
    for name, array in before.items():
        assert np.array_equal(after[name], array) == name.startswith("blocks."), name


# -- callbacks ---------------------------------------------------------------------------------------------------------
def test_callbacks_are_told_and_may_ask(tmp_path: Path) -> None:
    class Mine(microgpt.Callback):
        seen: list[str] = []  # noqa: RUF012 (one instance)

        def record(self, values: dict[str, Any]) -> None:
            self.seen.append("val" if "val_loss" in values else f"loss {values['step']}")

        def step(self, control: Any) -> None:
            self.seen.append(f"step {control.step}")
            if control.step == 3:
                control.request_save()
            if control.step == 6:
                control.request_stop("enough")

        def close(self) -> None:
            self.seen.append("close")

    run = small(out=tmp_path, eval_every=4, callbacks=[Mine()])
    assert (run.steps, run.stopped) == (6, "enough")
    assert [each.name for each in RunFolder(tmp_path).checkpoints()] == ["step-3", "step-4", "step-6"]
    assert Mine.seen == ["loss 1", "step 1", "loss 2", "step 2", "loss 3", "step 3", "loss 4", "step 4", "val",
                         "loss 5", "step 5", "loss 6", "step 6", "close"]  # fmt: skip


def test_the_documented_callback() -> None:
    """The example in the docstring, as it stands there."""
    doc = microgpt.Callback.__doc__
    assert doc is not None
    code = textwrap.dedent(inspect.cleandoc(doc).partition("\n\n")[2])
    code = code.replace('microgpt.train(data="names"', "run = small(steps=200, lr=1e-2").replace("< 2.0", "< 2.9")
    scope: dict[str, Any] = {"microgpt": microgpt, "small": small}
    builtins.exec(code, scope)
    assert scope["run"].stopped == "loss below 2" and scope["run"].steps % 10 == 0


# -- samples, metrics --------------------------------------------------------------------------------------------------
def test_samples_while_training(tmp_path: Path) -> None:
    lines: list[str] = []
    run = small(out=tmp_path, sample_every=4, sample_prompt="an", say=lines.append, ema=0.5)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [each["step"] for each in samples] == [4, 8] and all(each["prompt"] == "an" for each in samples)
    assert f"step 8: an{samples[1]['text']}" in lines
    assert same(weights(run), weights(small(ema=0.5)))  # a sample disturbs nothing
    again = small(out=tmp_path / "again", sample_every=4, sample_prompt="an", ema=0.5)
    assert same(weights(again), weights(run))
    assert (tmp_path / "again" / "samples.jsonl").read_text() == (tmp_path / "samples.jsonl").read_text()
    with pytest.raises(TokenizerError):
        small(sample_every=4, sample_prompt="Ω")
    with pytest.raises(TokenizerError, match="sample_prompt: expected 1 to 7 tokens, got 11"):
        small(sample_every=4, sample_prompt="abcdefghij")


def test_metrics_say_what_the_run_costs(tmp_path: Path) -> None:
    run = small(out=tmp_path, eval_every=5, log_every=5)
    logged = [each for each in records(tmp_path) if "loss" in each]
    assert [each["step"] for each in logged] == [5, 10]
    for each in logged:
        assert 1 << 20 < each["memory"] < 1 << 36 and 0 < each["elapsed"] < run.seconds
        flops = each["tokens_per_second"] * 3 * run.model.flops_per_token(4)  # of 8 tokens, a causal row sees half
        # utilisation has four decimals, tokens per second one; the peak is measured once in a process
        assert each["flops_utilisation"] == pytest.approx(flops / peak_flops("float32"), abs=6e-5)
    first = logged[-1]["elapsed"]
    microgpt.train(resume=tmp_path, steps=15)
    assert records(tmp_path)[-2]["elapsed"] > first  # the time of the earlier try counts
    value = next(each for each in records(tmp_path) if "val_loss" in each)
    data = make_data(run.config, run.tokenizer)
    assert data.val_bytes_per_token is not None
    assert value["val_bits_per_byte"] == pytest.approx(value["val_loss"] / math.log(2) / data.val_bytes_per_token)


def test_metrics_do_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(HEADER)  # of a run that never came to a checkpoint
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match=r"writing metrics failed at .*metrics\.jsonl.*ELOOP"):
        small(out=tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_half_written_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    small(out=tmp_path, save_every=5)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 11, "lo')
    microgpt.train(resume=tmp_path, steps=12)
    assert [each["step"] for each in records(tmp_path) if "loss" in each] == list(range(1, 13))


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed")
def test_tensorboard(tmp_path: Path) -> None:
    small(out=tmp_path, tensorboard=True, eval_every=5)
    events = list((tmp_path / "tensorboard").glob("events.*"))
    assert len(events) == 1
    data = events[0].read_bytes()
    for name in (b"loss", b"val_loss", b"tokens_per_second", b"memory"):
        assert name in data


@pytest.mark.parametrize(
    "name, library, extra", [("tensorboard", "tensorboardX", "track"), ("plot", "matplotlib", "plot")]
)
def test_a_missing_extra_is_named(
    name: str, library: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda what: None if what == library else find(what))
    with pytest.raises(
        MissingExtraError, match=rf"{name}: {library} is not installed: pip install 'microgpt\[{extra}\]'"
    ):
        small(out=tmp_path, **{name: True})
    assert RunFolder(tmp_path).checkpoints() == []
    with pytest.raises(ConfigError if name == "tensorboard" else MissingExtraError, match=name):
        small(**{name: True})


# -- configuration files -----------------------------------------------------------------------------------------------
SETTINGS: dict[str, Any] = {
    "steps": 7, "lr": 1e-4, "ema": 0.5, "packing": False, "data": ["a \"b\"\x7f\\é\n.txt", "names"],
    "weights": [1.0, 2.5],
    "groups": [{"where": ["embed.*", "re:x"], "weight_decay": 0.0}, {"where": "*", "lr_scale": 2}],
    "seed": 2**64 - 1, "eps": 1e-08,
}  # fmt: skip


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = TrainConfig(**SETTINGS)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert TrainConfig(**read_settings(tmp_path / "config.toml")) == config
    assert tomllib.loads(to_toml(config))["seed"] == 2**64 - 1
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert TrainConfig(**read_settings(tmp_path / "config.json")) == config


def test_a_run_from_the_file_of_a_run_is_that_run(tmp_path: Path) -> None:
    data = str(words(tmp_path / "words.txt"))
    small(data=data, out=tmp_path / "a", ema=0.5, groups=[{"where": "embed.*", "lr_scale": 0.5}])
    microgpt.train(config=tmp_path / "a" / "config.toml", out=tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert (tmp_path / "a" / "config.toml").read_text() == (tmp_path / "b" / "config.toml").read_text()
    microgpt.train(config=tmp_path / "a" / "config.toml", out=tmp_path / "c", steps=4, lr=1e-3)
    config = run_config(tmp_path / "c")
    assert (config.steps, config.lr, config.ema) == (4, 1e-3, 0.5)  # given by hand, given by hand, of the file
    epochs = microgpt.train(config=tmp_path / "a" / "config.toml", epochs=0.1)
    assert epochs.config.steps is None and epochs.config.epochs == 0.1
    microgpt.train(config=tmp_path / "a" / "config.toml", resume=tmp_path / "c")  # its 10 steps replace the 4
    assert run_config(tmp_path / "c").steps == 10


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.toml", "widht = 3", "a.toml: unknown setting 'widht' (did you mean 'width'?)"),
        ("a.toml", "width = ", "a.toml: Invalid value"),
        ("a.toml", b"\xff", "a.toml: 'utf-8' codec"),
        ("a.json", "[1]", "a.json: expected settings by name, got list"),
        ("a.json", "[" * 100_000, "a.json: "),
        ("a.ini", "", "expected .toml, .yaml, .yml or .json, got '.ini'"),
        ("a", "", "got 'no ending'"),
        (None, "", "No such file or directory"),
        ("a.toml", "width = '8'", "width: expected a whole number"),
        ("a.toml", "steps = 3\nepochs = 1.0", "give steps or epochs"),
        ("a.toml", "data = [1]", "data: expected a path or several"),
        ("a.toml", "dtype = 3", "dtype: expected one of"),
        ("a.toml", "groups = [1]", "groups[0]: expected an object"),
    ],
)
def test_files_that_are_no_configuration(name: str | None, content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / (name or "missing.toml")
    if name:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        microgpt.train(config=path)
    assert message in str(caught.value)


def test_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 3\nlr: 1e-3\nbatch-size: 2\ngroups:\n  - {where: 'embed.*', lr_scale: 0.5}\n")
    if importlib.util.find_spec("yaml") is not None:
        config = TrainConfig(**read_settings(path))
        assert (config.steps, config.lr, config.batch_size, config.groups[0]["lr_scale"]) == (3, 1e-3, 2, 0.5)
        path.write_text("a: [")
        with pytest.raises(ConfigError, match=r"run\.yaml: "):
            read_settings(path)
        path.write_text("!!python/object/apply:os.system ['true']")
        with pytest.raises(ConfigError, match="could not determine a constructor"):
            read_settings(path)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'microgpt\[yaml\]', or write TOML"):
        read_settings(path)


# -- dry run -----------------------------------------------------------------------------------------------------------
def test_the_plan_is_that_of_the_run(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL, ema=0.5)
    text = "\n".join(plan(config))
    run = small(ema=0.5)
    assert f"{run.model.num_parameters():,} parameters, float32" in text
    flops = 3 * run.model.flops_per_token(4)
    assert f"{flops:.3g} FLOPs a token, {flops * 32:.3g} a step of 32 tokens, {flops * 320:.3g} in 10 steps" in text
    arenas = 5 * 4 * run.model.num_parameters()  # weights, gradients, two moments, the average
    assert f"{arenas / 2**20:.1f} MiB of parameters, gradients and optimizer" in text
    assert "documents from names" in text and "GFLOP/s" in text


# -- charts ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("runs")
    small(out=place / "one", steps=40, eval_every=10, lr=1e-2)
    small(out=place / "two & <b>", steps=20, eval_every=5, lr=1e-3)
    return [place / "one", place / "two & <b>"]


def test_charts_as_text(runs: list[Path]) -> None:
    both = [curves.read_curve(run) for run in runs]
    chart = curves.text_chart(both[:1], 60, 12)
    assert len(chart) == 15 and all(len(line) <= 60 for line in chart)
    rows = chart[:12]
    assert rows[0].count("·") >= 1 and sum(row.count("o") for row in rows) == 4
    # the mark of the least loss stands in the last row, that of the first step in the first column
    assert any(mark in rows[-1] for mark in "·o") and any(len(row) > 9 and row[9] == "·" for row in rows)
    assert chart[-2].split() == ["1", "step", "40"]
    plain = curves.text_chart(both[:1], 60, 12, ascii_only=True)
    assert all(line.isascii() for line in plain)
    compared = "\n".join(curves.text_chart(both, 60, 12))
    assert all(mark in compared for mark in ("a one", "b two & <b>", "A", "B"))
    assert microgpt.viz(*runs, width=60) == [*curves.text_chart(both, 60), "", *curves.table(both)]
    with pytest.raises(ConfigError, match="at least one run folder"):
        microgpt.viz()
    table = curves.table(both)
    assert len(table) == 3 and table[0].split()[:2] == ["run", "steps"]
    best = min(each["val_loss"] for each in records(runs[0]) if "val_loss" in each)
    assert f"{best:.4f} at " in table[1] and " 40 " in table[1]


def test_charts_as_svg(runs: list[Path], tmp_path: Path) -> None:
    both = [curves.read_curve(run) for run in runs]
    curves.save_picture(both, tmp_path / "x.svg")
    root = xml.etree.ElementTree.fromstring((tmp_path / "x.svg").read_text())
    lines = [each for each in root.iter() if each.tag.endswith("polyline")]
    assert [len(each.attrib["points"].split()) for each in lines] == [40, 4, 20, 4]
    for each in lines:
        for point in each.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 60 <= x <= 700 and 20 <= y <= 376
    assert any(each.text == "two & <b>, validation" for each in root.iter())
    with pytest.raises(ConfigError, match=r"expected \.svg, \.png"):
        curves.save_picture(both, tmp_path / "x.gif")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_charts_as_png(tmp_path: Path) -> None:
    small(out=tmp_path, plot=True, eval_every=5)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_ticks_are_round() -> None:
    assert curves.ticks(0.0, 10.0, 5) == [0, 2, 4, 6, 8, 10]
    assert curves.ticks(2.13, 2.57, 5) == pytest.approx([2.2, 2.3, 2.4, 2.5])
    for low, high in ((0.0, 1e-9), (-3.0, 1e6), (1.0, 1.5)):
        found = curves.ticks(low, high, 5)
        assert 2 <= len(found) <= 6 and low - 1e-9 <= found[0] and found[-1] <= high * (1 + 1e-9)


def test_runs_without_losses(tmp_path: Path) -> None:
    for content in (None, "", '{"step": 1}\nnot json\n[1]\n{"step": 2, "loss": NaN}\n'):
        if content is not None:
            (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(microgpt.MicrogptError, match=r"metrics\.jsonl: "):
            curves.read_curve(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    curve = curves.read_curve(tmp_path)
    assert "2.0000" in curves.table([curve])[1] and len(curves.text_chart([curve])) == 21
    assert curves.svg([curve]).endswith("</svg>\n")

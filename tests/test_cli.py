"""The command line: the two commands of the readme, streams, exit codes, one-line errors, help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import microgpt
from microgpt.cli import VERBS, cli, explain
from microgpt.errors import CheckpointError, ConfigError, StorageError
from tests.cli_tools import environment, run, shell
from tests.training_tools import ROOT, python


def test_train_and_generate_without_any_setting(tmp_path: Path) -> None:
    """Exactly as the readme has them, in real processes."""
    trained = shell("train", "--epochs", "3", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert len(trained.stdout.splitlines()) == 5  # samples, and nothing else
    last = trained.stderr.splitlines()[-4:]
    found = re.fullmatch(r"600 steps in [\d.]+ s, loss (\d\.\d{4}), validation loss (\d\.\d{4})", last[0])
    assert found is not None and float(found[2]) < 2.5 and float(found[1]) < 2.8
    assert last[1:] == [
        "saved in runs/names-1",
        "next: microgpt generate --model runs/names-1 --num-samples 10",
        "      microgpt train --resume runs/names-1 --steps 1200",
    ]
    assert "Traceback" not in trained.stderr
    generated = shell("generate", "--num-samples", "10", folder=tmp_path)
    assert generated.returncode == 0, generated.stderr
    names = generated.stdout.splitlines()
    assert len(names) == 10 and all(re.fullmatch(r"[a-z]{0,16}", name) for name in names) and len(set(names)) > 5
    seed = re.fullmatch(r"seed (\d+) \(--seed \1 writes the same again\)\n", generated.stderr)
    assert seed is not None
    again = shell("generate", "--num-samples", "10", "--seed", seed[1], folder=tmp_path)
    assert again.stdout == generated.stdout and again.stderr == ""
    assert shell("generate", "--num-samples", "10", folder=tmp_path).stdout != generated.stdout  # a fresh seed


def test_the_example_runs(tmp_path: Path) -> None:
    code = (ROOT / "examples" / "01_basic_training.py").read_text()
    os.makedirs(tmp_path / "work")
    done = subprocess.run([sys.executable, "-c", code, "150"], cwd=tmp_path / "work", env=environment(),
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert re.search(r"^150 steps in .* loss 3\.\d+ -> 2\.\d+$", done.stdout, re.M)
    assert "the same model, bit for bit" in done.stdout
    assert (tmp_path / "work" / "names-model" / "config.json").exists()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs `lines` (of names) and `prose` (of texts with line ends)."""
    place = tmp_path_factory.mktemp("models")
    (place / "prose.txt").write_text("One line.\n\nAnother one, and more.\nThe end.\n" * 20)
    common: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "block_size": 16, "warmup": 5, "lr": 1e-2}
    microgpt.train(out=place / "lines", steps=60, **common)
    microgpt.train(out=place / "prose", steps=60, data=str(place / "prose.txt"), documents="file", **common)
    return place


def test_samples_and_their_separators(models: Path) -> None:
    lines = run("generate", "--model", str(models / "lines"), "--num-samples", "4", "--seed", "1", "--prompt", "em")
    assert lines.exit_code == 0 and lines.stderr == ""
    assert len(lines.stdout.splitlines()) == 4 and all(each.startswith("em") for each in lines.stdout.splitlines())
    prose = run("generate", "--model", str(models / "prose"), "--num-samples", "4", "--seed", "1", "--prompt", "One\n")
    samples = prose.stdout.split("\n---\n")
    assert len(samples) == 4 and all(each.startswith("One\n") for each in samples)
    model = microgpt.load(models / "lines")
    expected = model.generate_many("em", 4, max_tokens=256, temperature=0.8, seed=1)
    assert lines.stdout.splitlines() == ["em" + each.text for each in expected]


def test_a_stream_is_the_sample(models: Path) -> None:
    common = ["generate", "--model", str(models / "prose"), "--seed", "3", "--prompt", "The"]
    assert run(*common, "--stream").stdout == run(*common, "--no-stream").stdout == run(*common).stdout
    assert run(*common, "--stream").stdout.startswith("The")


def test_sampling_options_reach_the_model(models: Path) -> None:
    common = ["generate", "--model", str(models / "lines" / "step-60"), "--num-samples", "6"]
    greedy = run(*common, "--temperature", "0")
    assert greedy.stderr == "" and len(set(greedy.stdout.splitlines())) == 1  # no seed to tell where none is used
    assert run(*common, "--top-k", "1").stdout == greedy.stdout
    assert run(*common, "--top-p", "1e-9").stdout == greedy.stdout
    short = run(*common, "--max-tokens", "1", "--seed", "1")
    assert all(len(each) <= 1 for each in short.stdout.splitlines())


def test_a_closed_pipe_is_quiet(models: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "microgpt", "generate", "--model", str(models / "lines"), "--num-samples", "50",
         "--seed", "1"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_stdout_that_cannot_show_the_text(models: Path, tmp_path: Path) -> None:
    (tmp_path / "greek.txt").write_text("αβγ\nβγδ\nγδα\n" * 9)
    microgpt.train(out=tmp_path / "run", steps=5, layers=1, width=8, heads=2, data=str(tmp_path / "greek.txt"))
    done = shell("generate", "--model", str(tmp_path / "run"), "--prompt", "α", "--seed", "1",
                 PYTHONIOENCODING="ascii", PYTHONUTF8="0")  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(("\\u03b1", "α")) and done.stderr == ""


def test_doctor_says_what_it_found() -> None:
    text = run("doctor")
    assert text.exit_code == 0
    for label in (
        "microgpt",
        "instruction set",
        "in this build",
        "threads",
        "OpenMP",
        "memory",
        "libraries",
        "MICROGPT_ISA",
    ):
        assert re.search(rf"^{label} ", text.stdout, re.M), label
    found = json.loads(run("doctor", "--json").stdout)
    info = microgpt.info()
    assert {key: found[key] for key in ("microgpt", "isa", "isas", "threads")} == {
        key: info[key] for key in ("microgpt", "isa", "isas", "threads")
    }
    assert found["problems"] == [] and found["libraries"]["numpy"] == info["numpy"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("MICROGPT_ISA", "mmx", "MICROGPT_ISA=mmx: not in this build, which has"),
        ("MICROGPT_NUM_THREADS", "many", 'MICROGPT_NUM_THREADS must be a whole number from 1 to 1024, not "many"'),
        ("MICROGPT_NUM_THREADS", "0", "MICROGPT_NUM_THREADS must be"),
    ],
)
def test_doctor_reports_an_impossible_environment(name: str, value: str, message: str, tmp_path: Path) -> None:
    done = shell("doctor", **{name: value})
    assert done.returncode == 1 and done.stderr == ""
    assert f"problem: {message}" in done.stdout and f"{name:<21}{value} (" in done.stdout
    found = json.loads(shell("doctor", "--json", **{name: value}).stdout)
    assert len(found["problems"]) == 1 and found["environment"][name] == value and found["threads"] >= 1
    refused = shell("train", "--quiet", folder=tmp_path, **{name: value}, MICROGPT_TRACE="0")
    assert refused.returncode == 2 and refused.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "more, warning",
    [
        ({"MICROGPT_ISA": "scalar"}, "running scalar though"),
        ({"MICROGPT_NUM_THREADS": "300"}, "300 threads share"),
        ({"MICROGPT_REPLAY": "0"}, "MICROGPT_REPLAY=0: training steps run eagerly"),
        ({"MICROGPT_THREADS": "2"}, "MICROGPT_THREADS is set but means nothing (did you mean 'MICROGPT_NUM_THREADS'?)"),
    ],
)
def test_doctor_warns(more: dict[str, str], warning: str) -> None:
    best = next(name for name, supported in microgpt.info()["isas"].items() if supported)
    done = shell("doctor", **more)
    assert done.returncode == 0
    if best != "scalar" or "MICROGPT_ISA" not in more:
        assert f"warning: {warning}" in done.stdout


def test_bench_measures_and_ends_with_json() -> None:
    done = run("bench", "--seconds", "0.1", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["machine"]["isa"] == microgpt.info()["isa"]
    figures = found["figures"]
    assert len(figures) == 12
    assert all(each["seconds"] > 0 for each in figures.values())
    karpathy = figures["train 1 layer, 16 wide, batch 1 x 16"]
    assert karpathy["parameters"] == 4192 and karpathy["steps_per_second"] > 10
    table = run("bench", "--seconds", "0.1").stdout.splitlines()
    assert len(table) == 13 and table[0].startswith(microgpt.info()["cpu"])


def test_version_and_help() -> None:
    assert run("--version").stdout == f"microgpt {microgpt.__version__}\n"
    for arguments in ([], ["--help"], ["-h"]):
        done = run(*arguments)
        assert done.exit_code == 0 and done.stderr == ""
        assert all(re.search(rf"^  {verb} ", done.stdout, re.M) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_examples_that_parse(verb: str) -> None:
    text = run(verb, "--help").stdout
    _, _, examples = text.partition("\nExamples:\n")
    lines = [line.strip() for line in examples.splitlines()]
    assert len(lines) >= 3 and all("microgpt " in line for line in lines) and VERBS[verb]
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    check_examples(command, lines, verb)
    for name, inner in getattr(command, "commands", {}).items():
        _, _, examples = run(verb, name, "--help").stdout.partition("\nExamples:\n")
        check_examples(inner, [line.strip() for line in examples.splitlines()], verb, name)


def check_examples(command: click.Command, lines: list[str], *verbs: str) -> None:
    known = {option for each in command.params for option in each.opts} | {"--help"}
    assert len(lines) >= 3
    for line in lines:
        used = line.partition(" > ")[0].split()
        at = used.index("microgpt") + 1
        assert tuple(used[at : at + len(verbs)]) == verbs
        assert {word for word in used[at:] if word.startswith("--")} <= known, line


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom microgpt.cli import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    loaded = python(code).stdout.splitlines()[-1].split()
    assert "microgpt.cli" in loaded
    assert not {"numpy", "microgpt._kernels", "microgpt.api", "microgpt.cli.train", "tqdm"} & set(loaded)


BAD: list[tuple[str, int, str]] = [
    # wrong use
    ("trian", 2, "did you mean 'train'?"),
    ("agent", 2, "no verb 'agent'"),
    ("bench no-such-model", 2, "bench: 'no-such-model' is no verb (model, kernels, train) and no such model"),
    ("bench kernel", 2, "did you mean 'kernels'?"),
    ("--verbose", 2, "--verbose"),
    ("train --epoch 3", 2, "--epochs"),
    ("train --learning-rate 3", 2, "--learning-rate"),
    ("train --batch_size 3", 2, "--batch-size"),
    ("train extra", 2, "extra"),
    ("train --steps", 2, "--steps"),
    ("train --steps ten", 2, "'ten' is not a valid integer"),
    ("train --steps 1.5", 2, "1.5"),
    ("train --steps 0", 2, "steps: expected a whole number"),
    ("train --steps -5", 2, "steps: expected a whole number"),
    ("train --steps 9999999999", 2, "steps"),
    ("train --steps 5 --epochs 1", 2, "--steps or --epochs"),
    ("train --epochs 0", 2, "epochs"),
    ("train --epochs nan", 2, "epochs"),
    ("train --epochs inf", 2, "epochs"),
    ("train --lr fast", 2, "'fast' is not a valid float"),
    ("train --lr -1", 2, "lr"),
    ("train --lr 1e400", 2, "lr"),
    ("train --heads 3", 2, "heads: expected a divisor of the width 64, got 3"),
    ("train --heads 0", 2, "heads"),
    ("train --layers 0", 2, "layers"),
    ("train --layers 2000", 2, "from 1 to 1024"),
    ("train --width -8", 2, "width"),
    ("train --block-size 0", 2, "block_size"),
    ("train --dropout 1", 2, "dropout"),
    ("train --model gtp", 2, "did you mean 'gpt'?"),
    ("train --optimizer adam", 2, "did you mean 'adamw'?"),
    ("train --schedule cosin", 2, "did you mean 'cosine'?"),
    ("train --documents lines", 2, "did you mean 'line'?"),
    ("train --dtype int8", 2, "dtype: expected one of f32, bf16"),
    ("train --beta1 1", 2, "beta1"),
    ("train --optimizer sgd --momentum 2", 2, "momentum"),
    ("train --seed -1", 2, "seed"),
    ("train --seed 18446744073709551616", 2, "seed"),
    ("train --val-fraction 1", 2, "val_fraction"),
    ("train --min-lr 2", 2, "min_lr"),
    ("train --keep 0", 2, "keep"),
    ("train --num-samples -1", 2, "--num-samples"),
    ("train --resume nowhere", 2, "'nowhere' does not exist"),
    ("train --resume file.txt", 2, "is a file"),
    ("train --resume good --out other", 2, "--out or --resume"),
    ("train --resume good --width 32", 2, "width: the run that is resumed has 8, got 32"),
    ("train --out good", 2, "already holds a run"),
    ("generate extra", 2, "extra"),
    ("generate --tempreature 1", 2, "--temperature"),
    ("generate --model nowhere", 2, "'nowhere' does not exist"),
    ("generate --model file.txt", 2, "is a file"),
    ("generate --model good --num-samples 0", 2, "--num-samples: expected 1 to 1000000"),
    ("generate --model good --max-tokens 0", 2, "max_tokens: expected at least 1"),
    ("generate --model good --temperature -1", 2, "temperature"),
    ("generate --model good --temperature nan", 2, "temperature"),
    ("generate --model good --top-k -1", 2, "top_k"),
    ("generate --model good --top-p 0", 2, "top_p"),
    ("generate --model good --top-p 2", 2, "top_p"),
    ("generate --model good --seed -1", 2, "seed"),
    ("generate --model good --seed x", 2, "'x' is not a valid integer"),
    ("generate --model good --stream --num-samples 2", 2, "--stream"),
    ("bench --seconds 0", 2, "--seconds"),
    ("bench --seconds nan", 2, "--seconds"),
    ("doctor --jsn", 2, "--json"),
    # failures
    ("train --data nowhere.txt", 1, "no data 'nowhere.txt'"),
    ("train --data nmaes", 1, "did you mean 'names'?"),
    ("train --data empty.txt", 1, "empty"),
    ("train --data blank.txt", 1, "white space"),
    ("train --data binary.txt", 1, "binary file (NUL at byte 1)"),
    ("train --data latin.txt", 1, "byte 0xe9 at byte offset 3"),
    ("train --data nothing", 1, "expected text files"),
    ("train --resume nothing", 1, "no checkpoint"),
    ("train --resume damaged", 1, "model.safetensors: truncated"),
    ("train --resume good --data file.txt", 1, "data differ from those of the checkpoint"),
    ("train --resume good --batch-size 2 --steps 9", 2, "batch_size: the run that is resumed has 8, got 2"),
    ("train --out file.txt/run", 1, "file.txt"),
    ("generate", 1, "no run with a usable checkpoint in runs"),
    ("generate --model nothing", 1, "is this a model folder?"),
    ("generate --model damaged", 1, "model.safetensors: truncated"),
    ("generate --model odd", 1, "unknown model family 'gpt3' (did you mean 'gpt2'?)"),
    ("generate --model good --prompt Ångström", 1, "'Å' at position 0"),
    ("generate --model good --prompt aaaaaaaaaaaaaaaaaaaaaaaaaaa", 1, "the model's context"),
]  # fmt: skip


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what the table above asks for."""
    place = tmp_path_factory.mktemp("wrong")
    for name, content in {
        "file.txt": b"ab\ncd\nef\n" * 9, "empty.txt": b"", "blank.txt": b" \n \n", "binary.txt": b"a\0b",
        "latin.txt": b"caf\xe9\n",
    }.items():  # fmt: skip
        (place / name).write_bytes(content)
    (place / "nothing").mkdir()
    (place / "odd").mkdir()
    (place / "odd" / "config.json").write_text('{"model_type": "gpt3"}')
    for name in ("good", "damaged"):
        microgpt.train(out=place / name, layers=1, width=8, heads=2, steps=3)
    os.truncate(place / "damaged" / "step-3" / "model.safetensors", 100)
    return place


@pytest.mark.parametrize("line, code, message", BAD, ids=[line for line, _, _ in BAD])
def test_bad_invocations(line: str, code: int, message: str, wrong: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(wrong)
    before = sorted(wrong.iterdir())
    arguments = line.split()
    if arguments[0] == "train" and not {"--steps", "--epochs"} & set(arguments):
        arguments += ["--steps", "3"]
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == "" and "Traceback" not in done.stderr
    *others, last = done.stderr.splitlines()
    assert last.startswith("error: ") and message in last
    assert not any(each.startswith("error") for each in others)
    if code == 2 and "--resume" not in line:
        assert others == []
    assert [path for path in sorted(wrong.iterdir()) if path.name != "runs"] == [p for p in before if p.name != "runs"]
    assert not any(wrong.glob("runs/*"))


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 40 and len({line for line, _, _ in BAD}) == len(BAD)
    assert {code for _, code, _ in BAD} == {1, 2}


def test_a_traceback_only_on_request(tmp_path: Path) -> None:
    plain = shell("train", "--data", "nowhere", folder=tmp_path)
    traced = shell("train", "--data", "nowhere", folder=tmp_path, MICROGPT_TRACE="1")
    assert plain.returncode == traced.returncode == 1
    assert (
        plain.stderr == "error: no data 'nowhere': expected a file, a folder, hf:ORG/NAME, or one of: names, stdlib\n"
    )
    assert "Traceback" in traced.stderr and traced.stderr.endswith(plain.stderr)


def test_every_kind_of_failure_has_a_code_and_one_line() -> None:
    assert explain(ConfigError("a\n b")) == (2, "error: a b")
    assert explain(CheckpointError("x")) == (1, "error: x")
    assert explain(StorageError("disk full")) == (1, "error: disk full")
    assert explain(PermissionError(13, "Permission denied", "/x")) == (1, "error: /x: Permission denied")
    assert explain(MemoryError())[0] == 1 and "out of memory" in explain(MemoryError())[1]
    code, line = explain(KeyError("k"))
    assert code == 1 and line.startswith("error: internal error: KeyError: 'k'") and "MICROGPT_TRACE=1" in line

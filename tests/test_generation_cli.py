"""`microgpt generate`: its options reach the model, prompts from files and stdin, and what cannot be is one line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import microgpt
from microgpt.api import LanguageModel
from microgpt.cli import cli
from microgpt.cli.common import write
from microgpt.cli.generate import PROMPT_LIMIT, command
from tests.test_cli import environment


def generate(*arguments: str, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["generate", *arguments], input=given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a model `m` of a few names, and files."""
    place = tmp_path_factory.mktemp("generate")
    microgpt.train(out=place / "m", layers=1, width=16, heads=2, steps=40, lr=1e-2)
    for name, content in {
        "em.txt": b"em\n", "crlf.txt": b"em\r\n", "two.txt": b"em\n\n", "bare.txt": b"em", "empty.txt": b"",
        "latin.txt": b"caf\xe9", "nul.txt": b"a\0b", "mark.txt": b"\xef\xbb\xbfem", "greek.txt": "α".encode(),
        "long.txt": b"a" * 1000,
    }.items():  # fmt: skip
        (place / name).write_bytes(content)
    return place


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_every_option_of_the_library_is_one_of_the_command_line() -> None:
    library = inspect.signature(LanguageModel.generate).parameters
    ours = {parameter.name for parameter in command.params}
    assert set(library) - {"self"} <= ours
    assert ours - set(library) == {"model", "prompt_file", "num_samples", "stream", "kv_dtype"}


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("--min-p 0.3", {"min_p": 0.3}),
        ("--repetition-penalty 1.8", {"repetition_penalty": 1.8}),
        ("--presence-penalty 1.5", {"presence_penalty": 1.5}),
        ("--frequency-penalty 1.5", {"frequency_penalty": 1.5}),
        ("--stop a --stop in", {"stop": ["a", "in"]}),
        ("--ignore-eos --max-tokens 9", {"ignore_eos": True, "max_tokens": 9}),
        ("--top-k 4 --top-p 0.8 --temperature 2", {"top_k": 4, "top_p": 0.8, "temperature": 2.0}),
    ],
)
def test_options_reach_the_model(arguments: str, options: dict[str, Any]) -> None:
    common: dict[str, Any] = {"max_tokens": 256, "temperature": 0.8, "seed": 1}
    model = microgpt.load("m")
    expected = ["e" + each.text for each in model.generate_many("e", 8, **{**common, **options})]
    assert expected != ["e" + each.text for each in model.generate_many("e", 8, **common)]
    base = ["--model", "m", "--seed", "1", "--prompt", "e", *arguments.split()]
    got = generate(*base, "--num-samples", "8")
    assert (got.exit_code, got.stdout.splitlines(), got.stderr) == (0, expected, "")
    assert generate(*base, "--stream").stdout == generate(*base, "--no-stream").stdout == expected[0] + "\n"


def test_prompts_of_files_and_of_stdin() -> None:
    wanted = generate("--model", "m", "--seed", "1", "--prompt", "em").stdout
    for name in ("em.txt", "crlf.txt", "bare.txt", "mark.txt"):
        assert generate("--model", "m", "--seed", "1", "--prompt-file", name).stdout == wanted
    for given in ("em\n", "em", b"em\r\n"):
        assert generate("--model", "m", "--seed", "1", "--prompt-file", "-", given=given).stdout == wanted
    nothing = generate("--model", "m", "--seed", "1").stdout
    assert generate("--model", "m", "--seed", "1", "--prompt-file", "empty.txt").stdout == nothing
    assert generate("--model", "m", "--seed", "1", "--prompt-file", "-", given="").stdout == nothing


def test_stdin_that_is_closed_or_endless() -> None:
    line = [sys.executable, "-m", "microgpt", "generate", "--model", "m", "--prompt-file", "-"]
    for shell, message in (
        ('exec "$@" <&-', "error: stdin: expected a prompt, but it is closed\n"),
        ('exec "$@" </dev/zero', f"error: stdin: expected a prompt of at most {PROMPT_LIMIT} bytes, got more\n"),
    ):
        done = subprocess.run(
            ["sh", "-c", shell, "sh", *line], env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


HUGE = "9" * 30
BAD: list[tuple[str, int, str]] = [
    ("--prompt a --prompt-file em.txt", 2, "give --prompt or --prompt-file, not both"),
    ("--prompt-file nowhere", 2, "'nowhere' does not exist"),
    ("--prompt-file .", 2, "is a directory"),
    ("--prompt-file latin.txt", 1, "latin.txt: expected UTF-8, got byte 0xe9 at byte offset 3"),
    ("--prompt-file nul.txt", 1, r"'\x00' at position 1"),
    ("--prompt-file greek.txt", 1, "'α' at position 0"),
    ("--prompt-file two.txt", 1, r"'\n' at position 2"),
    ("--prompt-file long.txt", 1, "expected 1 to 16 tokens (the model's context), got 1001"),
    ("--prompt-file /dev/zero", 1, f"/dev/zero: expected a prompt of at most {PROMPT_LIMIT} bytes, got more"),
    ("--prompt-file", 2, "requires an argument"),
    ("--prompt \udcff", 1, "character 0, U+DCFF, is half"),
    ("--prompt <|endoftext|>", 1, "'<' at position 0"),
    ("--min-p 1.5", 2, "min_p: expected a number in [0, 1], got 1.5"),
    ("--min-p -0.1", 2, "min_p: expected"),
    ("--min-p nan", 2, "min_p: expected"),
    ("--min-p x", 2, "'x' is not a valid float"),
    ("--min-pp 0.1", 2, "--min-p"),
    ("--repetition-penalty 0", 2, "repetition_penalty: expected a number above 0"),
    ("--repetition-penalty -1", 2, "repetition_penalty: expected"),
    ("--repetition-penalty inf", 2, "repetition_penalty: expected"),
    ("--repetition-penalty 1e400", 2, "repetition_penalty: expected"),
    ("--presence-penalty 2.1", 2, "presence_penalty: expected a number in [-2, 2]"),
    ("--frequency-penalty -2.1", 2, "frequency_penalty: expected a number in [-2, 2]"),
    ("--stop=", 2, "stop: expected"),
    ("--stop a --stop=", 2, "stop: expected"),
    ("--stop \udcff", 2, "stop: expected text that UTF-8 can write"),
    ("--stop", 2, "requires an argument"),
    ("--ignore-eos yes", 2, "unexpected extra argument (yes)"),
    ("--max-tokens -5", 2, "max_tokens: expected at least 1"),
    ("--max-tokens 1e3", 2, "'1e3' is not a valid integer"),
    ("--max-tokens=", 2, "is not a valid integer"),
    (f"--num-samples {HUGE}", 2, "--num-samples: expected 1 to 1000000"),
    ("--num-samples -1", 2, "--num-samples: expected 1 to 1000000"),
    ("--stream --num-samples 3", 2, "--stream"),
    ("--stream --prompt É", 1, "'É' at position 0"),
    ("--temperature=", 2, "is not a valid float"),
    ("--temperature -1e-9", 2, "temperature: expected"),
    ("--top-k 1.5", 2, "'1.5' is not a valid integer"),
    ("--top-p ,5", 2, "',5' is not a valid float"),
    (f"--seed {HUGE}", 2, "seed: expected 0 to 2**64 - 1"),
    ("--model m/step-40/config.json", 2, "is a file"),
    ("--model=", 2, "does not exist"),
    ("--model .", 1, "no config.json"),
]


@pytest.mark.parametrize(("line", "code", "message"), BAD, ids=[ascii(line) for line, _, _ in BAD])
def test_bad_invocations(line: str, code: int, message: str) -> None:
    arguments = line.split()
    done = generate(*([] if "--model" in line else ["--model", "m"]), *arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr) < 250 and "internal" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "--temperature 1e-320", "--temperature 1e308", "--repetition-penalty 1e308", "--repetition-penalty 5e-324",
        "--top-p 5e-324", "--min-p 5e-324", "--min-p 1", f"--max-tokens {HUGE}", f"--top-k {HUGE}",
        f"--stop {'a' * 50_000}", "--seed 18446744073709551615",
    ],
    ids=lambda line: line[:40],
)  # fmt: skip
def test_extreme_invocations_write_a_text(line: str) -> None:
    done = generate("--model", "m", "--seed", "1", "--prompt", "e", *line.split())
    assert (done.exit_code, done.stderr, done.stdout.count("\n")) == (0, "", 1), done.output
    assert done.stdout.startswith("e") and len(done.stdout) <= 1 + 16 + 1


def test_a_terminal_is_not_commanded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b[2J\tb\r\n\x07\x9b1m é\x7f"
    write(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write(text, nl=True)
    assert capsys.readouterr().out == "a␛[2J\tb␍\n␇�1m é␡\n"

"""model.chat and `microgpt chat`, driven as a person and as a script would."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import microgpt
from microgpt.cli.chat import _Stoppable
from microgpt.errors import ConfigError, TemplateError
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.tokenizers.char import CharTokenizer
from tests.cli_tools import environment
from tests.tiny_families import ENCODERS

TEMPLATE = (
    "{% if messages[0].role == 'system' and messages[0].content == 'no' %}"
    "{{ raise_exception('never that') }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `m`, with a chat template, and `p`, without one; both end few replies by themselves."""
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    place = tmp_path_factory.mktemp("chat")
    tokenizer = CharTokenizer.train([string.printable.replace(">", "")])  # replies do not look like a prompt
    config: ModelConfig = FAMILIES.get("llama").read(
        {
            "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 200_000, "hidden_size": 16,
            "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        }
    )  # fmt: skip
    model = microgpt.LanguageModel(Decoder(config, seed=3), tokenizer)
    model.save(place / "p")
    tokenizer.chat_templates["default"] = TEMPLATE
    model.save(place / "m")
    return place


def talk(place: Path, model: str, lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "microgpt", "chat", model, "--seed", "1", "--max-tokens", "12", *arguments],
        input=lines, cwd=place, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


# --- the library ------------------------------------------------------------------------------------------------


def test_chat_is_the_template_and_generation(place: Path) -> None:
    model = microgpt.load(place / "m")
    messages = [{"role": "user", "content": "hi"}]
    reply = model.chat(messages, max_tokens=20, seed=4)
    assert len(reply.ids) == reply.usage["completion_tokens"] == 20 and reply.finish_reason == "length"
    prompt = model.tokenizer.apply_chat_template(messages)
    assert reply.usage["prompt_tokens"] == len(prompt) == len("user: hi") + 1 + len("assistant: ")
    assert "".join(model.stream_chat(messages, max_tokens=20, seed=4)) == reply.text
    assert reply.text == model.generate("user: hi", max_tokens=1) or reply.text  # text of its own
    assert model.chat(messages, max_tokens=20, seed=5).text != reply.text
    stopped = model.chat(messages, max_tokens=20, seed=4, stop=reply.text[5])
    assert reply.text.startswith(stopped.text) and stopped.finish_reason == "stop"


def test_chat_s_errors(place: Path) -> None:
    model = microgpt.load(place / "m")
    with pytest.raises(TemplateError, match="refuses these messages: never that"):
        model.chat([{"role": "system", "content": "no"}])
    with pytest.raises(TemplateError, match="no chat template 'x'; known: default"):
        model.chat([{"role": "user", "content": "a"}], template="x")
    with pytest.raises(ConfigError, match="unknown option 'max_token' \\(did you mean 'max_tokens'"):
        model.chat([{"role": "user", "content": "a"}], max_token=3)  # type: ignore[call-arg]
    with pytest.raises(TemplateError, match="no chat template 'default'"):
        microgpt.load(place / "p").chat([{"role": "user", "content": "a"}])


# --- scripts: lines on stdin -----------------------------------------------------------------------------------


def test_a_script_talks(place: Path) -> None:
    done = talk(place, "m", "hi\n\nmore\n", "--system", "be")
    model = microgpt.load(place / "m")
    options = {"seed": 1, "max_tokens": 12, "temperature": 0.8}
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    first = model.chat(messages, **options).text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "more"}]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{first}\n{model.chat(messages, **options).text}\n"  # the empty line says nothing


def test_commands(place: Path) -> None:
    lines = """\
/help
hi
/regen
/save talk.json
/undo
/undo
/regen
/system be kind
/show
/params
/params temperature 0
/params temperature -1
/params seeds 3
/load talk.json
/reset
/load missing.json
/load m/config.json
/save /nowhere/x
/sav x
//slash
/exit
never
"""
    done = talk(place, "m", lines)
    assert done.returncode == 1  # some of them failed
    told = done.stderr.splitlines()
    for expected in (
        "forget the last message", "there is nothing to undo", "there is no reply to write again", "system prompt set",
        "system: be kind", "temperature 0.8", "temperature 0", "temperature: expected", "did you mean 'seed'",
        "2 messages from talk.json", "forgotten", "cannot load missing.json", "cannot load m/config.json",
        "cannot save /nowhere/x", "no command /sav (did you mean '/save'?)",
    ):  # fmt: skip
        assert any(expected in line for line in told), (expected, told)
    assert "Traceback" not in done.stderr
    saved = json.loads((place / "talk.json").read_text())["messages"]
    assert [each["role"] for each in saved] == ["user", "assistant"] and saved[0]["content"] == "hi"
    assert saved[1]["content"] in done.stdout
    # "hi", its other reply, "/slash": three replies and nothing after /exit.
    model = microgpt.load(place / "m")
    hi = [{"role": "user", "content": "hi"}]
    first, second = (model.chat(hi, seed=seed, max_tokens=12, temperature=0.8).text for seed in (1, 2))
    slash = model.chat([{"role": "user", "content": "/slash"}], seed=2, max_tokens=12, temperature=0).text
    assert done.stdout == f"{first}\n{second}\n{slash}\n" and second == saved[1]["content"]


def test_a_saved_conversation_goes_on(place: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (place / "on.json").write_text(json.dumps({"messages": messages}))
    done = talk(place, "m", "c\n", "--load", "on.json")
    expected = microgpt.load(place / "m").chat(
        [*messages, {"role": "user", "content": "c"}], seed=1, max_tokens=12, temperature=0.8
    )
    assert (done.stdout, done.stderr) == (f"{expected.text}\n", "2 messages from on.json\n")


def test_a_chat_that_has_not_begun_is_saved_and_loaded(place: Path) -> None:
    done = talk(place, "m", "/save empty.json\n/load empty.json\n")
    assert (done.returncode, done.stderr) == (0, "saved in empty.json\n0 messages from empty.json\n")
    done = talk(place, "m", "hi\n", "--load", "empty.json")
    expected = microgpt.load(place / "m").chat(
        [{"role": "user", "content": "hi"}], seed=1, max_tokens=12, temperature=0.8
    )
    assert (done.returncode, done.stdout) == (0, expected.text + "\n")


def test_a_script_whose_reply_fails_says_so_by_its_status(place: Path) -> None:
    done = talk(place, "m", "hi\n", "--system", "no")
    assert (done.returncode, done.stdout) == (1, "") and "never that" in done.stderr


def test_lines_between_triple_quotes_are_one_message(place: Path) -> None:
    done = talk(place, "m", '"""\na\n\nb\n"""\n/save many.json\n')
    assert done.returncode == 0
    assert json.loads((place / "many.json").read_text())["messages"][0]["content"] == "a\n\nb"


def test_a_refusal_keeps_the_chat(place: Path) -> None:
    done = talk(place, "m", "/system no\nhi\n/system yes\nhi\n")
    assert done.returncode == 1 and len(done.stdout.splitlines()) >= 1
    assert "error: the chat template refuses these messages: never that" in done.stderr
    long = talk(place, "m", "x" * 210_000 + "\nhi\n")
    assert long.returncode == 1 and "the model's context" in long.stderr and long.stdout


def test_a_model_without_template_continues_plain_text(place: Path) -> None:
    done = talk(place, "p", "hi\nmore\n")
    model = microgpt.load(place / "p")
    options = {"seed": 1, "max_tokens": 12, "temperature": 0.8, "stop": ["\n"]}
    first = model.generate("hi\n", **options).text
    second = model.generate(f"hi\n{first}\nmore\n", **options).text
    assert done.stdout == f"{first}\n{second}\n"
    assert done.stderr == (
        "this model has no chat template: it continues the conversation as plain text, a line for each turn\n"
    )


def test_wrong_use(place: Path) -> None:
    assert talk(place, "m", "", "--temperature", "-1").returncode == 2
    gone = talk(place, "missing", "")
    assert gone.returncode == 1 and gone.stderr == "error: missing: cannot open: No such file or directory\n"
    assert talk(place, "m", "").stdout == ""
    assert talk(place, "", "").returncode == 2  # not the current folder
    unknown = talk(place, "m", "hi\n", "--template", "other")
    assert (unknown.returncode, unknown.stdout) == (1, "") and "no chat template 'other'" in unknown.stderr


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "none.json", "", "list.json", "nul\ufffd"])
def test_a_conversation_that_cannot_be_loaded_ends_a_script(place: Path, name: str) -> None:
    if not (place / "pipe").exists():
        os.mkfifo(place / "pipe")  # nobody writes to it: reading would wait for ever
    (place / "list.json").write_text("[]")
    done = talk(place, "m", "hi\n", "--load", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot load") and len(done.stderr.splitlines()) == 1


def test_save_replaces_whole_regular_files_only(place: Path) -> None:
    if not (place / "pipe").exists():
        os.mkfifo(place / "pipe")
    (place / "link.json").symlink_to("linked.json")
    (place / "linked.json").write_text("old")
    done = talk(place, "m", "/save pipe\n/save /dev/null\n/save\nhi\n/save link.json\n")
    assert [line.startswith("cannot save") for line in done.stderr.splitlines()] == [True, True, True, False]
    assert (place / "link.json").is_symlink() and "messages" in json.loads((place / "linked.json").read_text())
    assert not list(place.glob("*.tmp.*"))


def test_nested_values_and_a_closed_stdin(place: Path) -> None:
    done = talk(place, "m", "/params stop " + "[" * 100_000 + "\n/exit\n")
    assert done.returncode == 0 and "internal error" not in done.stderr
    command = f"{sys.executable} -m microgpt chat m --seed 1 <&-"
    closed = subprocess.run(command, shell=True, cwd=place, env=environment(), capture_output=True, text=True,
                            timeout=120, check=False)  # fmt: skip
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")


# --- a person: a terminal --------------------------------------------------------------------------------------


class Terminal:
    """`microgpt chat` on a pseudo-terminal."""

    def __init__(self, place: Path, *arguments: str) -> None:
        import pty

        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "microgpt", "chat", "m", *arguments], cwd=place, stdin=theirs, stdout=theirs,
            stderr=theirs, env=environment(TERM="dumb", PYTHONUNBUFFERED="1"), start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.ours, self.seen = ours, ""

    def interrupt(self, text: str) -> None:
        """SIGINT at the prompt until `text` comes: CPython's readline loses one between the prompt and its select."""
        for _ in range(20):
            os.kill(self.process.pid, signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.until(text, 3)
                return
        self.until(text, 3)

    def until(self, text: str, seconds: float = 60) -> str:
        """Read until `text` has come; what came before it."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; got {self.seen[-500:]!r}"
            try:
                self.seen += os.read(self.ours, 65536).decode("utf-8", "replace")
            except OSError:  # the other end is closed
                raise AssertionError(f"ended before {text!r}; got {self.seen[-500:]!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def more(self, count: int) -> None:
        """Read until `count` characters have come that nobody waited for."""
        while len(self.seen) < count:
            ready, _, _ = select.select([self.ours], [], [], 60)
            assert ready, f"nothing came; got {self.seen[-500:]!r}"
            self.seen += os.read(self.ours, 65536).decode("utf-8", "replace")

    def send(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminal(place: Path) -> Iterator[Terminal]:
    pytest.importorskip("pty", reason="no pseudo-terminals here")
    made = Terminal(place, "--max-tokens", "190000", "--seed", "1", "--ignore-eos")
    yield made
    made.close()


def test_ctrl_c_stops_a_reply_and_ctrl_d_ends(terminal: Terminal) -> None:
    terminal.until("Ctrl-D ends")
    terminal.until("> ")
    terminal.send("hi\n")
    terminal.until("hi\r\n")  # which the terminal itself writes, before anybody has read it
    terminal.more(5)  # of the reply, which takes many seconds
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.until("stopped; what was written is kept")
    terminal.until("> ")
    terminal.send("/show\n")
    assert "user: hi" in terminal.until("assistant: ")
    terminal.until("> ")
    terminal.interrupt("/exit ends")  # at the prompt: nothing to stop
    terminal.until("> ")
    terminal.send("\x04")
    assert terminal.process.wait(30) == 0


def test_the_second_ctrl_c_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _Stoppable() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.filterwarnings("ignore:.*pooler")
def test_an_encoder_is_refused_before_the_first_message(tmp_path: Path) -> None:
    kind, settings = ENCODERS["bert"]
    model = microgpt.LanguageModel(Decoder(FAMILIES.get(kind).read(settings), seed=1), CharTokenizer("abc"))
    done = talk(tmp_path, str(model.export(tmp_path / "m.gguf")), "")
    assert done.returncode == 1 and "m.gguf: an encoder (bert), which writes nothing" in done.stderr

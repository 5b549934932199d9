"""`microgpt chat`."""

from __future__ import annotations

import errno
import json
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import CheckpointError, ConfigError, DataError, MicrogptError, TokenizerError, nearest
from ..io import files
from .common import Command, Option, kv_option, sampling_options, say, write

if TYPE_CHECKING:
    from ..api import LanguageModel

EXAMPLES = """\
microgpt chat my-model
microgpt chat ORG/NAME --system "Answer in one sentence." --temperature 0.6
microgpt chat my-model --load talk.json
echo "Why is the sky blue?" | microgpt chat my-model --max-tokens 60"""

HELP = {
    "/help": "this list",
    "/reset": "forget the conversation, keep the system prompt",
    "/system TEXT": "set the system prompt (without TEXT: remove it) and reset",
    "/regen": "write the last reply again, otherwise",
    "/undo": "forget the last message and its reply",
    "/show": "show the conversation",
    "/params [NAME VALUE]": "show the options of generation, or set one",
    "/save FILE": "write the conversation as JSON",
    "/load FILE": "go on with a saved conversation",
    "/exit": "end (so does Ctrl-D)",
}
MULTILINE = '"""'  # a line with it alone begins and ends a message of several lines
FILE_LIMIT = 16 << 20  # bytes of a saved conversation


class Chat:
    """A conversation with a model: messages, options, commands. `show` writes text, `tell` lines for people."""

    def __init__(
        self,
        model: LanguageModel,
        options: dict[str, Any],
        system: str | None = None,
        template: str | None = None,
        show: Callable[[str], None] = write,
        tell: Callable[[str], None] = say,
    ) -> None:
        self.model, self.options, self.template = model, options, template
        self.show, self.tell = show, tell
        self.plain = not model.tokenizer.chat_templates and template is None
        self.messages: list[dict[str, Any]] = []
        self.failed = False  # whether anything did not succeed
        self._system(system)

    def line(self, text: str) -> bool:
        """Answer one message or command; False ends the chat."""
        if not text.startswith("/") or text.startswith("//"):
            if text.strip():
                self._say(text[1:] if text.startswith("//") else text)
            return True
        name, _, rest = text.strip().partition(" ")
        if name in ("/exit", "/quit", "/bye"):
            return False
        commands = {
            "/help": self._help, "/reset": self._reset, "/system": self._system_command, "/regen": self._regen,
            "/undo": self._undo, "/show": self._show, "/params": self._params, "/save": self._save, "/load": self.load,
        }  # fmt: skip
        if name not in commands:
            self._fail(
                f"no command {name}{nearest(name, commands)}; /help lists them (// sends a line that begins with /)"
            )
        else:
            commands[name](rest.strip())
        return True

    def _fail(self, why: str) -> None:
        self.failed = True
        self.tell(why)

    def load(self, name: str) -> None:
        """Go on with the conversation in a file."""
        try:
            self.messages = _conversation(name)
        except MicrogptError as error:
            self._fail(str(error))
            return
        self.tell(f"{len(self.messages)} messages from {name}")

    def _say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        if not self._reply():
            self.messages.pop()

    def _reply(self) -> bool:
        """Write the assistant's turn; False where that failed, which is told."""
        parts: list[str] = []
        try:
            with _Stoppable() as stop:
                for piece in self._pieces():
                    parts.append(piece)
                    self.show(piece)
                    if stop.asked:
                        break
        except MicrogptError as error:
            self._fail(f"error: {' '.join(str(error).split())}")
            if not parts:
                return False
        self.show("\n")
        if stop.asked:
            self.tell("stopped; what was written is kept")
        self.messages.append({"role": "assistant", "content": "".join(parts)})
        return True

    def _pieces(self) -> Iterator[str]:
        if not self.plain:
            return self.model.stream_chat(self.messages, template=self.template, **self.options)
        # The turns so far, a line each; without a line end in the vocabulary, one after the other.
        between = "\n"
        try:
            self.model.tokenizer.encode(between)
        except TokenizerError:
            between = ""
        text = between.join(each["content"] for each in self.messages) + between
        stop = {} if self.options.get("stop") or not between else {"stop": (between,)}
        return self.model.stream(text, **{**self.options, **stop})

    def _help(self, _: str) -> None:
        width = max(map(len, HELP))
        for name, meaning in HELP.items():
            self.tell(f"  {name:{width}}  {meaning}")
        self.tell(f"  {MULTILINE:{width}}  alone on a line: begins and ends a message of several lines")
        self.tell(f"  {'Ctrl-C':{width}}  stops the reply; twice ends the chat")

    def _reset(self, _: str = "") -> None:
        self.messages = [each for each in self.messages[:1] if each["role"] == "system"]
        self.tell("forgotten")

    def _system(self, text: str | None) -> None:
        self.messages = [{"role": "system", "content": text}] if text else []

    def _system_command(self, text: str) -> None:
        self._system(text)
        self.tell("system prompt set" if text else "no system prompt")

    def _regen(self, _: str) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.tell("there is no reply to write again")
            return
        old = self.messages.pop()
        self.options["seed"] = (self.options["seed"] + 1) % 2**64
        if not self._reply():
            self.messages.append(old)

    def _undo(self, _: str) -> None:
        last = max((n for n, each in enumerate(self.messages) if each["role"] == "user"), default=None)
        if last is None:
            self.tell("there is nothing to undo")
            return
        del self.messages[last:]
        self.tell("the last message is forgotten")

    def _show(self, _: str) -> None:
        for each in self.messages:
            self.tell(f"{each['role']}: {each.get('content', '')}")

    def _params(self, rest: str) -> None:
        from ..engine.config import GenerationConfig

        if rest:
            name, _, value = rest.partition(" ")
            try:
                changed = {**self.options, name: json.loads(value)}
            except (ValueError, RecursionError):
                changed = {**self.options, name: value}
            try:
                GenerationConfig.of(changed)  # type: ignore[arg-type]
            except ConfigError as error:
                self._fail(f"error: {error}")
                return
            self.options = changed
        self.tell(", ".join(f"{name} {value}" for name, value in self.options.items()))

    def _save(self, name: str) -> None:
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1) + "\n"
        try:
            place = Path(name).resolve()  # what a symlink names is replaced and not the link
            if place.exists() and not place.is_file():  # a pipe would wait for a reader, a folder cannot be one
                raise OSError(errno.EINVAL, "not a regular file")
            files.write_bytes_atomic(place, text.encode())
        except (OSError, ValueError) as error:
            self._fail(f"cannot save {name or 'without a file name'}: {getattr(error, 'strerror', None) or error}")
            return
        self.tell(f"saved in {name}")


def _conversation(name: str) -> list[dict[str, Any]]:
    """The messages of a file that /save wrote. Raises DataError."""
    from ..tokenizers.chat import checked

    try:
        value = json.loads(files.read_bytes(Path(name), FILE_LIMIT, follow=True))
        if not isinstance(value, dict) or "messages" not in value:
            raise ValueError("expected a JSON object with messages")
        return checked(value["messages"]) if value["messages"] != [] else []  # a chat that has not begun
    except (OSError, ValueError, RecursionError, MicrogptError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"cannot load {name or 'a file without a name'}: {why}") from error


class _Stoppable:
    """Inside, the first Ctrl-C sets `asked`; the second one interrupts."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Stoppable:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _read(terminal: bool, prompt: str) -> str | None:
    """A line without its end; None at the end of the input."""
    if terminal:
        try:
            return input(prompt)
        except EOFError:
            click.echo()
            return None
    line = "" if sys.stdin is None else sys.stdin.readline()  # None: it was closed
    return line.rstrip("\r\n") if line else None


def _message(terminal: bool) -> str | None:
    """A message or command: one line, or the lines between two of triple quotes."""
    line = _read(terminal, "> ")
    if line is None or line.strip() != MULTILINE:
        return line
    lines: list[str] = []
    while (line := _read(terminal, "... ")) is not None and line.strip() != MULTILINE:
        lines.append(line)
    return "\n".join(lines)


def _run(
    model: str | None,
    system: str | None,
    template: str | None,
    load: str | None,
    seed: int | None,
    kv_dtype: str | None,
    **options: Any,
) -> None:
    from .. import api
    from ..engine.config import GenerationConfig
    from ..tokenizers.chat import choose

    if model == "":  # which an unset shell variable leaves; it is not the current folder
        raise ConfigError("expected a model, got an empty name")
    options["seed"] = secrets.randbelow(2**32) if seed is None else seed
    GenerationConfig(**options)  # impossible values are told before the model is read
    try:
        terminal = sys.stdin is not None and sys.stdin.isatty()
        talker = api.load(model, say=say if terminal else None, kv_dtype=kv_dtype)
        if not talker.decoder.config.causal:
            raise ConfigError(f"{model}: an encoder ({talker.decoder.config.family}), which writes nothing")
        chat = Chat(talker, options, system, template)
        if template is not None:
            choose(chat.model.tokenizer.chat_templates, template, False)  # an unknown one is told before the first turn
    except ConfigError as error:  # an impossible config.json is the folder's fault and not the command line's
        raise CheckpointError(str(error)) from error
    if terminal:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - lines can be edited and come again
        say("/help lists commands; Ctrl-C stops a reply, Ctrl-D ends")
    if chat.plain:
        say("this model has no chat template: it continues the conversation as plain text, a line for each turn")
    if load is not None:
        chat.messages = _conversation(load)
        say(f"{len(chat.messages)} messages from {load}")
    if seed is None and options["temperature"] > 0:
        say(f"seed {options['seed']}")
    while True:
        try:
            text = _message(terminal)
        except KeyboardInterrupt:
            if not terminal:
                raise
            say("\nCtrl-D or /exit ends")
            continue
        if text is None or not chat.line(text):
            break
    if chat.failed and not terminal:  # a person has seen it
        raise click.exceptions.Exit(1)


command = Command(
    "chat",
    callback=_run,
    params=[
        click.Argument(["model"], required=False, metavar="[MODEL]"),
        Option(["--system"], metavar="TEXT", help="System prompt."),
        Option(["--template"], metavar="NAME", help="Chat template, where the model has several."),
        Option(["--load"], metavar="FILE", help="Go on with a conversation that /save wrote."),
        kv_option(),
        *sampling_options("reply", 512),
    ],
    examples=EXAMPLES,
    help="Talk to a model: a folder, a run, or ORG/NAME of the hub. [default: the newest run below ./runs]\n\n"
    "Replies go to stdout, everything else to stderr. Input that is not a terminal is read line by line, so that a "
    "script can talk too; it ends with status 1 where a reply or a command failed.",
)  # fmt: skip

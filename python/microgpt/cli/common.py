"""What the verbs share: help with examples, options in sections, lines on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..errors import nearest

MODEL_FILES = (".gguf", ".bin", ".pt", ".pth")  # of the last two api.load says how to convert them


class Option(click.Option):
    """An option that `--help` lists under `section`."""

    def __init__(self, *args: Any, section: str = "Options", **options: Any) -> None:
        super().__init__(*args, **options)
        self.section = section


class Command(click.Command):
    """A verb whose help ends with `examples`, one command a line."""

    def __init__(self, *args: Any, examples: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records, col_max=24)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.write_examples(formatter, self.examples)

    @staticmethod
    def write_examples(formatter: click.HelpFormatter, examples: str) -> None:
        """The section of examples."""
        with formatter.section("Examples"):
            for line in examples.splitlines():
                formatter.write(" " * formatter.current_indent + line + "\n")


class Group(Command, click.Group):
    """A verb with verbs of its own below it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Verbs"):
            formatter.write_dl([(name, each.get_short_help_str(70)) for name, each in self.commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            known = ", ".join(self.commands)
            raise click.UsageError(f"{self.name}: no verb {args[0]!r}{nearest(args[0], self.commands)}; known: {known}")
        return super().resolve_command(ctx, args)


class Folder(click.Path):
    """A folder to create. An empty name, which an unset shell variable leaves, is not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("expected a folder, got an empty name", param, ctx)
        return super().convert(value, param, ctx)


class Model(click.Path):
    """A model to read: a folder, a file of a kind that holds one, or (as a string) ORG/NAME of the hub."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..io.hub import is_id

        if isinstance(value, str) and is_id(value) and not Path(value).parent.exists():  # else a path that is mistyped
            return value
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.is_file() and path.suffix not in MODEL_FILES:
            self.fail(f"{str(path)!r} is a file; expected a model folder, a .gguf or a .bin of llama2.c", param, ctx)
        return path


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM end the verb with one line and their exit code, and what was begun is cleared away."""
    from ..training.signals import Interrupted, Signals

    try:
        with Signals():
            yield
    except Interrupted as error:
        say(f"{error}: stopped; nothing was kept")
        raise click.exceptions.Exit(128 + error.number) from None


def say(line: str) -> None:
    """A line for people, on stderr."""
    click.echo(line, err=True)


def kv_option(help: str = "What the cache of keys and values holds. [default: as the model computes]") -> Option:
    """--kv-dtype."""
    return Option(["--kv-dtype"], type=click.Choice(["f32", "bf16", "int8"]), metavar="TYPE",
                  help=f"f32, bf16 or int8: {help[0].lower()}{help[1:]}")  # fmt: skip


# Control characters but line ends and tabs, as pictures of themselves: a terminal would obey them.
CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
CONTROLS |= {127: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def write(text: str, nl: bool = False) -> None:
    """Text of a model on stdout: as it is, but what would command a terminal is only shown there."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    click.echo(text.translate(CONTROLS) if terminal else text, nl=nl, color=True)  # click would drop colours


TOKEN = "Which token"


def sampling_options(text: str, max_tokens: int, *, penalties: bool = False) -> list[click.Parameter]:
    """How a `text` (sample, reply) is drawn and where it ends: the options of generation, for verbs that write."""
    end = f"Where a {text} ends"
    return [
        Option(["--temperature"], type=float, default=0.8, metavar="X", section=TOKEN,
               help="0 always takes the likeliest token, 1 samples what the model says, more is wilder. "
               "[default: 0.8, a little safer than the model's own]"),
        Option(["--top-k"], type=int, default=0, metavar="N", section=TOKEN,
               help="Sample among the N likeliest; 0 among all."),
        Option(["--top-p"], type=float, default=1.0, metavar="P", section=TOKEN,
               help="Sample among the likeliest tokens that make up this probability. [default: 1]"),
        Option(["--min-p"], type=float, default=0.0, metavar="P", section=TOKEN,
               help="Sample among tokens at least P times as likely as the likeliest, say 0.05. [default: 0, off]"),
        Option(["--repetition-penalty"], type=float, default=1.0, metavar="X", section=TOKEN,
               help="Above 1 makes tokens that came before less likely to come again, say 1.1. [default: 1, off]"),
        *([
            Option(["--presence-penalty"], type=float, default=0.0, metavar="X", section=TOKEN,
                   help="Taken from the score of each token written so far, -2 to 2. [default: 0]"),
            Option(["--frequency-penalty"], type=float, default=0.0, metavar="X", section=TOKEN,
                   help="The same for each time that it was written. [default: 0]"),
        ] if penalties else []),
        Option(["--seed"], type=int, metavar="N", section=TOKEN,
               help="The same seed writes the same text. [default: a fresh one, told on stderr]"),
        Option(["--max-tokens"], type=int, default=max_tokens, metavar="N", section=end,
               help=f"Most tokens of a {text}; it ends earlier at the end token and at the model's context. "
               f"[default: {max_tokens}]"),
        Option(["--stop"], multiple=True, metavar="TEXT", section=end,
               help="End before this text; may be given several times."),
        Option(["--ignore-eos"], is_flag=True, section=end, help="Go on behind the end token."),
    ]  # fmt: skip

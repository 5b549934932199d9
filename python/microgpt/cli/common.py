"""What the verbs share: help with examples, options in sections, lines on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from ..errors import nearest


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

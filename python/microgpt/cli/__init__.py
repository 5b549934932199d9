"""The command line: `microgpt VERB`. One module per verb, loaded when it is used.

Exit codes: 0 done, 1 failed while running, 2 wrong use, 130 interrupted. Results go to stdout, everything else to
stderr; an error is one line. MICROGPT_TRACE=1 shows the traceback behind it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from .. import __version__
from ..errors import ConfigError, IsaError, MicrogptError, nearest
from .common import Command, say

# verb -> what `microgpt --help` says about it; the module of the same name holds the click command `command`.
VERBS = {
    "train": "Train a model on a text file, a folder of texts, or the bundled names.",
    "generate": "Write text with a trained model.",
    "convert": "Write a model in another format: GGUF for llama.cpp, or a Hugging Face folder.",
    "quantize": "Write a model with weights of 4 or 8 bits.",
    "perplexity": "Say how well a model predicts a text.",
    "chat": "Talk to a model.",
    "viz": "Draw the losses of runs, in the terminal or as a picture.",
    "tokenize": "Turn text into token shards; train a tokenizer.",
    "zoo": "Show the architectures, and what a model of some size needs.",
    "bench": "Measure this machine: products, memory, training, generation.",
    "doctor": "Say what microgpt found on this machine, and what is wrong.",
}


class Cli(click.Group):
    """Loads verbs lazily and turns every failure into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __name__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            raise click.UsageError(f"no verb {args[0]!r}{nearest(args[0], VERBS)}; known: {', '.join(VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        Command.write_examples(formatter, EXAMPLES)

    def main(self, *args: Any, **options: Any) -> Any:
        standalone = options.pop("standalone_mode", True)
        code = self._run(*args, **options)
        if standalone:
            sys.exit(code)
        return code

    def _run(self, *args: Any, **options: Any) -> int:
        tracing = os.environ.get("MICROGPT_TRACE", "0") not in ("", "0")
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                options["standalone_mode"] = False
                result: object = super().main(*args, **options)
            return result if isinstance(result, int) else 0
        except (click.ClickException, click.Abort, Exception) as error:
            if tracing:
                traceback.print_exc()
            code, line = explain(error)
            if line:
                say(line)
            return code


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and the one line for stderr."""
    if isinstance(error, click.Abort):
        return 130, "interrupted"
    if isinstance(error, click.ClickException):
        text, code = error.format_message(), error.exit_code
    elif isinstance(error, MicrogptError):
        text, code = str(error), 2 if isinstance(error, (ConfigError, IsaError)) else 1
    elif isinstance(error, MemoryError):
        text, code = "out of memory; a smaller model, block_size or batch_size needs less", 1
    elif isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        text, code = f"{place}{error.strerror or error}", 1
    else:
        hint = "this is a bug; MICROGPT_TRACE=1 shows where"
        text, code = f"internal error: {type(error).__name__}: {error} ({hint})", 1
    return code, "error: " + " ".join(text.split())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say("warning: " + " ".join(str(message).split()))


EXAMPLES = """\
microgpt train --epochs 3
microgpt generate --num-samples 10
microgpt train --data novel.txt --layers 4 --width 128 --block-size 64
microgpt doctor"""


@click.command(
    cls=Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(__version__, message="microgpt %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A language model's whole life on an ordinary CPU.

    `microgpt VERB --help` explains a verb.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; leaves with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Text that the terminal's encoding cannot show is shown escaped; it is no reason to fail.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    cli.main(args=None if args is None else list(args), prog_name="microgpt")

"""`microgpt generate`."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any

import click

from ..errors import CheckpointError, ConfigError, DataError
from .common import Command, Model, Option, kv_option, sampling_options, say, write

RULE = "---"  # between samples that have several lines
PROMPT_LIMIT = 16 << 20  # bytes of a prompt file; far more than any context, and an endless file ends somewhere

EXAMPLES = """\
microgpt generate --num-samples 10
microgpt generate --model runs/names-1 --prompt Em --num-samples 5 --seed 1
microgpt generate --model my-model --prompt "Once upon a time" --max-tokens 500 --stream
microgpt generate --model my-model --min-p 0.05 --repetition-penalty 1.1 --stop "The end"
microgpt generate --model my-model --prompt-file story.txt
echo "Once upon a time" | microgpt generate --model my-model --prompt-file -
microgpt generate --temperature 0"""


def _run(
    model: Path | str | None,
    prompt: str | None,
    prompt_file: str | None,
    num_samples: int,
    seed: int | None,
    stream: bool | None,
    kv_dtype: str | None,
    **options: Any,
) -> None:
    from .. import api
    from ..engine.config import GenerationConfig

    if prompt is not None and prompt_file is not None:
        raise ConfigError("give --prompt or --prompt-file, not both")
    if stream and num_samples != 1:
        raise ConfigError(f"--stream shows one sample as it is written, got --num-samples {num_samples}")
    if not 1 <= num_samples <= api.MOST:
        raise ConfigError(f"--num-samples: expected 1 to {api.MOST}, got {num_samples}")
    options["seed"] = secrets.randbelow(2**32) if seed is None else seed
    config = GenerationConfig(**options)  # impossible values are told before the model is read
    start = (prompt or "") if prompt_file is None else _read(prompt_file)
    try:
        language_model = api.load(model, kv_dtype=kv_dtype)
    except ConfigError as error:  # an impossible config.json is the folder's fault and not the command line's
        raise CheckpointError(str(error)) from error
    if stream is None:
        stream = num_samples == 1 and sys.stdout is not None and sys.stdout.isatty()
    if stream:
        pieces = language_model.stream(start, **options)
        first = next(pieces, "")  # what is wrong with the prompt is told before anything is shown
        _tell(seed, config.seed, config.temperature)
        write(start + first)
        for piece in pieces:
            write(piece)
        click.echo()
        return
    samples = language_model.generate_many(start, num_samples, **options)
    texts = [start + each.text for each in samples]
    _tell(seed, config.seed, config.temperature)
    separator = f"\n{RULE}\n" if any("\n" in text for text in texts) else "\n"
    write(separator.join(texts), nl=True)


def _read(name: str) -> str:
    """The prompt in a file or, of "-", on stdin, without a byte order mark and the line end that `echo` writes."""
    place = "stdin" if name == "-" else name
    if name == "-" and sys.stdin is None:
        raise DataError("stdin: expected a prompt, but it is closed")
    with click.open_file(name, "rb") as file:
        content: bytes = file.read(PROMPT_LIMIT + 1)
    if len(content) > PROMPT_LIMIT:
        raise DataError(f"{place}: expected a prompt of at most {PROMPT_LIMIT} bytes, got more")
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: expected UTF-8, got byte 0x{content[error.start]:02x} at byte offset {error.start}"
        ) from error
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")


def _tell(seed: int | None, chosen: int, temperature: float) -> None:
    if seed is None and temperature > 0:
        say(f"seed {chosen} (--seed {chosen} writes the same again)")


command = Command(
    "generate",
    callback=_run,
    params=[
        Option(["--model"], type=Model(exists=True, path_type=Path), metavar="PATH",
               help="Model or run folder, a GGUF file, or ORG/NAME of the hub. [default: the newest run below ./runs]"),
        Option(["--prompt"], metavar="TEXT", help="What the samples begin with; it is printed too."),
        Option(["--prompt-file"], type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE",
               help="Read the prompt from a UTF-8 file, - is stdin; one line end at its end is left out."),
        Option(["--num-samples"], type=int, default=1, metavar="N",
               help="Samples to write. [default: 1]"),
        Option(["--stream/--no-stream"], default=None,
               help="Show text as it is written. [default: one sample on a terminal]"),
        kv_option(),
        *sampling_options("sample", 256, penalties=True),
    ],
    examples=EXAMPLES,
    help="Write text with a trained model.\n\n"
    "Samples go to stdout: one a line, or separated by lines of --- where one has several lines. Everything else goes "
    "to stderr.",
)  # fmt: skip

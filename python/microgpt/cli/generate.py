"""`microgpt generate`."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import click

from ..errors import CheckpointError, ConfigError
from .common import Command, Option, say

RULE = "---"  # between samples that have several lines

EXAMPLES = """\
microgpt generate --num-samples 10
microgpt generate --model runs/names-1 --prompt Em --num-samples 5 --seed 1
microgpt generate --model my-model --prompt "Once upon a time" --max-tokens 500 --stream
microgpt generate --temperature 0"""


def _run(
    model: Path | None,
    prompt: str,
    num_samples: int,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    stream: bool | None,
) -> None:
    from .. import api
    from ..engine.sampler import Sampling

    if stream and num_samples != 1:
        raise ConfigError(f"--stream shows one sample as it is written, got --num-samples {num_samples}")
    chosen = secrets.randbelow(2**32) if seed is None else seed
    if num_samples < 1 or max_tokens < 1:
        name, value = ("num-samples", num_samples) if num_samples < 1 else ("max-tokens", max_tokens)
        raise ConfigError(f"--{name}: expected at least 1, got {value}")
    Sampling(temperature, top_k, top_p, chosen)  # impossible values are told before the model is read
    try:
        language_model = api.load(model)
    except ConfigError as error:  # an impossible config.json is the folder's fault and not the command line's
        raise CheckpointError(str(error)) from error
    if stream is None:
        stream = num_samples == 1 and sys.stdout.isatty()
    if stream:
        pieces = language_model.stream(
            prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=chosen
        )
        first = next(pieces, "")  # what is wrong with the prompt is told before anything is shown
        _tell(seed, chosen, temperature)
        click.echo(prompt + first, nl=False)
        for piece in pieces:
            click.echo(piece, nl=False)
        click.echo()
        return
    samples = language_model.generate_many(
        prompt, num_samples, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=chosen
    )
    texts = [prompt + each.text for each in samples]
    _tell(seed, chosen, temperature)
    separator = f"\n{RULE}\n" if any("\n" in text for text in texts) else "\n"
    click.echo(separator.join(texts))


def _tell(seed: int | None, chosen: int, temperature: float) -> None:
    if seed is None and temperature > 0:
        say(f"seed {chosen} (--seed {chosen} writes the same again)")


command = Command(
    "generate",
    callback=_run,
    params=[
        Option(["--model"], type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
               help="Model or run folder. [default: the newest run below ./runs]"),
        Option(["--prompt"], default="", metavar="TEXT", help="What the samples begin with; it is printed too."),
        Option(["--num-samples"], type=int, default=1, metavar="N",
               help="Samples to write. [default: 1]"),
        Option(["--max-tokens"], type=int, default=256, metavar="N",
               help="Most tokens of a sample; it ends earlier at the end token and at the model's context. "
               "[default: 256]"),
        Option(["--temperature"], type=float, default=0.8, metavar="X",
               help="0 always takes the likeliest token, 1 samples what the model says, more is wilder. "
               "[default: 0.8, a little safer than the model's own]"),
        Option(["--top-k"], type=int, default=0, metavar="N", help="Sample among the N likeliest; 0 among all."),
        Option(["--top-p"], type=float, default=1.0, metavar="P",
               help="Sample among the likeliest tokens that make up this probability. [default: 1]"),
        Option(["--seed"], type=int, metavar="N",
               help="The same seed writes the same text. [default: a fresh one, told on stderr]"),
        Option(["--stream/--no-stream"], default=None,
               help="Show text as it is written. [default: one sample on a terminal]"),
    ],
    examples=EXAMPLES,
    help="Write text with a trained model.\n\n"
    "Samples go to stdout: one a line, or separated by lines of --- where one has several lines. Everything else goes "
    "to stderr.",
)  # fmt: skip

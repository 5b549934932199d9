"""`microgpt perplexity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import CheckpointError, ConfigError, DataError
from .common import Command, Model, Option, kv_option, stoppable

EXAMPLES = """\
microgpt perplexity my-model novel.txt
microgpt perplexity my-model-4bit novel.txt --original my-model
microgpt perplexity my-model novel.txt --quantize int4 --context 512
microgpt perplexity my-model novel.txt --kv-dtype int8"""


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8: {error.reason} at byte offset {error.start}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def result(score: Any) -> str:
    """A score in one line."""
    line = f"perplexity {score.perplexity:.4f} (loss {score.loss:.5f}, {score.tokens:,} tokens)"
    if score.divergence is not None:
        line += f", divergence {score.divergence:.6f} nats, same likeliest token {100 * score.agreement:.2f} %"
    return line


def _run(
    model: Path | str,
    text: Path,
    context: int | None,
    original: Path | str | None,
    quantize: str | None,
    kv_dtype: str | None,
) -> None:
    from .. import api

    words = read_text(text)
    if quantize is not None and quantize != "keep":
        from ..models.quantized import Scheme

        Scheme.named(quantize)
    with stoppable():
        try:
            ours = api.load(model, quantize=quantize, kv_dtype=kv_dtype)
            other = None if original is None else api.load(original)
        except ConfigError as error:  # an impossible config.json is the folder's fault and not the command line's
            raise CheckpointError(str(error)) from error
        click.echo(result(ours.perplexity(words, context, other)))


command = Command(
    "perplexity",
    callback=_run,
    params=[
        click.Argument(["model"], metavar="MODEL", type=Model(exists=True, path_type=Path)),
        click.Argument(["text"], metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
        Option(["--context"], type=int, metavar="N",
               help="Tokens of the text at a time. [default: the model's context, 2048 at most]"),
        Option(["--original"], type=Model(exists=True, path_type=Path), metavar="PATH",
               help="Say how far the predictions are from this model's, too."),
        Option(["--quantize"], metavar="TYPE",
               help="int4, int8 or int8_channel while loading; keep: as a GGUF file has it."),
        kv_option("What keys and values are kept as, as generation would. [default: they are not cached]"),
    ],
    examples=EXAMPLES,
    help="Say how well a model predicts a text.\n\n"
    "e to the mean negative log-likelihood of each token but the first of each piece of text.",
)  # fmt: skip

"""`microgpt quantize`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ..errors import CheckpointError, ConfigError
from .common import Command, Folder, Model, Option, say, stoppable
from .perplexity import read_text, result

EXAMPLES = """\
microgpt quantize my-model --bits 4 -o my-model-4bit
microgpt quantize my-model --bits 8 -o my-model-8bit --text novel.txt
microgpt quantize model.gguf --bits 4 --group-size 64 -o small"""
EVERY = 2.0  # seconds between lines of progress


def _run(
    source: Path | str, out: Path, bits: int, group_size: int, method: str, text: Path | None, context: int | None,
    force: bool, quiet: bool,
) -> None:  # fmt: skip
    from .. import api
    from ..models.quantized import Report, Scheme

    scheme = Scheme.of_bits(bits, group_size, method)
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; --force replaces it")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder to replace, got another kind of thing")
    words = None if text is None else read_text(text)
    tell = (lambda line: None) if quiet else say
    started = last = time.perf_counter()

    def progress(weights: int, matrices: int) -> None:
        nonlocal last
        if time.perf_counter() - last > EVERY:
            last = time.perf_counter()
            tell(f"{matrices} matrices, {weights / 1e6:,.1f} M weights")

    report = Report(say=progress)
    with stoppable():
        try:
            model = api.load(source, say=tell, quantize=scheme, report=report)
            model.save(out)
            scores = None
            if words is not None:
                original = api.load(source)
                scores = original.perplexity(words, context), model.perplexity(words, context, original)
        except ConfigError as error:  # what a file says is its own fault and not the command line's
            raise CheckpointError(str(error)) from error
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    count = sum(row[0] for row in report.weights.values())
    click.echo(f"weights      {count:,} in {len(report.weights)} matrices")
    click.echo(f"bits         {report.bits_per_weight:.2f} a weight, scales included")
    click.echo(f"error        {100 * report.relative_error:.2f} % of the weights' root mean square")
    if scores is not None:
        click.echo(f"original     {result(scores[0])}")
        click.echo(f"quantized    {result(scores[1])}")
    tell(f"saved in {out}: {size / 1e6:,.1f} MB, {time.perf_counter() - started:.1f} s")


command = Command(
    "quantize",
    callback=_run,
    params=[
        click.Argument(["source"], metavar="MODEL", type=Model(exists=True, path_type=Path)),
        Option(["--out", "-o"], required=True, type=Folder(path_type=Path), metavar="FOLDER",
               help="Where to write it."),
        Option(["--bits"], type=int, default=4, metavar="N",
               help="Of a weight, 4 or 8; embeddings and head have 8. [default: 4]"),
        Option(["--group-size"], type=int, default=32, metavar="N",
               help="Weights that share a scale, a multiple of 8 from 16 to 256. [default: 32]"),
        Option(["--method"], default="rtn", metavar="NAME", help="rtn: round to nearest, scales searched for."),
        Option(["--text"], type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
               help="Compare the two models' predictions of this text."),
        Option(["--context"], type=int, metavar="N",
               help="Tokens of the text at a time. [default: the model's context, 2048 at most]"),
        Option(["--force"], is_flag=True, help="Replace a folder that exists."),
        Option(["--quiet"], is_flag=True, help="Print nothing but the report, errors and warnings."),
    ],
    examples=EXAMPLES,
    help="Write a model with weights of 4 or 8 bits: smaller, and faster to write text with.\n\n"
    "MODEL is a model folder, a run folder (its newest checkpoint), ORG/NAME of the hub, a GGUF file or a .bin of "
    "llama2.c. The folder is of our own layout, for every verb that reads models.",
)  # fmt: skip

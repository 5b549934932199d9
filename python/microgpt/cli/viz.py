"""`microgpt viz`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from .common import Command, Option, say

EXAMPLES = """\
microgpt viz runs/names-1
microgpt viz runs/names-1 runs/names-2
microgpt viz runs/names-1 runs/names-2 --out losses.svg"""


def _run(runs: tuple[Path, ...], out: Path | None) -> None:
    from .. import api

    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    width = max(40, min(100, shutil.get_terminal_size((78, 24)).columns - 1))
    lines = api.viz(*runs, out=out, width=width, ascii_only="utf" not in encoding)
    if out is not None:
        say(f"drawn in {out}")
    for line in lines:
        click.echo(line)


command = Command(
    "viz",
    callback=_run,
    params=[
        click.Argument(["runs"], nargs=-1, required=True, metavar="RUN...",
                       type=click.Path(exists=True, file_okay=False, path_type=Path)),
        Option(["--out"], type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
               help="Draw a picture as well: .svg, or .png, .pdf, .jpg with microgpt[plot]."),
    ],
    examples=EXAMPLES,
    help="Show the losses of runs as a chart in the terminal, and compare them in a table.\n\n"
    "It reads RUN/metrics.jsonl and may be used while a run is going on.",
)  # fmt: skip

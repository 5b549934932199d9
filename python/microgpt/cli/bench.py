"""`microgpt bench`."""

from __future__ import annotations

import json
import math

import click

from ..errors import ConfigError
from .common import Command, Option, say

EXAMPLES = """\
microgpt bench
microgpt bench --seconds 30
microgpt bench --json > figures.json"""


def _run(seconds: float, as_json: bool) -> None:
    if not math.isfinite(seconds) or seconds <= 0:
        raise ConfigError(f"--seconds: expected a positive number, got {seconds}")
    from .. import bench

    machine = bench.machine()
    line = f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads ({machine['threads_why']})"
    say(line) if as_json else click.echo(line)
    figures = {}
    for name, text, found in bench.measure(seconds):
        figures[name] = found
        shown = f"{name:<42}{text}"
        say(shown) if as_json else click.echo(shown)
    if as_json:
        click.echo(json.dumps({"machine": machine, "figures": figures}))


command = Command(
    "bench",
    callback=_run,
    params=[
        Option(["--seconds"], type=float, default=8.0, metavar="X",
               help="Time to spend, roughly; longer is steadier. [default: 8]"),
        Option(["--json", "as_json"], is_flag=True, help="One JSON line on stdout; the table goes to stderr."),
    ],
    examples=EXAMPLES,
    help="Measure this machine: matrix products, attention, memory, training steps, generation.\n\n"
    "Figures are medians. Leave the machine alone while it runs.",
)  # fmt: skip

"""Loss curves of run folders: read from metrics.jsonl, drawn as text, SVG or a picture."""

from __future__ import annotations

import html
import importlib.util
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, MissingExtraError
from ..io import files

MAX_BYTES = 1 << 30
Points = list[tuple[float, float]]


@dataclass
class Curve:
    """One run: (step, loss) of training and of validation, and what the table says of it."""

    name: str
    train: Points = field(default_factory=list)
    validation: Points = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)  # tokens/s
    elapsed: float = 0.0

    @property
    def steps(self) -> int:
        """The last step that a record tells of."""
        return int(max(x for x, _ in self.train + self.validation))

    def row(self) -> list[str]:
        """The run's row of table()."""
        best = min(self.validation, key=lambda point: point[1], default=None)
        speed = statistics.median(self.speeds) if self.speeds else None
        return [
            self.name,
            f"{self.steps:,}",
            f"{self.train[-1][1]:.4f}" if self.train else "-",
            f"{self.validation[-1][1]:.4f}" if self.validation else "-",
            f"{best[1]:.4f} at {int(best[0]):,}" if best else "-",
            f"{speed:,.0f}" if speed is not None else "-",
            f"{self.elapsed:,.0f} s" if self.elapsed else "-",
        ]


HEAD = ["run", "steps", "train", "validation", "best", "tokens/s", "time"]


def read_curve(run: Path) -> Curve:
    """The curve of a run folder. Raises CheckpointError when it has no records; a half-written line is skipped."""
    path = run / "metrics.jsonl"
    try:
        lines = files.read_bytes(path, MAX_BYTES).splitlines()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; is {run} a run folder?") from error
    curve = Curve(run.name or str(run))
    for line in lines:
        try:
            values: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(values, dict):
            continue
        step = _number(values, "step")
        for name, points in (("loss", curve.train), ("val_loss", curve.validation)):
            value = _number(values, name)
            if step is not None and value is not None:
                points.append((step, value))
        speed = _number(values, "tokens_per_second")
        curve.speeds += [] if speed is None else [speed]
        curve.elapsed = max(curve.elapsed, _number(values, "elapsed") or 0.0)
    if not curve.train and not curve.validation:
        raise CheckpointError(f"{path}: no losses in it yet")
    return curve


def _number(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    # What two of which may differ by is still finite.
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e150
    return float(value) if good and value is not None else None


def table(curves: Sequence[Curve]) -> list[str]:
    """One row a run, in columns."""
    rows = [HEAD, *(curve.row() for curve in curves)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


# -- scales ------------------------------------------------------------------------------------------------------------
def _limits(curves: Sequence[Curve]) -> tuple[float, float, float, float]:
    """Steps and losses from least to most."""
    points = [point for curve in curves for point in curve.train + curve.validation]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = max(0.5, abs(high) * 1e-6)
        low, high = low - pad, high + pad
    return min(xs), max(max(xs), min(xs) + 1.0), low, high


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers (1, 2 or 5 times a power of ten apart) in [low, high]."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


# -- text --------------------------------------------------------------------------------------------------------------
def text_chart(curves: Sequence[Curve], width: int = 76, height: int = 18, ascii_only: bool = False) -> list[str]:
    """Losses over steps in characters. One run: dots train, o validates; several: a letter each, validation upper-case.

    Where a run has many records, a column shows their mean.
    """
    left, right, low, high = _limits(curves)
    columns = width - 9
    grid = [[" "] * columns for _ in range(height)]
    single = len(curves) == 1
    legend = []
    marks = []
    for i, curve in enumerate(curves):
        letter = chr(ord("a") + i % 26)
        train, validation = (("." if ascii_only else "·"), "o") if single else (letter, letter.upper())
        marks += [(curve.train, train), (curve.validation, validation)]
        legend.append(f"{train} training   {validation} validation" if single else f"{letter} {curve.name}")
    # Validation last: there are fewer of its points, and they matter more.
    for points, mark in sorted(marks, key=lambda each: each[1].isupper() or each[1] == "o"):
        cells: dict[int, list[float]] = {}
        for x, y in points:
            cells.setdefault(round((x - left) / (right - left) * (columns - 1)), []).append(y)
        for column, values in cells.items():
            y = statistics.fmean(values)
            grid[height - 1 - round((y - low) / (high - low) * (height - 1))][column] = mark
    labels = {height - 1 - round((y - low) / (high - low) * (height - 1)): y for y in ticks(low, high, 5)}
    bar, corner, line = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    out = [f"{labels[i]:7.3g} {bar}" + "".join(row) if i in labels else " " * 8 + bar + "".join(row)
           for i, row in enumerate(grid)]  # fmt: skip
    out.append(" " * 8 + corner + line * columns)
    ends = f"{left:,.0f}", f"step {right:,.0f}"
    out.append(" " * 9 + ends[0] + ends[1].rjust(columns - len(ends[0])))
    tail = [] if single else ["(upper case: validation)"]
    return [each.rstrip() for each in out] + [" " * 9 + "   ".join([*legend, *tail])]


# -- pictures ----------------------------------------------------------------------------------------------------------
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
WIDTH, HEIGHT, MARGIN = 720, 420, (60, 20, 20, 44)  # left, right, top, bottom


def svg(curves: Sequence[Curve]) -> str:
    """The curves as SVG: training thin and pale, validation strong."""
    left, right, low, high = _limits(curves)
    wide, tall = WIDTH - MARGIN[0] - MARGIN[1], HEIGHT - MARGIN[2] - MARGIN[3]

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN[0] + (x - left) / (right - left) * wide, MARGIN[2] + (high - y) / (high - low) * tall

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for y in ticks(low, high, 6):
        _, v = at(left, y)
        parts.append(f'<path d="M{MARGIN[0]} {v:.1f}h{wide}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN[0] - 6}" y="{v + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in ticks(left, right, 8):
        h, _ = at(x, low)
        parts.append(f'<text x="{h:.1f}" y="{HEIGHT - MARGIN[3] + 16}" text-anchor="middle">{x:,.0f}</text>')
    parts.append(f'<text x="{MARGIN[0] + wide / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    middle = MARGIN[2] + tall / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    parts.append(f'<text x="14" y="{middle:.0f}" text-anchor="middle" {turned}>loss (nats)</text>')
    parts.append(f'<rect x="{MARGIN[0]}" y="{MARGIN[2]}" width="{wide}" height="{tall}" fill="none" stroke="#888"/>')
    row = MARGIN[2] + 16
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        for points, style, what in (
            (curve.train, 'stroke-width="1" stroke-opacity="0.45"', "training"),
            (curve.validation, 'stroke-width="2"', "validation"),
        ):
            if not points:
                continue
            places = " ".join(f"{h:.1f},{v:.1f}" for h, v in (at(*point) for point in points))
            parts.append(f'<polyline fill="none" stroke="{colour}" {style} points="{places}"/>')
            label = what if len(curves) == 1 else f"{html.escape(curve.name)}, {what}"
            end = WIDTH - MARGIN[1] - 8
            parts.append(f'<path d="M{end - 24} {row - 4}h24" stroke="{colour}" {style}/>')
            parts.append(f'<text x="{end - 30}" y="{row}" text-anchor="end">{label}</text>')
            row += 17
    return "\n".join([*parts, "</svg>"]) + "\n"


def check_plot() -> None:
    """Raise MissingExtraError unless matplotlib can be imported."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("plot: matplotlib is not installed: pip install 'microgpt[plot]', or draw an .svg")


def save_picture(curves: Sequence[Curve], path: Path) -> None:
    """Write the curves to `path`: .svg without any library, .png, .pdf and .jpg with matplotlib (extra `plot`).

    Raises ConfigError for another ending, MissingExtraError, StorageError.
    """
    kind = path.suffix.lower()
    if kind not in (".svg", ".png", ".pdf", ".jpg"):
        raise ConfigError(f"picture {path}: expected .svg, .png, .pdf or .jpg, got {kind or 'no ending'!r}")
    try:
        if kind == ".svg":
            files.write_bytes_atomic(path, svg(curves).encode("utf-8", "replace"))
        else:
            _matplotlib(curves, path)
    except OSError as error:
        raise files.storage_error("drawing the losses", path, error) from error


def _matplotlib(curves: Sequence[Curve], path: Path) -> None:
    check_plot()
    from matplotlib.figure import Figure  # type: ignore[import-not-found,import-untyped,unused-ignore]

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        for points, options in (
            (curve.train, {"alpha": 0.45, "linewidth": 1, "label": f"{curve.name}, training"}),
            (curve.validation, {"linewidth": 2, "label": f"{curve.name}, validation"}),
        ):
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, **options)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)

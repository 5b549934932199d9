"""The picture of a comparison: each case's share of the roofline, a bar for each library."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingExtraError
from ..io import files
from .paired import OURS

KINDS = (".png", ".svg", ".pdf", ".jpg")
COLOURS = {OURS: "#1f77b4", "torch": "#d62728", "torch-compile": "#9467bd", "numpy": "#7f7f7f"}


def check(path: Path) -> None:
    """Raise before hours of measuring what would be raised after them: ConfigError, MissingExtraError."""
    if path.suffix.lower() not in KINDS:
        raise ConfigError(f"--plot {path}: expected {', '.join(KINDS)}, got {path.suffix or 'no ending'!r}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: the folder does not exist")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("--plot: matplotlib is not installed: pip install 'microgpt[plot]'")


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture of what kernels.measure() or train.measure() returned. Raises StorageError."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found,import-untyped,unused-ignore]

    panels: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        panels.setdefault(" ".join((row.get("group", "training step"), row["dtype"])), []).append(row)
    names = [OURS, *found["peers"]]
    dtypes = list(dict.fromkeys(row["dtype"] for row in found["rows"]))
    groups = list(dict.fromkeys(row.get("group", "training step") for row in found["rows"]))
    heights = [max(len(rows) for key, rows in panels.items() if key.startswith(group)) + 1.5 for group in groups]
    scale = 0.11 + 0.09 * len(names)
    figure = Figure(figsize=(7.5 * len(dtypes), 1.2 + scale * sum(heights) + 0.5 * len(groups)), layout="constrained")
    grid: Any = figure.subplots(len(groups), len(dtypes), squeeze=False, height_ratios=heights)
    for i, group in enumerate(groups):
        for j, dtype in enumerate(dtypes):
            _panel(grid[i][j], f"{group}, {dtype}", panels.get(f"{group} {dtype}", []), names)
    machine, limits = found["machine"], found["roofline"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads. Roofline: float32 "
        f"{limits['float32'] / 1e9:,.0f} and bfloat16 {limits['bfloat16'] / 1e9:,.0f} GFLOP/s, "
        f"read {limits['read'] / 1e9:,.0f} and copy {limits['copy'] / 1e9:,.0f} GB/s",
        fontsize=9,
    )
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise files.storage_error("drawing the comparison", path, error) from error


def _panel(axes: Any, title: str, rows: list[dict[str, Any]], names: list[str]) -> None:
    names = [name for name in names if any("share" in row["results"].get(name, {}) for row in rows)]
    bar = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        places, shares = [], []
        for at, row in enumerate(rows):
            share = row["results"].get(name, {}).get("share")
            if share is not None:
                places.append(at + bar * (number - (len(names) - 1) / 2))
                shares.append(100 * share)
        axes.barh(places, shares, bar, color=COLOURS.get(name), label=name)
    axes.axvline(100, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("% of the roofline", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=7)

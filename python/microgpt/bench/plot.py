"""The picture of a comparison: each case's share of the roofline, a bar for each library."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingExtraError
from ..io import files
from .paired import OURS

KINDS = (".png", ".svg", ".pdf", ".jpg")
COLOURS = {
    OURS: "#1f77b4",
    "torch": "#d62728",
    "torch-compile": "#9467bd",
    "numpy": "#7f7f7f",
    "llama.cpp": "#2ca02c",
    "transformers": "#d62728",
}


def check(path: Path) -> None:
    """Raise before hours of measuring what would be raised after them: ConfigError, MissingExtraError."""
    if path.suffix.lower() not in KINDS:
        raise ConfigError(f"--plot {path}: expected {', '.join(KINDS)}, got {path.suffix or 'no ending'!r}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: the folder does not exist")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("--plot: matplotlib is not installed: pip install 'microgpt[plot]'")


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture of what measure() of kernels, train or model returned. Raises StorageError."""
    figure = _rates(found) if found["bench"] == "model" else _shares(found)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise files.storage_error("drawing the comparison", path, error) from error


def _rates(found: dict[str, Any]) -> Any:
    """Tokens a second of each case, a bar for each rival."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found,import-untyped,unused-ignore]

    rows, names = found["rows"], [OURS, *found["peers"]]
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(rows) * len(names)), layout="constrained")
    axes: Any = figure.subplots()
    bar = 0.8 / len(names)
    for number, name in enumerate(names):
        rates = [row["results"].get(name, {}).get("tokens_per_second") for row in rows]
        places = [at + bar * (number - (len(names) - 1) / 2) for at, each in enumerate(rates) if each]
        bars = axes.barh(places, [each for each in rates if each], bar, color=COLOURS.get(name), label=name)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("tokens a second", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=7)
    model, machine = found["model"], found["machine"]
    axes.set_title(f"{model['family']}, {model['parameters']:,} parameters as {model['kind']}; {machine['cpu']}, "
                   f"{machine['threads']} threads", fontsize=9)  # fmt: skip
    return figure


def _shares(found: dict[str, Any]) -> Any:
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
    return figure


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

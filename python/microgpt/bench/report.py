"""What the comparisons share in telling: rows as lines, ratios in short, summaries, who disturbed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .paired import DISTURBED, OURS
from .roofline import LIMITS

Row = dict[str, Any]
# Clearly behind a peer: the whole interval of the ratio lies below this. What memory gives varies more.
BEHIND, BEHIND_IN_MEMORY = 0.97, 0.93


def duration(seconds: float) -> str:
    """Three digits with a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1.0 or unit == "µs":
            value = seconds * factor
            return f"{value:,.{max(0, 2 - int(math.log10(max(value, 1.0))))}f} {unit}"
    raise AssertionError


def times(found: dict[str, Any]) -> str:
    """Median and in brackets the smallest and largest."""
    return f"{duration(found['median'])} [{duration(found['min'])}, {duration(found['max'])}]"


def percent(share: float) -> str:
    """Whole percents, tenths below ten."""
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def rate(limit: str, value: float) -> str:
    """FLOP/s or bytes/s in the unit of LIMITS."""
    return f"{value / 1e9:,.1f} {LIMITS[limit]}"


def against(name: str, found: dict[str, Any]) -> str:
    """A peer beside ours: `torch 1.31x [1.29, 1.33]`; above 1 ours is faster."""
    if "error" in found:
        return f"{name} failed"
    if "ratio" not in found:
        return f"{name} {duration(found['median'])}"
    mark = "" if found.get("agrees", True) else " DIFFERS"
    return f"{name} {found['ratio']:.2f}x [{found['ratio_low']:.2f}, {found['ratio_high']:.2f}]{mark}"


def failures(row: Row) -> list[str]:
    """Lines for rivals that failed or computed something else."""
    lines = []
    for name, found in row["results"].items():
        if "error" in found:
            lines.append(f"    {name}: {found['error']}")
        elif not found.get("agrees", True):
            lines.append(
                f"    {name}: its result differs by {found['difference']:.1e} (at most {found['allowed']:.0e})"
            )
    return lines


def roofline_line(limits: dict[str, float]) -> str:
    """The measured limits in one line."""
    words = {"read": "memory read", "copy": "copy", "update": "update in place"}
    return "roofline: " + ", ".join(f"{words.get(name, name)} {rate(name, value)}" for name, value in limits.items())


def header(machine: dict[str, Any], peers: dict[str, str], limits: dict[str, float]) -> list[str]:
    """What a comparison says first: machine, peers, roofline."""
    names = ", ".join(f"{name} {version}" for name, version in peers.items()) or "none installed or asked for"
    isa = f"{machine['isa']}, {machine['threads']} threads"
    return [f"{machine['cpu']}, {isa}; peers: {names}", roofline_line(limits)]


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean of logs."""
    return math.exp(statistics.fmean(map(math.log, values)))


def best_peer(row: Row) -> str | None:
    """The peer that is fastest beside us in this case."""
    found = {name: each["ratio"] for name, each in row["results"].items() if name != OURS and "ratio" in each}
    return min(found, key=found.__getitem__) if found else None


def behind(row: Row) -> list[dict[str, Any]]:
    """The peers that we are clearly behind in this case."""
    limit = BEHIND_IN_MEMORY if LIMITS[row["limit"]] == "GB/s" else BEHIND
    return [
        {"case": row["case"], "peer": name, **{key: each[key] for key in ("ratio", "ratio_low", "ratio_high")}}
        for name, each in row["results"].items()
        if name != OURS and each.get("ratio_high", limit) < limit
    ]


def summarize(rows: Iterable[Row], keys: Sequence[str]) -> list[dict[str, Any]]:
    """For each value of `keys` and each peer: cases, geometric mean of the ratios, the worst case; our median share.

    And beside the best peer of each case: `best`, the geometric mean, and `behind`, the cases that are clearly lost.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for values, members in groups.items():
        entry: dict[str, Any] = dict(zip(keys, values, strict=True))
        shares = [row["results"][OURS]["share"] for row in members if row["results"][OURS].get("share")]
        entry.update(cases=len(members), share=statistics.median(shares) if shares else None, peers={})
        for name in dict.fromkeys(name for row in members for name in row["results"] if name != OURS):
            with_ratio = [row for row in members if "ratio" in row["results"].get(name, {})]
            if with_ratio:
                worst = min(with_ratio, key=lambda row: row["results"][name]["ratio"])
                entry["peers"][name] = {
                    "cases": len(with_ratio),
                    "ratio": geometric_mean([row["results"][name]["ratio"] for row in with_ratio]),
                    "worst": worst["case"],
                    "worst_ratio": worst["results"][name]["ratio"],
                }
        best = [row["results"][name]["ratio"] for row in members if (name := best_peer(row))]
        entry["best"] = {"cases": len(best), "ratio": geometric_mean(best)} if best else None
        entry["behind"] = [each for row in members for each in behind(row)]
        found.append(entry)
    return found


def summary_lines(entries: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    """The summary for people."""
    lines = []
    for entry in entries:
        name = " ".join(str(entry[key]) for key in keys)
        share = "" if entry["share"] is None else f", median {percent(entry['share'])} of the roofline"
        lines.append(f"{name}: {entry['cases']} cases{share}")
        lines += [
            f"    {peer}: geometric mean {found['ratio']:.2f}x over {found['cases']}, "
            f"worst {found['worst_ratio']:.2f}x ({found['worst']})"
            for peer, found in entry["peers"].items()
        ]
        if best := entry["best"]:
            lost = [f"{each['case']} ({against(each['peer'], each)})" for each in entry["behind"]]
            lines.append(
                f"    best peer of each case: geometric mean {best['ratio']:.2f}x over {best['cases']}; "
                f"clearly behind in {len({each['case'] for each in entry['behind']}) or 'none'}"
                + (f": {', '.join(lost)}" if lost else "")
            )
    return lines


def disturbance(shares: Sequence[float | None]) -> dict[str, Any]:
    """How much of the machine others used while each case was timed."""
    known = [share for share in shares if share is not None]
    if not known:
        return {"known": False}
    return {"known": True, "median": statistics.median(known), "max": max(known),
            "disturbed": sum(share > DISTURBED for share in known), "cases": len(known)}  # fmt: skip


def disturbance_line(found: dict[str, Any]) -> str:
    """The same for people."""
    if not found["known"]:
        return "whether other processes disturbed is unknown: /proc/stat cannot be read"
    text = f"other processes used {found['median']:.0%} of the machine (median; at most {found['max']:.0%})"
    if found["disturbed"]:
        text += f"; {found['disturbed']} of {found['cases']} figures were DISTURBED (above {DISTURBED:.0%}, marked !)"
    return text

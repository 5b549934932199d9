"""`microgpt bench MODEL`: a model's prompts and tokens, llama.cpp and transformers beside them, what memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ChildError, ConfigError
from . import llama, report, rivals
from .paired import DISTURBED, OURS, Rivals, contest, our_command, peer_command

PEERS = {llama.NAME: "", "transformers": "transformers"}  # peer -> package
MOST = 1 << 20  # tokens of a case


@dataclass(frozen=True)
class Settings(rivals.Settings):
    """The model, as each rival reads it, and the cases."""

    path: Path
    quantize: str | None
    kv_dtype: str | None
    prompts: tuple[int, ...]
    tokens: int
    batches: tuple[int, ...]
    past: int
    llama_bench: str | None
    gguf: Path | None
    folder: Path | None


@dataclass(frozen=True)
class Case:
    """So many tokens of each of `sequences` behind `past` others; a prompt is one call, else a token is."""

    kind: str  # prompt or generate
    tokens: int
    sequences: int = 1
    past: int = 0

    @property
    def name(self) -> str:
        """pp128, tg128, or tg32 x 8."""
        short = f"{'pp' if self.kind == 'prompt' else 'tg'}{self.tokens}"
        return short if self.sequences == 1 else f"{short} x {self.sequences}"

    @property
    def label(self) -> str:
        """For people."""
        if self.kind == "prompt":
            return f"prompt of {self.tokens:,}"
        return f"{self.tokens:,} tokens" + (f", {self.sequences} sequences" if self.sequences > 1 else "")


def cases(settings: Settings) -> list[Case]:
    """Prompts, one stream, several streams."""
    found = [Case("prompt", count) for count in settings.prompts]
    found += [Case("generate", settings.tokens)] if settings.tokens else []
    # Several: a quarter of the tokens each, behind a short prompt.
    each = max(1, settings.tokens // 4)
    return found + [Case("generate", each, count, settings.past) for count in settings.batches if settings.tokens]


def numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    """Whole numbers in a comma-separated list; "none" or 0 is none. Raises ConfigError."""
    found = []
    for word in text.split(","):
        if word.strip() in ("0", "none", ""):
            continue
        if not word.strip().isdecimal() or not 1 <= int(word) <= most:
            raise ConfigError(f"{option}: expected numbers from 1 to {most:,}, got {word.strip()!r}")
        found.append(int(word))
    return tuple(found)


def row_of(case: Case, loaded: dict[str, Any], set_up: dict[str, Any], contested: Any) -> report.Row:
    """Figures of a case: rates, and for tokens the bytes that each reads and their share of the read bandwidth."""
    results, bandwidth, others = contested
    if "error" in results[OURS]:
        raise ChildError(f"{OURS}: {case.label} failed: {results[OURS]['error']}")
    total = case.tokens * case.sequences
    row: report.Row = {
        "case": case.name, "kind": case.kind, "tokens": case.tokens, "sequences": case.sequences, "past": case.past,
        "flops": set_up["flops"], "results": results, "others": others, "read": bandwidth,
    }  # fmt: skip
    for found in results.values():
        if "error" not in found:
            found["tokens_per_second"] = total / found["median"]
    ours = results[OURS]
    ours["flops_per_second"] = set_up["flops"] / ours["median"]
    if case.kind == "generate":
        weights = set_up.get("weight_bytes", loaded["bytes"])
        step = weights + set_up["cache_bytes"]  # of one call: the weights once, every sequence's cache
        row["bytes_per_token"] = step / case.sequences
        ours["bytes_per_second"] = step * case.tokens / ours["median"]
        ours["share"] = ours["bytes_per_second"] / bandwidth
    return row


TITLES = (
    "tokens/s, median [min, max]; bytes that a token reads, over the read bandwidth beside it; ours over theirs [95 %]"
)


def lines(row: report.Row) -> list[str]:
    """A row for people."""
    case = Case(row["kind"], row["tokens"], row["sequences"], row["past"])
    mark = "!" if (row["others"] or 0.0) > DISTURBED else " "
    found = [f"{mark}{case.label}"]
    for name, each in row["results"].items():
        if "error" in each:
            continue
        low, high = (case.tokens * case.sequences / each[end] for end in ("max", "min"))
        text = f"    {name:<14} {each['tokens_per_second']:>9,.1f} [{low:,.1f}, {high:,.1f}]"
        if name != OURS:
            text += f"  {each['ratio']:.2f}x [{each['ratio_low']:.2f}, {each['ratio_high']:.2f}]"
        elif "share" in each:
            text += (f"  {row['bytes_per_token'] / 1e6:,.1f} MB a token, {each['bytes_per_second'] / 1e9:,.1f} GB/s, "
                     f"{report.percent(each['share'])} of {row['read'] / 1e9:,.1f} GB/s")  # fmt: skip
        else:
            text += f"  {each['flops_per_second'] / 1e9:,.0f} GFLOP/s"
        found.append(text)
    return found + report.failures(row)


def measure(settings: Settings, say: Callable[[str], None], progress: Callable[[Sequence[Any]], Any]) -> dict[str, Any]:
    """Everything; lines go to `say` as they come, `progress` wraps the list of cases. The result is plain JSON."""
    todo, rows = cases(settings), []
    with Rivals() as children:
        ours = children.start(OURS, our_command("ours_model"), settings.threads, settings.timeout)
        names = {"path": str(settings.path), "quantize": settings.quantize, "kv_dtype": settings.kv_dtype}
        loaded = ours.need({"do": "load", **names})
        longest = max((case.tokens + case.past for case in todo), default=0)
        if longest > loaded["context"]:
            raise ConfigError(f"{settings.path}: its context is {loaded['context']:,} tokens, a case has {longest:,}")
        if "transformers" in settings.peers:
            command = peer_command(settings.python, "transformers_model")
            theirs = children.start("transformers", command, settings.threads, settings.timeout)
            theirs.need({"do": "load", "path": str(settings.folder), "dtype": "bfloat16"})
        everyone: dict[str, Any] = dict(children.children)
        if llama.NAME in settings.peers:
            assert settings.llama_bench is not None and settings.gguf is not None
            everyone[llama.NAME] = llama.LlamaCpp(
                settings.llama_bench, settings.gguf, settings.threads, settings.kv_dtype, settings.timeout
            )
        machine = ours.hello
        peers = ", ".join(f"{name} {version}" for name, version in settings.peers.items()) or "none asked for"
        say(f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads; peers: {peers}")
        say(f"{settings.path}: {loaded['family']}, {loaded['parameters']:,} parameters as {loaded['kind']}, "
            f"{loaded['bytes'] / 1e6:,.1f} MB read a token, cache {settings.kv_dtype or 'as computed'}")  # fmt: skip
        say(TITLES)
        for case in progress(todo):
            request = {"do": "case", "kind": case.kind, "tokens": case.tokens, "sequences": case.sequences,
                       "past": case.past}  # fmt: skip
            set_up = ours.need(request)
            answers = {name: child.ask(request) for name, child in everyone.items() if name != OURS}
            taking = {name: child for name, child in everyone.items() if "error" not in answers.get(name, {})}
            contested = contest(taking, settings.rounds, settings.seconds, "read", 0.1)
            contested[0].update({name: each for name, each in answers.items() if "error" in each})
            rows.append(row_of(case, loaded, set_up, contested))
            for text in lines(rows[-1]):
                say(text)
    disturbed = report.disturbance([row["others"] for row in rows])
    say(report.disturbance_line(disturbed))
    return {
        "bench": "model", "machine": machine, "peers": settings.peers, "threads": settings.threads,
        "rounds": settings.rounds, "seconds": settings.seconds, "model": {**names, **loaded}, "rows": rows,
        "disturbance": disturbed,
    }  # fmt: skip

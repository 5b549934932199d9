"""`microgpt quantize`."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

from ..errors import CheckpointError, ConfigError
from .common import Command, Folder, Model, Option, say, stoppable
from .perplexity import read_text, result

EXAMPLES = """\
microgpt quantize my-model --bits 4 -o my-model-4bit
microgpt quantize my-model --bits 8 -o my-model-8bit --text novel.txt
microgpt quantize my-model --method gptq --calibration prose.txt -o my-model-gptq --text novel.txt --json
microgpt quantize model.gguf --bits 4 --filter "*.down.weight=int8" --filter "head=float" -o small"""
QUALITY, CHECK = "How well", "What it cost"


def _rule(text: str) -> tuple[str, str]:
    where, _, type = text.rpartition("=")
    if not where or not type:
        raise ConfigError(f"--filter: expected PATTERN=TYPE, got {text!r}")
    return where, type


def _run(
    source: Path | str, out: Path, bits: int, group_size: int, method: str, calibration: Path | None, tokens: int,
    act_order: bool, filters: tuple[str, ...], text: Path | None, context: int | None, as_json: bool, force: bool,
    quiet: bool,
) -> None:  # fmt: skip
    from tqdm import tqdm  # type: ignore[import-untyped]

    from .. import api
    from ..models.quantized import Report, Scheme
    from ..quantization.quantize import check_method

    scheme = Scheme.of_bits(bits, group_size, [_rule(each) for each in filters])
    if check_method(method) != "rtn" and calibration is None:
        raise ConfigError(f"--method {method} looks at what the model does with a text: give it one with --calibration")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; --force replaces it")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder to replace, got another kind of thing")
    words = None if text is None else read_text(text)
    tell = (lambda line: None) if quiet else say
    started = time.perf_counter()
    with stoppable(), tqdm(unit="matrix", leave=False, disable=True if quiet else None) as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        def counted(weights: int, matrices: int) -> None:
            bar.set_postfix_str(f"{weights / 1e6:,.1f} M weights", refresh=False)
            bar.update(matrices - bar.n)

        try:
            if method == "rtn":
                report = Report(say=counted)
                model = api.load(source, say=tell, quantize=scheme, report=report)
            else:
                model = api.load(source, say=tell)
                report = api.quantize(
                    model,
                    bits,
                    group_size,
                    method,
                    tell,
                    filters=scheme.rules,
                    calibration=calibration,
                    tokens=tokens,
                    act_order=act_order,
                    progress=progress,
                )
            model.save(out)
            scores = None
            if words is not None:
                original = api.load(source)
                scores = original.perplexity(words, context), model.perplexity(words, context, original)
        except ConfigError as error:  # what a file says is its own fault and not the command line's
            raise CheckpointError(str(error)) from error
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    found: dict[str, Any] = {"method": method, "group_size": group_size, **report.to_dict(), "bytes": size}
    if scores is not None:
        for name, score in zip(("original", "quantized"), scores, strict=True):
            found[name] = {"perplexity": score.perplexity, **dataclasses.asdict(score)}
    for line in _table(found):
        click.echo(line, err=as_json)
    for name, score in zip(("original", "quantized"), scores or (), strict=False):
        click.echo(f"{name:12s} {result(score)}", err=as_json)
    if as_json:
        click.echo(json.dumps(found))
    tell(f"saved in {out}: {size / 1e6:,.1f} MB, {time.perf_counter() - started:.1f} s")


def _table(found: dict[str, Any]) -> list[str]:
    """Types with their matrices, weights, bits a weight (scales included) and error, and all of them."""
    rows = [*found["types"].items(), ("all", {**found, "matrices": len(found["matrices"])})]
    lines = [f"{'type':12s} {'matrices':>8s} {'weights':>15s} {'bits':>6s} {'error':>8s}"]
    for name, row in rows:
        lines.append(f"{name:12s} {row['matrices']:8,d} {row['weights']:15,d} {row['bits_per_weight']:6.2f} "
                     f"{100 * row['relative_error']:6.2f} %")  # fmt: skip
    unseen = sum(row.get("unseen_experts", 0) for row in found["matrices"].values())
    if unseen:
        lines.append(f"{unseen:,d} matrices of experts were rounded to nearest: the calibration hardly reached them")
    return lines


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
        Option(["--filter", "filters"], multiple=True, metavar="PATTERN=TYPE",
               help="Another type (int4, int8, int8_channel, one of GGUF's such as q4_k, float for none) for weights "
               "whose names fit; may be given several times, the first that fits counts."),
        Option(["--force"], is_flag=True, help="Replace a folder that exists."),
        Option(["--quiet"], is_flag=True, help="Print nothing but the report, errors and warnings."),
        Option(["--method"], default="rtn", metavar="NAME", section=QUALITY,
               help="rtn: to nearest, scales searched for; imatrix: the same, columns weighted by their inputs; gptq: "
               "later columns make up for earlier ones; awq: columns with large inputs scaled up. [default: rtn]"),
        Option(["--calibration"], type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
               section=QUALITY, help="A text like those that the model will meet; all but rtn need one."),
        Option(["--tokens"], type=int, default=32768, metavar="N", section=QUALITY,
               help="Of it, spread evenly. [default: 32768]"),
        Option(["--act-order/--no-act-order"], default=True, section=QUALITY,
               help="gptq: columns with the largest inputs first. [default: yes]"),
        Option(["--text"], type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", section=CHECK,
               help="Compare the two models' predictions of this text."),
        Option(["--context"], type=int, metavar="N", section=CHECK,
               help="Tokens of the text at a time. [default: the model's context, 2048 at most]"),
        Option(["--json", "as_json"], is_flag=True, section=CHECK,
               help="One JSON line on stdout, each matrix in it; the table goes to stderr."),
    ],
    examples=EXAMPLES,
    help="Write a model with weights of 4 or 8 bits: smaller, and faster to write text with.\n\n"
    "MODEL is a model folder, a run folder (its newest checkpoint), ORG/NAME of the hub, a GGUF file or a .bin of "
    "llama2.c. The folder is of our own layout, for every verb that reads models.",
)  # fmt: skip

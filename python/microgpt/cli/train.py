"""`microgpt train`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..data.corpus import BUNDLED
from ..errors import ConfigError
from ..training.config import TrainConfig
from .common import Command, Folder, Option, say, stoppable, write

SAMPLES, TEMPERATURE = 5, 0.8


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(each) for each in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between them", param, ctx)


NUMBERS = Numbers()
BY_FILE = ("groups",)  # settings that have no option


class Setting(NamedTuple):
    """How a field of TrainConfig appears on the command line."""

    name: str
    type: Any
    metavar: str
    help: str


SECTIONS: dict[str, list[Setting]] = {
    "Data": [
        Setting("data", str, "PATH|names|stdlib|hf:ORG/NAME", "Text, .gz, JSON lines, CSV, Parquet, a folder of "
                "these, tokens of microgpt tokenize, or a data set of the hub; several times for a mixture."),
        Setting("weights", NUMBERS, "X,X", "Shares of several --data in a mixture, in their order."),
        Setting("documents", str, "KIND", "How to cut texts: line (each line is a document), file, or auto, which "
                "takes lines where they are short."),
        Setting("dedup", bool, "", "Leave out documents that stand there twice."),
        Setting("tokenizer", str, "KIND|FILE", "char, bpe, a tokenizer.json or a folder with one, or auto."),
        Setting("vocab_size", int, "N", "Vocabulary of a tokenizer that is trained."),
        Setting("packing", bool, "", "Fill batches with as many sequences as fit, not only --batch-size."),
        Setting("curriculum", str, "NAME", "Order of the windows: none shuffles, length begins with the short."),
        Setting("val_fraction", float, "PART", "Part of the documents set aside for validation; 0 for none."),
    ],
    "Model": [
        Setting("model", str, "NAME", "gpt (GPT-2's), micro (Karpathy's), llama, moe (experts), mamba, griffin, jamba, "
                "or any name of microgpt zoo."),
        Setting("size", str, "NAME|N", "A preset or a number of parameters, instead of layers, heads and width."),
        Setting("layers", int, "N", "Blocks."),
        Setting("heads", int, "N", "Attention heads of a block; a divisor of the width."),
        Setting("width", int, "N", "Numbers that represent a token."),
        Setting("block_size", int, "N", "Tokens of a training sequence, and the model's context."),
        Setting("dropout", float, "P", "Part of the activations dropped in training."),
        Setting("dtype", str, "TYPE", "f32, bf16, f64, or auto: bf16 where the processor multiplies it fast."),
    ],
    "Length": [
        Setting("steps", int, "N", "Steps to train; 1000 where neither this nor --epochs is given."),
        Setting("epochs", float, "X", "Passes over the training documents, instead of --steps."),
        Setting("batch_size", int, "N", "Sequences of a batch."),
        Setting("accumulate", int, "N", "Batches whose gradients make one step."),
    ],
    "Optimization": [
        Setting("optimizer", str, "NAME", "adamw or sgd."),
        Setting("lr", float, "X", "Peak learning rate."),
        Setting("min_lr", float, "PART", "Learning rate at the end, as a part of the peak."),
        Setting("schedule", str, "NAME", "constant, linear, cosine, or wsd (constant, then linear over the last "
                "fifth)."),
        Setting("warmup", int, "N", "Steps over which the learning rate rises; at most half of all."),
        Setting("weight_decay", float, "X", "Decay of matrices; biases and norms do not decay."),
        Setting("beta1", float, "X", "adamw: memory of the gradient's mean."),
        Setting("beta2", float, "X", "adamw: memory of the gradient's square."),
        Setting("eps", float, "X", "adamw: added to the denominator."),
        Setting("momentum", float, "X", "sgd: memory of the direction."),
        Setting("clip", float, "X", "Largest global gradient norm; 0 does not clip."),
        Setting("label_smoothing", float, "P", "Part of the target's probability spread over all tokens; in training "
                "only."),
        Setting("z_loss", float, "X", "Factor of the squared log of the softmax's denominator; in training only."),
        Setting("ema", float, "X", "Decay of an average of the weights, which is then validated and published; 0 for "
                "none."),
        Setting("seed", int, "N", "Fixes initial weights, data order, split and dropout."),
    ],
    "Run": [
        Setting("eval_every", int, "N", "Steps between validations; 0 for none but the last."),
        Setting("eval_batches", int, "N", "Batches of a validation; 0 for all."),
        Setting("patience", int, "N", "Validations without a better loss that end the run; 0 never."),
        Setting("sample_every", int, "N", "Steps between samples, printed and kept in samples.jsonl; 0 for none."),
        Setting("sample_prompt", str, "TEXT", "What these samples begin with."),
        Setting("log_every", int, "N", "Steps between records in metrics.jsonl."),
        Setting("save_every", int, "N", "Steps between checkpoints; 0 saves at the end and the best on the way."),
        Setting("keep", int, "N", "Checkpoints kept, besides the best one."),
        Setting("tensorboard", bool, "", "Write RUN/tensorboard as well (needs microgpt[track])."),
        Setting("plot", bool, "", "Draw RUN/loss.png at the end (needs microgpt[plot])."),
        Setting("checkpointing", bool, "", "Recompute activations in the backward pass: less memory, the same bits."),
    ],
}  # fmt: skip

EXAMPLES = """\
microgpt train --epochs 3
microgpt train --data novel.txt --layers 4 --width 128 --block-size 64 --batch-size 12
microgpt train --model micro --layers 1 --width 16 --batch-size 1 --steps 1000
microgpt train --data notes/ --out runs/notes --save-every 500
microgpt train --data novel.txt --data notes/ --weights 3,1 --sample-every 500 --patience 5
microgpt train --config runs/notes/config.toml --lr 1e-3 --dry-run
microgpt train --resume runs/notes --steps 5000"""


def _options() -> list[click.Parameter]:
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    made: list[click.Parameter] = []
    for section, settings in SECTIONS.items():
        for name, kind, metavar, text in settings:
            option = "--" + name.replace("_", "-")
            if defaults[name] not in (None, "") and kind is not bool:
                text = f"{text} [default: {defaults[name]}]"
            if name == "data":
                made.append(Option([option], type=str, multiple=True, metavar=metavar, help=text, section=section))
            elif kind is bool:
                text = f"{text} [default: yes]" if defaults[name] else text
                made.append(Option([f"{option}/--no-{option[2:]}"], default=None, help=text, section=section))
            else:
                made.append(Option([option], type=kind, metavar=metavar, help=text, section=section))
    run: list[click.Parameter] = [
        Option(["--out"], type=Folder(path_type=Path), metavar="FOLDER", section="Run",
               help="Run folder to create. [default: runs/NAME-N, the next free number]"),
        Option(["--resume"], type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="RUN",
               section="Run", help="Go on with a run folder; settings given here replace its own."),
        Option(["--config"], type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
               section="Run", help="TOML or YAML with these names; options given here go before it."),
        Option(["--dry-run"], is_flag=True, section="Run",
               help="Say what the run would take (parameters, FLOPs, memory, time) and do nothing."),
        Option(["--num-samples"], type=int, metavar="N", default=SAMPLES, section="Run",
               help=f"Samples to print after training, at temperature {TEMPERATURE}. [default: {SAMPLES}]"),
        Option(["--quiet"], is_flag=True, section="Run", help="Print nothing but errors and warnings."),
    ]  # fmt: skip
    return made + run


def _run(
    out: Path | None,
    resume: Path | None,
    config: Path | None,
    dry_run: bool,
    num_samples: int,
    quiet: bool,
    data: tuple[str, ...] = (),
    **given: Any,
) -> None:
    from .. import api
    from ..training.settings import check_shape, read_settings, with_file

    settings = {name: value for name, value in given.items() if value is not None}
    if data:
        settings["data"] = data[0] if len(data) == 1 else data
    if num_samples < 0:
        raise ConfigError(f"--num-samples: expected 0 or more, got {num_samples}")
    if resume is not None and out is not None:
        raise ConfigError("give --out or --resume, not both")
    if settings.get("steps") is not None and settings.get("epochs") is not None:
        raise ConfigError("give --steps or --epochs, not both")
    check_shape(settings)
    if config is not None:
        settings = with_file(read_settings(config), settings)
    if resume is None:
        chosen = TrainConfig(**settings)  # impossible settings are told before a folder is made
        if dry_run:
            _plan(chosen, quiet)
            return
        first = chosen.data if isinstance(chosen.data, str) else chosen.data[0]
        out = out or next_run(first)
    elif dry_run:
        raise ConfigError("give --dry-run or --resume, not both")
    place = resume or out
    assert place is not None
    fresh = not place.exists()
    try:
        run = api.train(out=out, resume=resume, show=not quiet, say=None if quiet else say, handle_signals=True,
                        **settings)  # fmt: skip
    except BaseException as error:
        if fresh:
            _remove_empty(place)
        if isinstance(error, KeyboardInterrupt):
            say(f"{error or 'SIGINT'}: stopped; {_kept(place)}")
            raise click.exceptions.Exit(128 + getattr(error, "number", signal.SIGINT)) from None
        raise
    if run.signal:
        say(f"{run.stopped}: stopped after step {run.steps}; {_kept(place)}; microgpt train --resume {place} goes on")
        raise click.exceptions.Exit(128 + run.signal)
    if quiet:
        return
    report(run, place)
    if num_samples and run.tokenizer.bos_id is None:
        say("no samples: this tokenizer has no token to begin with; microgpt generate --prompt TEXT writes some")
    elif num_samples:
        model = api.LanguageModel(run.model, run.tokenizer)
        for each in model.generate_many("", num_samples, temperature=TEMPERATURE, seed=run.config.seed):
            write(each.text, nl=True)


def _plan(config: TrainConfig, quiet: bool) -> None:
    from ..training.plan import plan

    with stoppable():
        for line in plan(config, None if quiet else say, not quiet):
            click.echo(line)


def report(run: Any, place: Path) -> None:
    """The last lines on stderr: what was reached, where it is, what to type next."""
    if not run.losses and not run.stopped:
        say(f"nothing left to do: this run has its {run.steps:,} steps; --steps or --epochs gives it more")
    else:
        loss = f", loss {run.loss:.4f}" if math.isfinite(run.loss) else ""
        validation = "" if run.val_loss is None else f", validation loss {run.val_loss:.4f}"
        say(f"{run.steps:,} steps in {run.seconds:.1f} s{loss}{validation}")
    if run.stopped:
        say(f"stopped: {run.stopped}")
    say(f"saved in {place}")
    say(f"next: microgpt generate --model {place} --num-samples 10")
    say(f"      microgpt train --resume {place} --steps {2 * run.steps}")


def next_run(data: str, root: Path = Path("runs")) -> Path:
    """runs/NAME-N with the number after the highest one there."""
    stem = data if data in BUNDLED else Path(data).resolve().stem
    name = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "text"
    taken = [0]
    if root.is_dir():
        for folder in root.iterdir():
            match = re.fullmatch(re.escape(name) + r"-(\d{1,9})", folder.name)
            taken += [int(match[1])] if match else []
    return root / f"{name}-{max(taken) + 1}"


def _remove_empty(place: Path) -> None:
    """A folder made for a run that never saved anything is not left lying about."""
    held = {".lock", "config.toml", "metrics.jsonl", "samples.jsonl"}
    with contextlib.suppress(OSError):
        if {each.name for each in place.iterdir()} <= held and not _size(place / "metrics.jsonl"):
            for name in held:
                (place / name).unlink(missing_ok=True)
            place.rmdir()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _kept(place: Path) -> str:
    from ..io.checkpoint import RunFolder

    found = RunFolder(place).checkpoints()
    return f"the newest checkpoint is {found[-1]}" if found else "no checkpoint was saved (see --save-every)"


command = Command(
    "train",
    callback=_run,
    params=_options(),
    examples=EXAMPLES,
    help="Train a model on a text file, a folder of texts, or the bundled names.\n\n"
    "The run folder holds checkpoints, each a complete model folder that transformers loads too, and metrics.jsonl. "
    "The defaults train a small GPT on names in seconds. The same settings and seed give the same weights, bit for "
    "bit, on any number of threads.",
)

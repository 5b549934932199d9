"""`microgpt bench`: the quick look; `model`, `kernels` and `train` beside other libraries."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError, nearest
from .common import Command, Group, Model, Option, kv_option, say, stoppable

EXAMPLES = """\
microgpt bench
microgpt bench --seconds 30
microgpt bench --json > figures.json
microgpt bench my-model
microgpt bench model --help
microgpt bench kernels --help
microgpt bench train --help"""

MODEL_EXAMPLES = """\
microgpt bench model my-model
microgpt bench model my-model --quantize int4 --kv-dtype int8 --prompts 128,2048
microgpt bench model model.gguf --quantize keep --compare llama.cpp --llama-bench ~/llama.cpp/build/bin
microgpt bench model my-model --compare --gguf my-model-q4_0.gguf --plot rates.png --json > rates.json"""

KERNEL_EXAMPLES = """\
microgpt bench kernels
microgpt bench kernels --only gemm --dtype bfloat16 --plot gemm.png
microgpt bench kernels --full --json > kernels.json
microgpt bench kernels --peers torch --peer-python ~/torch/bin/python"""

TRAIN_EXAMPLES = """\
microgpt bench train
microgpt bench train --configs c --dtype bfloat16 --per-op
microgpt bench train --configs a,b,c,d --peers torch --json > train.json"""


SHORT = {"f32": "float32", "bf16": "bfloat16"}


def _positive(option: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{option}: expected a positive number, got {value}")


def _whole(option: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ConfigError(f"{option}: expected 1 to {most}, got {value}")


def _overview(seconds: float, as_json: bool) -> None:
    if click.get_current_context().invoked_subcommand is not None:
        return
    _positive("--seconds", seconds)
    from ..bench import overview

    machine = overview.machine()
    line = f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads ({machine['threads_why']})"
    say(line) if as_json else click.echo(line)
    figures = {}
    for name, text, found in overview.measure(seconds):
        figures[name] = found
        shown = f"{name:<42}{text}"
        say(shown) if as_json else click.echo(shown)
    if as_json:
        click.echo(json.dumps({"machine": machine, "figures": figures}))


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _common(options: dict[str, Any], dtypes: Sequence[str], peers: dict[str, str]) -> dict[str, Any]:
    """Check the options that both comparisons have; the settings they make."""
    from .. import _kernels as k
    from ..bench import plot
    from ..bench.rivals import chosen, find_peers

    _whole("--rounds", options["rounds"], 1000)
    for name in ("seconds", "timeout"):
        _positive(f"--{name}", options[name])
    if options["threads"] is not None:
        _whole("--threads", options["threads"], 1024)
    if options["plot"] is not None:
        plot.check(options["plot"])
    given = options["dtype"]
    if given is not None:
        given = ",".join(SHORT.get(name.strip(), name) for name in given.split(","))
    return {
        "dtypes": chosen("--dtype", given, dtypes, dtypes),
        "threads": options["threads"] or k.num_threads(),
        "peers": find_peers(options["peers"], peers, options["peer_python"], options["timeout"]),
        "python": options["peer_python"] or sys.executable,
        "rounds": options["rounds"],
        "seconds": options["seconds"],
        "timeout": options["timeout"],
    }


def _tell(measure: Callable[..., dict[str, Any]], settings: Any, options: dict[str, Any]) -> None:
    """Measure, with lines and a progress bar as they fit the streams; the JSON line and the picture."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ..bench import plot

    as_json = options["as_json"]

    def line(text: str) -> None:
        tqdm.write(text, file=sys.stderr if as_json else sys.stdout)

    def progress(todo: Sequence[Any]) -> Any:
        return tqdm(todo, unit="case", leave=False, disable=None)

    with stoppable():
        found = measure(settings, line, progress)
    click.echo(json.dumps(_finite(found)))
    if options["plot"] is not None:
        plot.draw(found, options["plot"])
        say(f"drawn in {options['plot']}")


def _kernels(only: str | None, full: bool, **options: Any) -> None:
    from ..bench import kernels
    from ..bench.cases import GROUPS
    from ..bench.rivals import chosen

    options["rounds"] = (7 if full else 5) if options["rounds"] is None else options["rounds"]
    options["seconds"] = (0.05 if full else 0.02) if options["seconds"] is None else options["seconds"]
    budget = options.pop("budget")
    _positive("--budget", budget)
    groups = chosen("--only", only, GROUPS, GROUPS)
    common = _common(options, kernels.DTYPES, kernels.PEERS)
    settings = kernels.Settings(groups=groups, quick=not full, budget=budget, **common)
    _tell(kernels.measure, settings, options)


def _train(configs: str, per_op: bool, **options: Any) -> None:
    from ..bench import train
    from ..bench.peers.configs import CONFIGS
    from ..bench.rivals import chosen

    names = chosen("--configs", configs, list(CONFIGS), ())
    settings = train.Settings(configs=names, per_op=per_op, **_common(options, train.DTYPES, train.PEERS))
    _tell(train.measure, settings, options)


def _model(path: Path, compare: str | None, prompts: str, tokens: int, batches: str, past: int, **options: Any) -> None:
    from ..bench import llama, model
    from ..bench.rivals import chosen, installed
    from ..models.quantized import KEPT, Scheme
    from ..state.spec import kv_type

    if options["quantize"] not in (None, KEPT):
        Scheme.named(options["quantize"])
    if not 0 <= tokens <= model.MOST:
        raise ConfigError(f"--tokens: expected 0 to {model.MOST:,}, got {tokens}")
    _whole("--past", past, model.MOST)
    names: tuple[str, ...] = ()
    if compare is not None:
        names = tuple(model.PEERS) if compare == "all" else chosen("--compare", compare, list(model.PEERS), ())
    folder = options["hf"] or (path if path.is_dir() else None)
    gguf = options["gguf"] or (path if path.suffix == ".gguf" else None)
    program = llama.find(options["llama_bench"]) if llama.NAME in names else None
    python = options["peer_python"] or sys.executable
    peers: dict[str, str] = {}
    if "transformers" in names:
        found = installed(python, ["transformers", "torch"], options["timeout"])
        if len(found) == 2 and folder is not None:
            peers["transformers"] = found["transformers"]
        elif compare != "all":
            why = f"not installed in {python}; --peer-python PATH names one" if len(found) < 2 else "needs --hf FOLDER"
            raise ConfigError(f"peer transformers: {why}")
    if llama.NAME in names:
        if program is not None and gguf is not None:
            peers[llama.NAME] = f"({gguf.name})"
        elif compare != "all":
            why = "llama-bench is not on PATH; --llama-bench names it" if program is None else "needs --gguf FILE"
            raise ConfigError(f"peer {llama.NAME}: {why}")
    options["dtype"], options["peers"] = None, "none"
    common = _common(options, ("float32",), {}) | {"peers": peers, "python": python}
    settings = model.Settings(
        path=path, quantize=options["quantize"], kv_dtype=kv_type(options["kv_dtype"]),
        prompts=model.numbers("--prompts", prompts, model.MOST), tokens=tokens,
        batches=model.numbers("--batches", batches, 1024), past=past, llama_bench=program, gguf=gguf, folder=folder,
        **common,
    )  # fmt: skip
    _tell(model.measure, settings, options)


def _options(rounds: int | None, seconds: float | None, shown: tuple[str, str], peers: str) -> list[click.Parameter]:
    """What both comparisons take."""
    return [
        Option(["--dtype"], metavar="NAMES", help="float32, bfloat16 or both. [default: float32,bfloat16]"),
        Option(["--threads"], type=int, metavar="N", help="Threads for each library. [default: as microgpt chooses]"),
        Option(["--rounds"], type=int, default=rounds, metavar="N", section="Accuracy",
               help=f"Turns of each library. [default: {shown[0]}]"),
        Option(["--seconds"], type=float, default=seconds, metavar="X", section="Accuracy",
               help=f"Time of a turn, at least one call. [default: {shown[1]}]"),
        Option(["--peers"], metavar="NAMES", section="Peers",
               help=f"{peers}, or none. [default: those that are installed]"),
        Option(["--peer-python"], metavar="PATH", section="Peers",
               help="A Python that has the peers. [default: the running one]"),
        Option(["--timeout"], type=float, default=300.0, metavar="X", section="Peers",
               help="Seconds after which a silent process has failed. [default: 300]"),
        Option(["--json", "as_json"], is_flag=True, section="Output",
               help="Only the JSON line on stdout; the table goes to stderr."),
        Option(["--plot"], type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png", section="Output",
               help="Draw each library's share of the roofline (extra `plot`)."),
    ]  # fmt: skip


kernels_command = Command(
    "kernels",
    callback=_kernels,
    params=[
        Option(["--only"], metavar="GROUPS", help="gemm, attention, elementwise. [default: all]"),
        Option(["--full/--quick"], default=False,
               help="All shapes (some ten minutes), or a choice of them (about a minute). [default: quick]"),
        Option(["--budget"], type=float, default=2.0, metavar="X", section="Accuracy",
               help="Seconds of a case after which no further round begins; three there are always. [default: 2]"),
        *_options(None, None, ("5, 7 with --full", "0.02, 0.05 with --full"), "numpy, torch"),
    ],
    examples=KERNEL_EXAMPLES,
    help="Kernels beside NumPy, PyTorch and what this machine can do at most.\n\n"
    "Each library runs in a process of its own, in turns. The roofline is measured in the same run: float32 fma, the "
    "fastest bfloat16 product, reading, copying and updating memory. A ratio above 1 means that microgpt is faster. "
    "The last line is JSON.",
)  # fmt: skip

train_command = Command(
    "train",
    callback=_train,
    params=[
        Option(["--configs"], default="a,b", metavar="NAMES",
               help="a: Karpathy's, 1 layer, 16 wide. b: 4 layers, 128 wide. c: 6 layers, 384 wide. d: GPT-2 124M. "
               "[default: a,b]"),
        Option(["--per-op"], is_flag=True, help="The share of each kernel in our step."),
        *_options(7, 0.5, ("7", "0.5"), "torch, torch-compile"),
    ],
    examples=TRAIN_EXAMPLES,
    help="Whole training steps beside PyTorch: forward, loss, backward, AdamW.\n\n"
    "Same weights, same batches; the losses of the first 20 steps are compared. PyTorch runs eagerly and compiled, "
    "with fused AdamW and scaled_dot_product_attention; its bfloat16 is autocast over float32 weights. The last line "
    "is JSON.",
)  # fmt: skip

model_command = Command(
    "model",
    callback=_model,
    params=[
        click.Argument(["path"], metavar="MODEL", type=Model(exists=True, path_type=Path)),
        Option(["--quantize"], metavar="TYPE",
               help="int4, int8 or int8_channel while loading; keep: as a GGUF file has it."),
        kv_option(),
        Option(["--threads"], type=int, metavar="N", help="Threads for each. [default: as microgpt chooses]"),
        Option(["--prompts"], default="128,512", metavar="NUMBERS", section="Cases",
               help="Tokens of prompts, or none. [default: 128,512]"),
        Option(["--tokens"], type=int, default=128, metavar="N", section="Cases",
               help="Tokens that one stream generates; 0: none, nor several streams. [default: 128]"),
        Option(["--batches"], default="8", metavar="NUMBERS", section="Cases",
               help="Sequences that go on together, a quarter of the tokens each; or none. [default: 8]"),
        Option(["--past"], type=int, default=16, metavar="N", section="Cases",
               help="Tokens that these have before. [default: 16]"),
        Option(["--rounds"], type=int, default=3, metavar="N", section="Accuracy",
               help="Turns of each. [default: 3]"),
        Option(["--seconds"], type=float, default=0.2, metavar="X", section="Accuracy",
               help="Time of a turn, at least one case. [default: 0.2]"),
        Option(["--compare"], is_flag=False, flag_value="all", metavar="[NAMES]", section="Peers",
               help="llama.cpp, transformers; without names those that are there and can read the model."),
        Option(["--llama-bench"], metavar="PATH", section="Peers",
               help="The program, or its folder. [default: on PATH]"),
        Option(["--gguf"], type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
               section="Peers", help="The model for llama.cpp. [default: MODEL where that is one]"),
        Option(["--hf"], type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
               section="Peers", help="The model for transformers, in bfloat16. [default: MODEL if it is a folder]"),
        Option(["--peer-python"], metavar="PATH", section="Peers",
               help="A Python that has transformers. [default: the running one]"),
        Option(["--timeout"], type=float, default=300.0, metavar="X", section="Peers",
               help="Seconds after which a silent process has failed. [default: 300]"),
        Option(["--json", "as_json"], is_flag=True, section="Output",
               help="Only the JSON line on stdout; the table goes to stderr."),
        Option(["--plot"], type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png", section="Output",
               help="Draw the rates (extra `plot`)."),
    ],
    examples=MODEL_EXAMPLES,
    help="A model's prompts and tokens, one stream and several, beside llama.cpp and transformers.\n\n"
    "`microgpt bench MODEL` is the same. Each takes its turn in a process of its own. For tokens, the bytes that each "
    "reads are held against the read bandwidth measured beside them. A ratio above 1 means that microgpt is faster. "
    "The last line is JSON.",
)  # fmt: skip


class Bench(Group):
    """What is no verb and looks like a model is one: bench MODEL is bench model MODEL."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and (Path(args[0]).exists() or args[0].endswith(".gguf")):
            args = ["model", *args]
        elif (
            args
            and not args[0].startswith("-")
            and args[0] not in self.commands
            and not nearest(args[0], self.commands)
        ):
            raise click.UsageError(f"bench: {args[0]!r} is no verb ({', '.join(self.commands)}) and no such model "
                                   "folder or file is here")  # fmt: skip
        return super().resolve_command(ctx, args)


command = Bench(
    "bench",
    callback=_overview,
    params=[
        Option(["--seconds"], type=float, default=8.0, metavar="X",
               help="Time to spend, roughly; longer is steadier. [default: 8]"),
        Option(["--json", "as_json"], is_flag=True, help="One JSON line on stdout; the table goes to stderr."),
    ],
    examples=EXAMPLES,
    help="Measure this machine: matrix products, attention, memory, training steps, generation.\n\n"
    "Figures are medians. Leave the machine alone while it runs.",
    commands={"model": model_command, "kernels": kernels_command, "train": train_command},
    invoke_without_command=True,
)  # fmt: skip

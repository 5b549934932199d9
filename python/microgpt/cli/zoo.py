"""`microgpt zoo`."""

from __future__ import annotations

import math

import click

from .common import Command, Option, kv_option

EXAMPLES = """\
microgpt zoo --list
microgpt zoo qwen3 --size 10m
microgpt zoo gemma3_text --size 30m --vocab-size 4096 --block-size 512"""


def short(number: float) -> str:
    """1234567 -> 1.23M."""
    units = ("", "K", "M", "G", "T", "P", "E", "Z")
    power = min(len(units) - 1, max(0, math.floor(math.log10(max(number, 1)) / 3)))
    return f"{number / 1000**power:.3g}{units[power]}"


def _list(kv_dtype: str) -> list[str]:
    from ..models.presets import MODELS
    from ..models.zoo import entries
    from ..state.spec import KV_TYPES

    lines = [f"{'model':18}{'architecture':28}{'parameters':>11}{'FLOPs/token':>13}{'cache/token':>13}{'state':>9}"]
    for each in entries(KV_TYPES[kv_dtype]):
        state, fixed = (short(number) + "B" if number else "-" for number in (each.state, each.fixed))
        lines.append(f"{each.name:18}{each.architecture:28}{short(each.parameters):>11}{short(each.flops):>13}"
                     f"{state:>13}{fixed:>9}")  # fmt: skip
    lines.append(
        f"Sizes are those of each family's default configuration; the cache holds {kv_dtype}, the state of a sequence,"
    )
    lines.append("which is the same at any length, 32-bit numbers.")
    own = sorted({*MODELS} - {each.name for each in entries()})
    lines.append(f"And of our own, in any size only: {', '.join(own)}.")
    return lines


def _run(name: str | None, listing: bool, size: str, vocab_size: int, block_size: int, kv_dtype: str | None) -> None:
    from ..models.sizes import dimensions
    from ..models.zoo import maker, plan
    from ..state.spec import KV_TYPES

    if listing or name is None:
        for line in _list(kv_dtype or "bf16"):
            click.echo(line)
        return
    shape = dimensions(name, size, vocab_size, block_size)
    config = maker(name)(vocab_size, shape.width, shape.layers, shape.heads, block_size, 0.0)
    count = config.num_parameters()
    advice = plan(count, block_size)
    click.echo(f"{name}: {shape.layers} layers, {shape.width} wide, {shape.heads} heads, context {block_size}, "
               f"vocabulary {vocab_size:,}")  # fmt: skip
    fixed = f", {short(4 * config.fixed_state_numbers())}B of state a sequence" if config.fixed_state_numbers() else ""
    kept = kv_dtype or "f32"
    click.echo(f"{count:,} parameters, {short(config.flops_per_token(block_size))} FLOPs and "
               f"{short(config.cache_bytes(KV_TYPES[kept]))}B of {kept} cache a token{fixed}")  # fmt: skip
    click.echo(f"Chinchilla's 20 tokens a parameter: {short(advice.tokens)} tokens, "
               f"{short(3.0 * config.flops_per_token(block_size // 2) * advice.tokens)} FLOPs to train")  # fmt: skip
    rows = max(1, advice.batch_tokens // block_size)
    click.echo(f"microgpt train --model {name} --layers {shape.layers} --heads {shape.heads} --width {shape.width} "
               f"--block-size {block_size} --batch-size {rows} --steps {advice.steps} --data FILE")  # fmt: skip


command = Command(
    "zoo",
    callback=_run,
    params=[
        click.Argument(["name"], required=False, metavar="[NAME]"),
        Option(["--list", "listing"], is_flag=True, help="Show every architecture with its size and costs."),
        Option(["--size"], default="10m", metavar="SIZE", help="Parameters of the model: 10m, 250k. [default: 10m]"),
        Option(["--vocab-size"], default=4096, type=click.IntRange(1, 2**24), metavar="N",
               help="Its vocabulary. [default: 4096]"),
        Option(["--block-size"], default=256, type=click.IntRange(1, 2**24), metavar="N",
               help="Its context. [default: 256]"),
        kv_option("What caches of keys and values hold. [default: bf16 in the list, else f32]"),
    ],
    examples=EXAMPLES,
    help="Show the architectures there are, and what a model of one needs: its shape, data and steps.",
)  # fmt: skip

"""Quick figures of this machine alone: what `microgpt bench` shows without a verb of its own."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import _kernels as k
from ..api import info
from ..data.batches import Batches
from ..data.corpus import read_documents
from ..engine.generate import generate_ids
from ..engine.sampler import Sampling
from ..optim import Schedule
from ..tokenizers.char import CharTokenizer
from ..training.build import make_model, make_optimizer
from ..training.config import TrainConfig
from ..training.objective import LanguageModeling
from ..training.trainer import Limits, Trainer

# (rows, columns, inner): square, and the products of a small and a GPT-2 layer on 1,024 tokens, and of one token
MATMULS = ((512, 512, 512), (1024, 1024, 1024), (1024, 512, 128), (1024, 3072, 768), (1, 3072, 768))
ATTENTIONS = ((4, 256, 4, 32), (1, 1024, 12, 64))  # sequences, tokens of each, heads, head width
BANDWIDTH_BYTES = 64 << 20  # an array; two of them are beyond the caches of one socket's share

KARPATHY = TrainConfig(model="micro", layers=1, heads=4, width=16, block_size=16, batch_size=1, lr=0.01)
CHARS = TrainConfig(model="gpt", layers=4, heads=4, width=128, block_size=64, batch_size=12, lr=1e-3)


def seconds_per_call(run: Callable[[], object], budget: float) -> float:
    """Median time of a call, after a warm-up, from up to `budget` seconds of calls."""
    run()
    times: list[float] = []
    end = time.perf_counter() + budget
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _random(*shape: int) -> k.Array:
    return k.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def matmul(rows: int, columns: int, inner: int, budget: float) -> dict[str, Any]:
    """x (rows, inner) times weight (columns, inner) transposed."""
    x, weight, y = _random(rows, inner), _random(columns, inner), k.empty((rows, columns))
    t = seconds_per_call(lambda: k.gemm(x, weight, y, rows, columns, inner, trans_b=True), budget)
    return {"shape": [rows, columns, inner], "gflops": round(2e-9 * rows * columns * inner / t, 1), "seconds": t}


def attention(sequences: int, tokens: int, heads: int, width: int, budget: float) -> dict[str, Any]:
    """Causal self-attention, forward; its FLOPs count the pairs that are seen."""
    total = sequences * tokens
    q, key, value, y = (_random(total, heads, width) for _ in range(4))
    starts = np.arange(sequences + 1, dtype=np.int32) * tokens
    q_start, k_start = k.from_numpy(starts), k.from_numpy(starts[:-1])
    k_len = k.from_numpy(np.full(sequences, tokens, np.int32))

    def run() -> None:
        k.attention(q, key, value, y, q_start, k_start, k_len, heads, heads, width, width, width**-0.5)

    t = seconds_per_call(run, budget)
    pairs = sequences * tokens * (tokens + 1) // 2
    flops = 4e-9 * heads * width * pairs
    return {"shape": [sequences, tokens, heads, width], "gflops": round(flops / t, 1), "seconds": t}


def bandwidth(budget: float) -> dict[str, Any]:
    """y = a x + b y over arrays that no cache holds: two reads and one write of each number."""
    x, y = _random(BANDWIDTH_BYTES // 4), k.empty((BANDWIDTH_BYTES // 4,))
    k.fill(y, 0.0)
    t = seconds_per_call(lambda: k.axpy(x, y, 0.5, 0.5), budget)
    return {"bytes": 3 * BANDWIDTH_BYTES, "gigabytes_per_second": round(3e-9 * BANDWIDTH_BYTES / t, 1), "seconds": t}


def _data(config: TrainConfig) -> tuple[CharTokenizer, Batches]:
    """The bundled names; joined to one text where sequences are longer than a name."""
    documents = read_documents("names").documents
    if config.block_size > 16:
        documents = ["\n".join(documents)]
    tokenizer = CharTokenizer.train(documents)
    ids = tokenizer.encode_many(documents, add_bos=True, add_eos=True)
    return tokenizer, Batches(ids, config.block_size, config.batch_size, config.seed, packing=False)


def training(config: TrainConfig, budget: float) -> dict[str, Any]:
    """Whole training steps: data, forward, backward, clipping, update."""
    tokenizer, batches = _data(config)
    model = make_model(config, tokenizer.vocab_size)
    optimizer = make_optimizer(config, model)
    tokens = config.batch_size * config.block_size
    objective = LanguageModeling(model, tokens, config.batch_size + 1, config.seed)
    schedule = Schedule("constant", 1)
    trainer = Trainer(objective, batches, optimizer, schedule, Limits(steps=2, log_every=10**9), config.lr)
    trainer.run()  # records the step

    def run(steps: int) -> float:
        trainer.limits = dataclasses.replace(trainer.limits, steps=trainer.step + steps)
        started = time.perf_counter()
        trainer.run()
        return (time.perf_counter() - started) / steps

    chunk = max(1, int(budget / 5 / max(run(2), 1e-6)))
    before = trainer.tokens
    times = [run(chunk) for _ in range(5)]
    t = statistics.median(times)
    targets = (trainer.tokens - before) / (5 * chunk)
    return {
        "layers": config.layers, "width": config.width, "block_size": config.block_size,
        "batch_size": config.batch_size, "parameters": model.num_parameters(),
        "steps_per_second": round(1 / t, 1), "tokens_per_second": round(targets / t), "seconds": t,
    }  # fmt: skip


def generation(config: TrainConfig, sequences: int, budget: float) -> dict[str, Any]:
    """Tokens after a prompt of one token, to the end of the context."""
    model = make_model(config, 64)
    count = config.block_size - 1

    def run() -> None:
        prompts = [[1]] * sequences
        for _ in generate_ids(model, prompts, Sampling(), count):
            pass

    t = seconds_per_call(run, budget)
    return {"sequences": sequences, "tokens": count, "tokens_per_second": round(sequences * count / t), "seconds": t}


def measure(seconds: float) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, line for people, figures) of each measurement; about `seconds` in all."""
    share = seconds / (len(MATMULS) + len(ATTENTIONS) + 5)
    for sizes in MATMULS:
        found = matmul(*sizes, share)
        label = "matmul {}x{}x{}".format(*sizes)
        yield label, f"{found['gflops']:,.1f} GFLOP/s", found
    for shape in ATTENTIONS:
        found = attention(*shape, share)
        label = "attention {}x{} tokens, {} heads of {}".format(*shape)
        yield label, f"{found['gflops']:,.1f} GFLOP/s", found
    found = bandwidth(share)
    yield "memory", f"{found['gigabytes_per_second']:,.1f} GB/s", found
    for label, config in (
        ("train 1 layer, 16 wide, batch 1 x 16", KARPATHY),
        ("train 4 layers, 128 wide, batch 12 x 64", CHARS),
    ):
        found = training(config, share)
        yield label, f"{found['steps_per_second']:,.1f} steps/s, {found['tokens_per_second']:,} tokens/s", found
    for sequences in (1, 16):
        found = generation(CHARS, sequences, share)
        label = f"generate 4 layers, 128 wide, {sequences} at a time"
        yield label, f"{found['tokens_per_second']:,} tokens/s", found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found = info()
    return {key: found[key] for key in ("microgpt", "cpu", "isa", "threads", "threads_why", "openmp", "platform")}

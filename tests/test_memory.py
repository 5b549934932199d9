"""Memory: GPT-2 124M trained in at most 2.6 GB (float32, 4 x 64 tokens), what the dry run says of it, the plans of
recorded steps, and quantized models that stand there once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt import _kernels as k
from microgpt.api import LanguageModel
from microgpt.bench.ours_train import Trained
from microgpt.bench.peers.configs import CONFIGS
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.nn.ffn.mlp import GluSpec
from microgpt.nn.ffn.moe import MoeSpec
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.nn.rope import RopeSpec
from microgpt.nn.spec import BlockSpec, NormSpec
from microgpt.tokenizers.ids import IdsTokenizer
from microgpt.training.build import model_config
from microgpt.training.config import TrainConfig
from microgpt.training.plan import training_memory
from tests.cli_tools import environment

CHILD = """
import resource
import numpy as np
from microgpt import _kernels as k
from microgpt.models.decoder import Decoder
from microgpt.models.presets import MODELS
from microgpt.nn import Ctx, Layout
from microgpt.optim import AdamW, Optimizer, decay_groups
from microgpt.program import Program

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
model = Decoder(MODELS.get("gpt")(50257, 768, 12, 12, 1024, 0.0))
assert model.num_parameters() == 124_439_808
made = peak()
optimizer = Optimizer(model, AdamW(), decay_groups(0.1), 1.0)
ids = np.random.default_rng(0).integers(0, 50257, 257).astype(np.int32)
tokens, targets = k.from_numpy(ids[:-1]), k.from_numpy(ids[1:])
layout = Layout.packed([64] * 4)

def step():
    loss = model.loss(tokens, targets, Ctx(layout))
    loss.backward()
    optimizer.launch(loss)
    return loss

program = Program(step)
losses = []
for number in range(3):
    optimizer.feed(number + 1, 1e-4)
    losses.append(program().item())
assert losses[2] < losses[0] < 11.5, losses
print(before, made, peak())
"""


@pytest.mark.soak
def test_gpt2_124m_trains_in_2600_megabytes():
    out = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stderr
    before, made, peak = map(int, out.stdout.split())
    print(f"peak RSS {peak / 1e6:,.0f} MB, {made / 1e6:,.0f} MB after the model was made, {before / 1e6:,.0f} before")
    assert peak <= 2.6e9


@pytest.mark.soak
@pytest.mark.parametrize(
    "settings",
    [
        {"model": "gpt", "size": "20m", "block_size": 64, "batch_size": 8},
        {"model": "llama", "size": "5m", "block_size": 256, "batch_size": 16, "dtype": "bf16"},
        {"model": "llama", "size": "5m", "block_size": 256, "batch_size": 16, "checkpointing": True},
    ],
    ids=["gpt", "llama_bf16", "llama_checkpointing"],
)
def test_the_dry_run_knows_the_memory(tmp_path: Path, settings: dict[str, Any]):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not True]
    options += ["--checkpointing"] * ("checkpointing" in settings)
    command = [sys.executable, "-m", "microgpt", "train", *options, "--steps=4", "--log-every=1", "--eval-every=0"]
    subprocess.run([*command, "--quiet", f"--out={tmp_path / 'run'}"], check=True, timeout=600)
    measured = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["memory"]
    config = TrainConfig(**settings)
    stated = training_memory(config, model_config(config, 27))[2]
    print(f"stated {stated / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert abs(stated / measured - 1) <= 0.2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_of_a_recorded_step_is_within_a_twentieth_of_its_bound(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """Arrays that live at once need their own bytes each: a plan of less than `live_bytes` lets them overlap."""
    trained = Trained(CONFIGS["b"], dtype)
    losses = [trained.step() for _ in range(4)]
    program = trained.program
    print(f"plan {program.bytes:,} bytes, lower bound {program.live_bytes:,}, {len(program)} nodes")
    assert len(program) > 50 and program.live_bytes > 4 * 12 * 64 * 128  # more than one activation
    assert program.live_bytes <= program.bytes <= 1.05 * program.live_bytes
    monkeypatch.setenv("MICROGPT_REPLAY", "0")
    trained = Trained(CONFIGS["b"], dtype)
    assert losses == [trained.step() for _ in range(4)]


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_a_quantized_model_stands_in_memory_once(tmp_path: Path, kind: str):
    """1.10 x weights + keys and values + 60 MB for all of a process that loads it and writes 64 tokens."""
    rms = NormSpec("rms", bias=False)
    ffn = MoeSpec(8, 512, 2) if kind == "experts" else GluSpec(4096)
    block = BlockSpec(AttentionSpec(8, 64, 4, rope=RopeSpec()), ffn, rms)
    config = ModelConfig(8192, 512, 256, (block,) * 12, learned_positions=False, final_norm=rms, tie_embeddings=True)
    decoder = Decoder(config, "bfloat16", seed=None)
    for parameter in decoder.parameters():
        k.fill(parameter.data, 0.01)
    model = LanguageModel(decoder, IdsTokenizer(8192))
    microgpt.quantize(model, 4)
    model.save(tmp_path / "m")
    script = Path(__file__).parents[1] / "bench" / "start.py"
    command = [sys.executable, str(script), str(tmp_path / "m"), "--rounds", "1", "--json"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment())
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["weights"] > 45e6
    assert found["bound"] == pytest.approx(1.1 * found["weights"] + found["kv"] + 60e6)
    print(f"peak {found['peak'] / 1e6:.1f} MB, bound {found['bound'] / 1e6:.1f} MB")
    assert found["peak"] <= found["bound"]

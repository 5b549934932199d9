"""Every family beside transformers, live: `make parity`. Needs torch and transformers (extra `parity`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import microgpt
from microgpt import _kernels as k
from microgpt.io.names import from_file
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.families.common import Reader, read_rope
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.nn import Ctx, Layout
from microgpt.nn.positions import rope_frequencies
from tests.parity import reference
from tests.parity.compare import distance

CASES = [(kind, settings, 24, 3) for kind, settings in reference.TINY.values()]
CASES += [(kind, settings, 64, 4) for kind, settings in reference.TEN_MILLION.items()]


def weights_of(model):
    return {name: p.detach().float().numpy().copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "settings", "length", "batch"), CASES, ids=[*reference.TINY, *(f"{n}_10m" for n in reference.TEN_MILLION)]
)
def test_forward_gradients_and_ten_adamw_steps(kind, settings, length, batch):
    model = reference.make(kind, settings, seed=3)
    ids = reference.tokens(settings["vocab_size"], length, 10, batch, seed=4)
    weights = weights_of(model)
    want = reference.run(model, ids)
    config = FAMILIES.get(kind).read(model.config.to_dict())
    if length == 64:
        assert sum(w.size for w in weights.values()) > 9.9e6
    far = distance(config, weights, ids, want, reference.ADAMW, clip=1.0)
    print(f"logits {far.logits:.2e}  gradients {max(far.gradients.values()):.2e}  losses {far.losses.max():.2e}")
    assert far.logits <= 1e-4
    assert {name: d for name, d in far.gradients.items() if d > 1e-4} == {}
    assert far.losses.max() <= 1e-5


@pytest.mark.parametrize("name", reference.TINY)
def test_packed_unequal_sequences(name):
    kind, settings = reference.TINY[name]
    model = reference.make(kind, settings, seed=6).eval()
    rng = np.random.default_rng(7)
    # Longer than every original context above: transformers then takes longrope's long factors, as we do.
    rows = [rng.integers(0, 61, n).astype(np.int32) for n in (24, 11, 9, 20)]
    config = FAMILIES.get(kind).read(model.config.to_dict())
    ours = Decoder(config)
    ours.load_arrays(from_file(FAMILIES.get(kind).rules(config), weights_of(model), "reference"))
    layout = Layout.packed([len(row) for row in rows])
    got = ours.logits(ours.hidden(k.from_numpy(np.concatenate(rows)), Ctx(layout))).numpy()
    with torch.no_grad():
        want = [model(torch.from_numpy(row.astype(np.int64))[None]).logits[0].numpy() for row in rows]
    assert np.abs(got - np.concatenate(want)).max() <= 1e-4


def test_rope_frequencies_are_those_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rng = np.random.default_rng(0)
    for trial in range(200):
        half = int(rng.integers(1, 9)) * 4
        original, factor = int(rng.integers(16, 4096)), float(rng.integers(2, 40))
        kind = ["linear", "dynamic", "yarn", "longrope", "llama3"][trial % 5]
        scaling = {
            "rope_type": kind, "rope_theta": float(rng.uniform(50.0, 1e6)), "factor": factor,
            "original_max_position_embeddings": original,
            "low_freq_factor": 1.0, "high_freq_factor": float(rng.uniform(1.5, 8.0)),
            "short_factor": rng.uniform(1.0, 2.0, half).tolist(), "long_factor": rng.uniform(1.0, 60.0, half).tolist(),
        }  # fmt: skip
        if kind == "yarn" and trial % 2:
            scaling |= {"mscale": 0.7, "mscale_all_dim": 1.1, "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False}
        wanted = {"linear": ("factor",), "dynamic": ("factor",), "longrope": ("short_factor", "long_factor", "factor"),
                  "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ("factor",))  # fmt: skip
        extra = ("mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate")
        scaling = {key: value for key, value in scaling.items() if key.startswith(("rope", "original")) or key in wanted
                   or key in extra}  # fmt: skip
        if kind in ("linear", "dynamic"):
            del scaling["original_max_position_embeddings"]
        positions = round(original * factor)
        theirs = LlamaConfig(
            hidden_size=2 * half, num_attention_heads=1, head_dim=2 * half, max_position_embeddings=positions,
            rope_parameters=scaling,
        )  # fmt: skip
        frequency, attention = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=positions)
        rope = read_rope(Reader(theirs.to_dict()), 2 * half, positions)
        ours, factor_on_scores = rope_frequencies(rope, 2 * half, positions)
        # The reference works in float32: its exponent's rounding grows by ln(theta), and eight roundings follow.
        rtol = (np.log(rope.theta) + 8.0) * 2.0**-23
        # yarn and llama3 mix by a weight w near 1: roundings of 1 - w (of w's four operations, half an eps each) are
        # relative to the unscaled frequency, which may be `factor` times the result.
        plain = rope.theta ** -(np.arange(half) / half)
        atol = 2.0 * 2.0**-23 * plain * (kind in ("yarn", "llama3"))
        assert (np.abs(ours - frequency.numpy()) <= rtol * ours + atol).all(), scaling
        assert factor_on_scores == pytest.approx(attention, rel=1e-6), scaling


@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_transformers_loads_what_we_save(tmp_path: Path, model: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = microgpt.train(data="names", steps=20, out=tmp_path / "run", layers=1, model=model)
    folder = tmp_path / "run" / "step-20"
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ours = microgpt.load(folder)
    ids = ours.tokenizer.encode("anna", add_bos=True)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].float().numpy()
    assert np.abs(ours.logits(ids) - logits).max() <= 1e-4
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("anna", add_special_tokens=False) == ids[1:]
    assert tokenizer.decode(ids[1:]) == "anna"
    assert run.steps == 20


@pytest.mark.parametrize("name", reference.TINY)
def test_folders_go_both_ways(tmp_path: Path, name: str):
    from transformers import AutoModelForCausalLM

    kind, settings = reference.TINY[name]
    model = reference.make(kind, settings, seed=5).eval()
    model.save_pretrained(tmp_path / "theirs")
    ids = np.arange(20, dtype=np.int32)
    with torch.no_grad():
        want = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    ours = load_decoder(tmp_path / "theirs")
    got = ours.logits(ours.hidden(k.from_numpy(ids), Ctx(Layout.packed([20])))).numpy()
    assert np.abs(got - want).max() <= 1e-4
    (tmp_path / "ours").mkdir()
    save_decoder(ours, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        assert np.array_equal(again(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy(), want)


@pytest.mark.parametrize("kind", reference.TEN_MILLION)
def test_bfloat16_is_as_near_to_the_truth_as_transformers(kind):
    """Both compute the same bfloat16 weights in bfloat16; the truth is float32 on these weights.

    Every stored activation is rounded by at most u = 2^-9 of itself. A chain of n such roundings of independent sign
    moves the logits by about sqrt(n) u of their size; 12 roundings a block, 7 blocks: sqrt(84) 2^-9 = 0.018.
    """
    settings = reference.TEN_MILLION[kind]
    model = reference.make(kind, settings, seed=8).eval().to(torch.bfloat16)
    ids = reference.tokens(settings["vocab_size"], 64, 1, 2, seed=9)[0, :, :-1]
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids.astype(np.int64))).logits.float().numpy()
        truth = model.float()(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    config = FAMILIES.get(kind).read(model.config.to_dict())
    ours = Decoder(config, dtype="bfloat16")
    ours.load_arrays(from_file(FAMILIES.get(kind).rules(config), weights_of(model), "reference"))
    layout = Layout.packed([64, 64])
    got = ours.logits(ours.hidden(k.from_numpy(ids.reshape(-1)), Ctx(layout))).numpy().reshape(truth.shape)

    def off(values):
        return float(np.sqrt(np.mean((values - truth) ** 2) / np.mean(truth**2)))

    print(f"{kind} bfloat16: relative RMS error of the logits {off(got):.1e}, transformers' {off(theirs):.1e}")
    assert off(got) <= 0.018
    assert off(got) <= 1.25 * off(theirs)


def test_settings_reach_the_reference():
    """The tables above mean what they say: a scaling that transformers ignored would pass unseen."""
    plain = SimpleNamespace(**reference.make("llama", reference.LLAMA, 1).config.rope_parameters)
    assert plain.rope_type == "default"
    for name, (kind, settings) in reference.TINY.items():
        if "rope_parameters" in settings:
            made = reference.make(kind, settings, 1).config.rope_parameters
            assert made["rope_type"] == settings["rope_parameters"]["rope_type"], name

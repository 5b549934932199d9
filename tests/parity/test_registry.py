"""Every registered family beside transformers on tiny random weights: logits, gradients, folders both ways."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt.io.names import from_file, to_file
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.nn import Ctx, Layout
from tests.tiny_families import LENGTHS, TINY, rows

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make parity installs it")
tiny = pytest.importorskip("tests.parity.tiny")

LOGITS, GRADIENT = 1e-4, 1e-4


@pytest.mark.parametrize("name", TINY)
def test_logits_and_gradients(name: str):
    model = tiny.make(name)
    want = tiny.logits(model)
    config = FAMILIES.get(model.config.model_type).read(model.config.to_dict())
    family = FAMILIES.get(config.family)
    rules = family.rules(config)
    ours = Decoder(config)
    ours.load_arrays(from_file(rules, tiny.weights(model), "reference", family.optional(config)))
    ids = np.concatenate(rows())
    tokens, layout = k.from_numpy(ids), Layout.packed(LENGTHS)
    hidden = ours.hidden(tokens, Ctx(layout))
    got = ours.logits(hidden).numpy()
    assert np.abs(got).max() > 0.1
    error = np.abs(got - want).max()
    wanted = tiny.gradients(model)
    ours.loss(tokens, k.from_numpy(tiny.targets()), Ctx(layout)).backward()
    found = to_file(rules, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    found = {n: g for n, g in found.items() if n in wanted}  # without constants that the file holds
    assert found.keys() == wanted.keys()
    # Relative to the gradient, or to the rounding noise that transformers' own float32 leaves where it vanishes.
    floor = 1e-3 * max(np.linalg.norm(each) for each in wanted.values())
    far = {n: np.linalg.norm(found[n] - g) / max(np.linalg.norm(g), floor) for n, g in wanted.items()}
    print(f"{name}: logits {error:.1e}, gradients {max(far.values()):.1e}")
    assert error <= LOGITS
    assert {n: d for n, d in far.items() if d > GRADIENT} == {}


@pytest.mark.parametrize("name", TINY)
def test_folders_go_both_ways(tmp_path: Path, name: str):
    from transformers import AutoModelForCausalLM

    model = tiny.make(name)
    want = tiny.logits(model)
    model.save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a key that is not understood is a key that may matter
        ours = load_decoder(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_decoder(ours, tmp_path / "ours")
    assert load_decoder(tmp_path / "ours").config == ours.config
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation=tiny.attention(ours.config.family), output_loading_info=True
    )
    problems = {key: names for key, names in report.items() if names and key.endswith("_keys")}
    assert problems == {}
    first, second = tiny.weights(model), tiny.weights(again.eval())
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[each], second[each]) for each in first)
    # The same numbers up to the order of a product's sums, which depends on where in memory the weights came to lie.
    assert np.abs(tiny.logits(again) - want).max() <= 4e-6


def test_every_family_is_in_the_table():
    ours = {"microgpt", "minicpm"}  # minicpm is not in transformers: Granite computes the same
    assert {kind for kind, _ in TINY.values()} == set(FAMILIES) - ours

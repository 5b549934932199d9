"""Encoders beside transformers: hidden states of packed sequences, gradients, the pooler, folders both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from microgpt import _kernels as k
from microgpt import ops
from microgpt.io.names import from_file, to_file
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.nn import Ctx, Layout
from microgpt.tensor import Tensor
from tests.parity import tiny
from tests.tiny_families import ENCODERS, LENGTHS, rows

every_encoder = pytest.mark.parametrize("name", ENCODERS)


@every_encoder
def test_hidden_states_and_gradients(name: str):
    model = tiny.make(name)
    family = FAMILIES.get(model.config.model_type)
    config = family.read(model.config.to_dict())
    rules = family.rules(config)
    ours = Decoder(config)
    ours.load_arrays(from_file(rules, tiny.weights(model), "reference", family.optional(config)))
    ctx = Ctx(Layout.packed(LENGTHS))
    got = ours.hidden(k.from_numpy(np.concatenate(rows())), ctx)
    want = tiny.hidden(model)
    direction = np.random.default_rng(3).standard_normal(want.shape).astype(np.float32)
    loss, goal = ops.mul(got, Tensor(direction)).sum(), (want * torch.from_numpy(direction)).sum()
    if config.pooler:
        pooled = ours.pooled(got, ctx)
        first = [model(torch.from_numpy(row.astype(np.int64))[None]).pooler_output[0] for row in rows()]
        assert np.abs(pooled.numpy() - torch.stack(first).detach().numpy()).max() <= 1e-4
        loss, goal = loss + pooled.sum(), goal + torch.stack(first).sum()
    assert np.abs(got.numpy() - want.detach().numpy()).max() <= 1e-4
    loss.backward()
    goal.backward()
    found = to_file(rules, {each: p.grad for each, p in ours.named_parameters() if p.grad is not None})
    wanted = {each: p.grad.numpy() for each, p in model.named_parameters()}
    assert found.keys() == wanted.keys()
    floor = 1e-3 * max(float(np.linalg.norm(each)) for each in wanted.values())
    far = {n: float(np.linalg.norm(found[n] - g) / max(np.linalg.norm(g), floor)) for n, g in wanted.items()}
    print(f"{name}: hidden {np.abs(got.numpy() - want.detach().numpy()).max():.1e}, gradients {max(far.values()):.1e}")
    assert {n: d for n, d in far.items() if d > 1e-4} == {}


@every_encoder
@pytest.mark.filterwarnings("error")
def test_folders_go_both_ways(tmp_path: Path, name: str):
    from transformers import AutoModel

    model = tiny.make(name)
    model.save_pretrained(tmp_path / "theirs")
    ours = load_decoder(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_decoder(ours, tmp_path / "ours")
    assert load_decoder(tmp_path / "ours").config == ours.config
    again, report = AutoModel.from_pretrained(tmp_path / "ours", attn_implementation="eager", output_loading_info=True)
    assert {key: names for key, names in report.items() if names and key.endswith("_keys")} == {}
    first, second = tiny.weights(model), tiny.weights(again.eval())
    assert first.keys() == second.keys() and all(np.array_equal(first[each], second[each]) for each in first)
    assert np.abs(tiny.hidden(again).detach().numpy() - tiny.hidden(model).detach().numpy()).max() <= 4e-6

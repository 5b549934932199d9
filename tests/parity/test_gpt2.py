"""GPT-2 beside transformers, live: `make parity`. Needs torch and transformers (extra `parity`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import microgpt
from microgpt.models.families.gpt2 import read
from tests.parity.compare import distance

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make parity installs it")
reference = pytest.importorskip("tests.parity.gpt2_reference")


@pytest.mark.parametrize(("settings", "batch"), [(reference.TINY, 3), (reference.TEN_MILLION, 4)], ids=["tiny", "10m"])
def test_forward_gradients_and_ten_adamw_steps(settings, batch):
    model = reference.make(settings, seed=3)
    ids = reference.tokens(settings, 10, batch, seed=4)
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    want = reference.run(model, ids)
    config = read({**model.config.to_dict()})
    if settings is reference.TEN_MILLION:
        assert sum(w.size for w in weights.values()) > 9.9e6
    far = distance(config, weights, ids, want, reference.ADAMW, clip=1.0)
    print(f"logits {far.logits:.2e}  gradients {max(far.gradients.values()):.2e}  losses {far.losses.max():.2e}")
    assert far.logits <= 1e-4
    assert {name: d for name, d in far.gradients.items() if d > 1e-4} == {}
    assert far.losses.max() <= 1e-5


def test_transformers_loads_what_we_save(tmp_path: Path):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    run = microgpt.train(data="names", steps=20, out=tmp_path / "run", layers=1)
    folder = tmp_path / "run" / "step-20"
    theirs, report = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ours = microgpt.load(folder)
    ids = ours.tokenizer.encode("anna", add_bos=True)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(ours.logits(ids) - logits).max() <= 1e-4
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("anna", add_special_tokens=False) == ids[1:]
    assert tokenizer.decode(ids[1:]) == "anna"
    assert run.steps == 20


def test_we_load_what_transformers_saves(tmp_path: Path):
    model = reference.make(reference.TINY, seed=5).eval()
    model.save_pretrained(tmp_path)
    from microgpt import _kernels as k
    from microgpt.models.pretrained import load_decoder
    from microgpt.nn import Ctx, Layout

    ids = np.arange(20, dtype=np.int32)
    with torch.no_grad():
        want = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    ours = load_decoder(tmp_path)
    got = ours.logits(ours.hidden(k.from_numpy(ids), Ctx(Layout.packed([20])))).numpy()
    assert np.abs(got - want).max() <= 1e-4

"""Penalties, filters and their order beside transformers' processors, live: `make parity`."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from microgpt.engine.generate import generate_ids
from microgpt.engine.sampler import Sampling, probabilities
from microgpt.models.pretrained import load_decoder
from tests.parity import reference

FILTERS = {
    "temperature": [0.7, 1.6],
    "top_k": [1, 5, 40],
    "top_p": [0.3, 0.9, 0.99],
    "min_p": [0.01, 0.1, 0.5],
    "repetition_penalty": [0.8, 1.3, 2.0],
}
ALONE = [{name: value} for name, values in FILTERS.items() for value in values]
TOGETHER = [dict(zip(FILTERS, values, strict=True)) for values in itertools.product(*FILTERS.values())]


@pytest.fixture(scope="module")
def model():
    return reference.make(*reference.TINY["gpt2"], seed=3).eval()


def theirs(model, settings, ids, logits):
    """What transformers' generate would sample from: its own list of processors, in its own order."""
    config = transformers.GenerationConfig(do_sample=True, top_k=settings.get("top_k", 0), **{
        name: value for name, value in settings.items() if name != "top_k"
    })  # fmt: skip
    processors = model._get_logits_processor(config, input_ids_seq_length=ids.shape[1])
    return processors(ids, logits.clone()).softmax(-1)[0].numpy()


@pytest.mark.parametrize("vocabulary", [61, 5000])
def test_the_same_tokens_are_kept_with_the_same_probabilities(model, vocabulary):
    """Theirs is float32: rounding an exponent x moves p = e^-x by eps / 2 * x * p, never more than 2.2e-8, and sums and
    divisions add a few eps of p: below 1e-6. A token nearer than that to a filter's edge could fall on either side;
    with these seeds none does."""
    rng = np.random.default_rng(vocabulary)
    worst = 0.0
    kept = set()
    for number, settings in enumerate([{}, *ALONE, *TOGETHER]):
        logits = (rng.normal(size=vocabulary) * 3).astype(np.float32)
        prompt, written = rng.integers(0, vocabulary, 9).tolist(), rng.integers(0, vocabulary, 6).tolist()
        ids = torch.tensor([[*prompt, *written]])
        want = theirs(model, settings, ids, torch.from_numpy(logits)[None])
        got = probabilities(logits, Sampling(**settings), prompt, written)
        assert np.array_equal(np.flatnonzero(got > 1e-30), np.flatnonzero(want > 1e-30)), (number, settings)
        worst = max(worst, float(np.abs(got - want).max()))
        kept.add(np.count_nonzero(got))
    print(f"{number + 1} settings, {len(kept)} sizes of kept sets, probabilities within {worst:.1e}")
    assert worst <= 1e-6
    assert len(kept) > 10


@pytest.mark.parametrize("penalty", [1.0, 1.2, 2.5])
def test_greedy_texts_are_theirs(model, tmp_path: Path, penalty: float):
    model.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)
    for prompt in ([5], [1, 2, 3, 4], [60, 7, 7, 30, 2, 2]):
        want = model.generate(
            torch.tensor([prompt]), do_sample=False, repetition_penalty=penalty, max_new_tokens=15, pad_token_id=0,
            eos_token_id=None, bos_token_id=None,
        )[0].tolist()  # fmt: skip
        got = [event.token for event in generate_ids(ours, [prompt], Sampling(0.0, repetition_penalty=penalty), 15)]
        assert [*prompt, *got] == want


def test_the_order_of_the_filters_is_theirs(model):
    config = transformers.GenerationConfig(
        do_sample=True, repetition_penalty=1.1, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1
    )
    names = [type(each).__name__ for each in model._get_logits_processor(config, input_ids_seq_length=1)]
    assert names == [
        "RepetitionPenaltyLogitsProcessor", "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]  # fmt: skip

"""`--size`, and parameter counts without a model."""

from __future__ import annotations

import math

import pytest

from microgpt.errors import ConfigError
from microgpt.models.decoder import Decoder
from microgpt.models.presets import MODELS
from microgpt.models.sizes import GPT2, NAMED, Dimensions, count, dimensions, parse_size
from microgpt.training.build import model_config
from microgpt.training.config import TrainConfig
from tests.test_conformance import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted_without_the_model(name: str):
    assert VARIANTS[name].num_parameters() == Decoder(VARIANTS[name]).num_parameters()


@pytest.mark.parametrize("model", MODELS)
def test_ready_made_models_are_counted(model: str):
    shape = dimensions(model, "300k", 300, 32)
    config = MODELS.get(model)(300, shape.width, shape.layers, shape.heads, 32, 0.0)
    assert Decoder(config).num_parameters() == count(model, shape, 300, 32)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("vocab", [65, 4096, 32000])
@pytest.mark.parametrize("size", ["8m", "10M", "medium", "60m", "1.5e9"])
def test_a_size_is_met_within_five_percent(model: str, vocab: int, size: str):
    wanted = parse_size(size)
    if vocab * 64 > wanted:
        pytest.skip("nearly all of it would be the vocabulary")
    shape = dimensions(model, size, vocab, 256)
    assert abs(math.log(count(model, shape, vocab, 256) / wanted)) <= math.log(1.05)
    assert shape.width % shape.heads == 0 and shape.width // shape.heads in (16, 32, 64)
    if vocab == 65:  # a small vocabulary leaves the choice free: it has a model's proportions
        assert 28 <= shape.width / shape.layers <= 112


def test_names_and_the_shapes_of_gpt2():
    assert dimensions("gpt", "124m", 50257, 1024) == Dimensions(12, 12, 768)
    assert count("gpt", Dimensions(*GPT2["124m"]), 50257, 1024) == 124_439_808
    assert count("gpt", Dimensions(*GPT2["355m"]), 50257, 1024) == 354_823_168
    assert dimensions("gpt", "large", 4096, 64) == Dimensions(12, 12, 768)
    assert {parse_size(name) for name in NAMED} == {10**6, 10**7, 3 * 10**7, 124 * 10**6}
    assert parse_size("1.5M") == 1_500_000 and parse_size("250k") == 250_000 and parse_size("2e6") == 2_000_000


@pytest.mark.parametrize("size", ["", "huge", "10x", "-5m", "0", "nan", "1e99", "10 m b", "9" * 40])
def test_impossible_sizes(size: str):
    with pytest.raises(ConfigError, match="size: expected a number"):
        dimensions("gpt", size, 65, 64)


def test_a_vocabulary_that_leaves_no_room():
    with pytest.raises(ConfigError, match="vocabulary of 50,257 has"):
        dimensions("llama", "100k", 50257, 64)


def test_the_size_of_a_run_reaches_the_model():
    config = model_config(TrainConfig(model="llama", size="1m", block_size=64), 256)
    assert config.family == "llama" and abs(config.num_parameters() / 1e6 - 1) < 0.05

"""Families in any size: they train, their costs are stated, and `microgpt zoo` shows them."""

from __future__ import annotations

import math

import numpy as np
import pytest

import microgpt
from microgpt.errors import ConfigError
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.sizes import count, dimensions
from microgpt.models.zoo import entries, maker, of_family, plan
from tests.cli_tools import run

NAMES = [name for name, family in FAMILIES.items() if family.keys]
CAUSAL = [name for name in NAMES if FAMILIES.get(name).read({}).causal]
every_family = pytest.mark.parametrize("name", NAMES)
every_language_model = pytest.mark.parametrize("name", CAUSAL)


@every_language_model
def test_a_small_one_trains_and_is_saved(name: str, tmp_path) -> None:
    made = microgpt.train(model=name, layers=2, heads=4, width=32, block_size=16, batch_size=8, steps=40, lr=1e-2,
                          eval_every=0, out=tmp_path / "run")  # fmt: skip
    assert made.model.config.family == name
    # ln 27 = 3.30 is a guess among 27 characters; batches of 8 names scatter by about 0.1.
    assert np.mean(made.losses[-1:]) < made.losses[0] - 0.2
    again = microgpt.load(tmp_path / "run")
    assert again.decoder.config == made.model.config
    ids = [0, 3, 5, 9, 1]
    assert np.array_equal(again.logits(ids), microgpt.LanguageModel(made.model, made.tokenizer).logits(ids))


@every_family
def test_its_costs_are_stated(name: str) -> None:
    config = of_family(name, 61, 32, 3, 4, 24, 0.0)
    model = Decoder(config)
    assert {each: p.shape for each, p in model.named_parameters()} == config.shapes()
    assert model.num_parameters() == config.num_parameters()
    assert model.state_bytes(7) == 4 * (7 * config.state_numbers() + config.fixed_state_numbers())
    weights = config.num_parameters() - 61 * 32 * (0 if config.tie_embeddings else 1)
    weights -= 32 * (24 * config.learned_positions + config.token_types)
    layers = [layer for block in config.blocks for layer in block.layers]
    weights -= sum(layer.idle(32) for layer in layers)
    assert config.flops_per_token(10) == 2 * weights + sum(layer.flops(10) for layer in layers)


@every_language_model
def test_a_size_is_met(name: str) -> None:
    shape = dimensions(name, "8m", 4096, 256)
    assert abs(math.log(count(name, shape, 4096, 256) / 8e6)) <= math.log(1.08)


def test_the_list_has_every_family() -> None:
    found = entries()
    assert [each.name for each in found] == sorted(NAMES)
    llama = next(each for each in found if each.name == "llama")
    assert llama.parameters == 6_738_415_616  # Llama 7B's published number
    assert llama.state == 2 * 32 * 2 * 4096  # layers, keys and values, width, two bytes each
    text = run("zoo", "--list").stdout
    assert all(f"\n{each.name:18}{each.architecture}" in "\n" + text for each in found)
    assert "llama             LlamaForCausalLM                  6.74G        13.2G        524KB        -" in text


def test_a_plan_is_printed_and_can_be_run() -> None:
    done = run("zoo", "qwen3", "--size", "10m")
    assert done.exit_code == 0 and "20 tokens a parameter: 200M tokens" in done.stdout
    shape = dimensions("qwen3", "10m", 4096, 256)
    assert f"--layers {shape.layers} --heads {shape.heads} --width {shape.width}" in done.stdout
    wrong = run("zoo", "qwen33")
    assert wrong.exit_code == 2 and "did you mean 'qwen3'" in wrong.stderr


@pytest.mark.parametrize("parameters", [10**5, 10**7, 10**9])
def test_plans_have_twenty_tokens_a_parameter(parameters: int) -> None:
    found = plan(parameters, 256)
    assert found.tokens == 20 * parameters
    assert abs(found.steps * found.batch_tokens / found.tokens - 1) < 0.05 or found.steps == 1
    assert found.batch_tokens % 256 == 0


def test_encoders_are_not_trained_on_the_next_token() -> None:
    assert set(NAMES) - set(CAUSAL) == {"bert", "modernbert"}
    with pytest.raises(ConfigError, match="bert is an encoder"):
        maker("bert")


def test_shapes_that_a_family_cannot_have() -> None:
    with pytest.raises(ConfigError, match="heads: expected an even number for diffllama, got 3"):
        maker("diffllama")(61, 48, 2, 3, 24, 0.0)
    with pytest.raises(ConfigError, match="divisor of the width 32"):
        maker("qwen3")(61, 32, 2, 5, 24, 0.0)

"""config.json of a Llama: both dialects, every rope scaling, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt.engine.generate import forward_cached
from microgpt.engine.step import Steps
from microgpt.errors import ConfigError, ShapeError
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.nn import Ctx, Layout
from microgpt.nn.positions import STRETCH, covered, rope_frequencies, rope_tables
from microgpt.nn.rope import RopeScaling, RopeSpec
from microgpt.state.contiguous import ContiguousStates
from microgpt.tensors import Tensor

read, write = FAMILIES.get("llama").read, FAMILIES.get("llama").write
TINY = {
    "vocab_size": 61, "max_position_embeddings": 24, "hidden_size": 32, "intermediate_size": 56,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 3.0, "original_max_position_embeddings": 8, "beta_fast": 16.0},
    "longrope": {"original_max_position_embeddings": 8, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
    },
}  # fmt: skip


def rope_of(config: ModelConfig) -> RopeSpec:
    rope = config.blocks[0].mixer.rope
    assert isinstance(rope, RopeSpec)
    return rope


@pytest.mark.parametrize("kind", SCALINGS)
def test_both_dialects_mean_the_same(kind: str):
    values = SCALINGS[kind]
    new = read({**TINY, "rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **values}})
    old = read({**TINY, "rope_theta": 500.0, "rope_scaling": {"type": kind, **values} if values else None})
    assert new == old
    assert rope_of(new).theta == 500.0
    assert (rope_of(new).scaling is None) == (kind == "default")
    assert read(write(new)) == new
    assert ModelConfig.from_dict(new.to_dict()) == new


def test_longrope_derives_its_factor_from_the_contexts():
    config = read({**TINY, "rope_parameters": {"rope_type": "longrope", **SCALINGS["longrope"]}})
    scaling = rope_of(config).scaling
    assert scaling is not None and scaling.factor == 3.0
    frequency, attention = rope_frequencies(rope_of(config), 8, 24)
    assert np.allclose(frequency * 2.0, 10000.0 ** (-np.arange(0, 8, 2) / 8))
    assert attention == pytest.approx(np.sqrt(1 + np.log(3) / np.log(8)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 32 is not divisible by num_attention_heads 5"),
        ({"num_attention_heads": 0}, "hidden_size 32 is not divisible"),
        ({"num_key_value_heads": 3}, "kv_heads .*: expected a divisor"),
        ({"hidden_act": "silly"}, "hidden_act 'silly': known are"),
        ({"hidden_size": "32"}, "hidden_size expected int"),
        ({"num_hidden_layers": 10**9}, "blocks: expected 1 to 1024"),
        ({"num_hidden_layers": -1}, "blocks: expected 1 to 1024"),
        ({"head_dim": 7}, "head_dim .*: expected an even width"),
        ({"rms_norm_eps": float("nan")}, "norm eps"),
        ({"rope_theta": 0}, "rope_theta: expected a number"),
        ({"rope_theta": float("inf")}, "rope_theta: expected a number"),
        ({"rope_parameters": {"rope_type": "yarm"}}, "rope_type 'yarm' .did you mean 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "missing key 'factor'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor: expected a number"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor: expected a number"),
        (
            {"rope_parameters": {"rope_type": "llama3", **SCALINGS["llama3"], "high_freq_factor": 1.0}},
            "high_freq_factor: expected more than",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", **SCALINGS["longrope"], "long_factor": [1.0] * 3}},
            "long_factor: expected",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
    ],
)
def test_impossible_configurations(change: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        read({**TINY, **change})


@pytest.mark.parametrize("original", [0, -8, 10**400, 2.5, True, "8"])
def test_hostile_original_contexts(original: Any):
    values = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": original}
    with pytest.raises(ConfigError, match=r"config\.json"):
        read({**TINY, "rope_parameters": values})
    del values["factor"]
    with pytest.raises(ConfigError, match=r"config\.json"):
        read({**TINY, "rope_parameters": values})


def test_unknown_keys_are_named():
    with pytest.warns(UserWarning, match=r"rope_scaling.fctor is not understood.*did you mean 'factor'"):
        read({**TINY, "rope_scaling": {"type": "linear", "factor": 2.0, "fctor": 3.0}})
    with pytest.warns(UserWarning, match="keys not understood and ignored: 'qk_norm'"):
        read({**TINY, "qk_norm": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read({**TINY, "attention_dropout": 0.1, "pretraining_tp": 1, "torch_dtype": "float16"})


def test_what_is_no_llama_is_not_saved_as_one():
    config = read(TINY)
    with pytest.raises(ConfigError, match="not a llama"):
        write(ModelConfig(61, 32, 24, config.blocks, family="llama"))  # learned positions


def test_dropout_survives_the_folder():
    import dataclasses

    config = read(TINY)
    block = dataclasses.replace(config.blocks[0], dropout=0.1)
    dropped = dataclasses.replace(config, blocks=(block,) * 2, embed_dropout=0.2)
    assert read(write(dropped)) == dropped


def test_scaling_needs_one_factor_a_pair():
    with pytest.raises(ConfigError, match="expected one of linear, dynamic"):
        RopeScaling("stretch")


@pytest.mark.parametrize("reverse", [False, True])
def test_rotary_tables_of_a_long_context(reverse: bool) -> None:
    """Made by the sines of sums: as near to the angles' own as those are rounded, p * 2^-53."""
    spec, positions = RopeSpec(10000.0, reverse=reverse), 2 * STRETCH + 77
    cos, sin = (each.numpy() for each in rope_tables(spec, 16, positions, positions, "float64"))
    angle = np.arange(positions)[:, None] * rope_frequencies(spec, 16, positions)[0]
    assert np.abs(cos - np.cos(angle)).max() <= positions * 2.0**-52
    assert np.abs(sin - np.sin(angle) * (-1 if reverse else 1)).max() <= positions * 2.0**-52
    assert np.array_equal(cos[:STRETCH], np.cos(angle[:STRETCH]))  # a short context as ever
    for length in (7, STRETCH, STRETCH + 1, 2 * STRETCH):  # and a part of the table has its bits
        part = [each.numpy() for each in rope_tables(spec, 16, positions, length, "float64")]
        assert np.array_equal(part[0], cos[:length]) and np.array_equal(part[1], sin[:length])


def test_tables_are_as_long_as_the_call_needs() -> None:
    assert [covered(reach, 1 << 17) for reach in (1, 2048, 2049, 5000, 1 << 17)] == [2048, 2048, 4096, 8192, 1 << 17]
    assert covered(3000, 3000) == 3000 and covered(1, 16) == 16
    layout = Layout(4, 1)
    with pytest.raises(ShapeError, match="positions: expected 0 to 3, got 1 to 4"):
        layout.feed(np.array([0, 4], np.int32), np.array([1, 2, 3, 4], np.int32))
    assert Layout.cached([1, 2], [5, 9], [0, 20]).reach == 11
    # What a token's row is does not depend on the length of the table: over the end of the first one.
    config = {"vocab_size": 61, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 1, "max_position_embeddings": 1 << 17}  # fmt: skip
    scaled = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 4096}  # fmt: skip
    rope_tables.cache_clear()
    model = Decoder(FAMILIES.get("llama").read({**config, "rope_parameters": scaled}), seed=3)
    ids = np.random.default_rng(4).integers(0, 61, STRETCH + 12).astype(np.int32)
    whole = model.hidden(k.from_numpy(ids), Ctx(Layout.packed([len(ids)]))).numpy()
    states = ContiguousStates(model.state_specs(), 1, len(ids) + 1)
    steps = Steps(model, states)
    first = forward_cached(model, [ids[: STRETCH - 3]], states)
    assert np.array_equal(first[-1], model.logits(Tensor(whole[STRETCH - 4 : STRETCH - 3])).numpy()[0])
    for at in range(STRETCH - 3, len(ids)):
        logits = steps.run([0], [int(ids[at])])
        assert np.array_equal(logits[0], model.logits(Tensor(whole[at : at + 1])).numpy()[0])
    assert rope_tables.cache_info().currsize == 2  # 2,048 and 4,096 of 131,072

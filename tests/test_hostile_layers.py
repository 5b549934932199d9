"""Bad input for recurrent, hybrid and expert models: what is wrong, in which layer and field, expected and got."""

from __future__ import annotations

import dataclasses
import json
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt.errors import CheckpointError, ConfigError, FormatError, MicrogptError
from microgpt.io.gguf import GgufFile
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.gguf import save_gguf
from microgpt.models.presets import MODELS
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.nn.spec import SPECS
from tests.test_families import BAD, mutant
from tests.test_gguf_models import OTHERS, rewritten, tiny
from tests.tiny_families import TINY

FAMILIES_HERE = """mamba falcon_mamba mamba2 mamba2_limits recurrent_gemma jamba jamba_moe bamba falcon_h1
    falcon_h1_norm granitemoehybrid granitemoehybrid_moe nemotron_h nemotron_h_moe lfm2 lfm2_moe qwen3_next qwen3_5
    mixtral qwen2_moe
    qwen3_moe olmoe granitemoe gpt_oss""".split()
IN_GGUF = [name for name in FAMILIES_HERE if name in OTHERS]


def folder_of(name: str, folder: Path) -> dict[str, Any]:
    """Save the tiny model; its config.json."""
    family, settings = TINY[name]
    save_decoder(Decoder(FAMILIES.get(family).read(dict(settings)), seed=1), folder)
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


# -- settings that do not fit ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mamba2", {"n_groups": 3}, r"block 0: mamba2 groups \(n_groups\): expected a divisor of the 8 heads, got 3"),
        ("mamba2", {"state_size": 0}, r"block 0: mamba2 state \(state_size\): expected .* from 1 .*, got 0"),
        ("mamba", {"state_size": -1}, r"block 0: mamba state \(state_size\): expected .*, got -1"),
        ("bamba", {"attn_layer_indices": [3]}, "attn_layer_indices: expected numbers from 0 to 2, got 3"),
        ("bamba", {"mamba_n_groups": 3}, r"block 0: mamba2 groups \(mamba_n_groups\): expected a divisor of"),
        ("bamba", {"num_key_value_heads": 3}, r"block 1: attention kv_heads \(num_key_value_heads\): expected"),
        ("qwen3_5", {"linear_num_key_heads": 3}, r"block 0: gated_delta key_heads \(linear_num_key_heads\): expected a "
         "divisor of the 4 heads, got 3"),
        ("qwen3_5", {"layer_types": ["full_attention"] * 2}, "layer_types: expected 3 names, one a layer, got 2"),
        ("lfm2", {"layer_types": ["conv", "mamba"]}, "layer_types: expected full_attention or conv, got 'mamba'"),
        ("nemotron_h", {"layers_block_type": ["mlp", 7]}, "layers_block_type: expected .*moe, got 7"),
        ("jamba_moe", {"attn_layer_offset": 9}, "attn_layer_offset: expected a number below 5, got 9"),
        ("jamba_moe", {"num_experts_per_tok": 5}, r"block 1: moe chosen \(num_experts_per_tok\): .* 1 to 4, got 5"),
        ("lfm2_moe", {"num_experts": 0}, r"block 1: moe experts \(num_experts\): expected .* from 1 .*, got 0"),
        ("granitemoehybrid_moe", {"num_local_experts": -4}, "num_local_experts: expected 0 or more, got -4"),
        ("nemotron_h_moe", {"n_routed_experts": 1}, r"block 1: moe chosen \(num_experts_per_tok\): expected .* 1 to 1"),
        ("gpt_oss", {"num_local_experts": 2**40}, r"block 0: moe experts \(num_local_experts\): expected"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_name_layer_and_field(tmp_path: Path, name: str, change: dict[str, Any], message: str):
    values = folder_of(name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ConfigError, match=f"config.json: {message}"):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "missing", "unexpected"),
    [
        ("bamba", {"attn_layer_indices": [0]}, r"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mamba.A_log"),
        ("granitemoehybrid", {"layer_types": ["full_attention"] * 3}, "layers.0.self_attn.k_proj", "layers.0.mamba.D"),
        ("lfm2", {"layer_types": ["full_attention", "conv"]}, "layers.1.conv.conv", "layers.1.self_attn.out_proj"),
        ("qwen3_next", {"layer_types": ["full_attention"] + ["linear_attention"] * 2},
         "layers.1.linear_attn.in_proj_qkvz", "layers.1.self_attn.q_proj"),
        ("nemotron_h", {"layers_block_type": ["mlp", "linear_attention", "full_attention", "mlp"]},
         "layers.0.mixer.up_proj", "layers.0.mixer.A_log"),
        ("recurrent_gemma", {"block_types": ["attention", "recurrent"]}, "layers.0.temporal_block.q_proj",
         "layers.0.temporal_block.conv_1d"),
        ("jamba_moe", {"expert_layer_offset": 0}, r"layers.0.feed_forward.experts.\*.gate_proj.weight \(4 of them\)",
         r"layers.1.feed_forward.experts.\*.down_proj.weight \(4 of them\)|layers.1.feed_forward.experts"),
        ("lfm2_moe", {"num_dense_layers": 2}, "layers.1.feed_forward.w1.weight", "layers.1.feed_forward.expert_bias"),
    ],
)  # fmt: skip
def test_a_pattern_that_disagrees_with_the_weights(
    tmp_path: Path, name: str, change: dict[str, Any], missing: str, unexpected: str
) -> None:
    values = folder_of(name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(CheckpointError, match=rf"missing \[.*{missing}.*unexpected \[.*{unexpected}") as caught:
        load_decoder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_many_experts_are_named_once(tmp_path: Path) -> None:
    values = folder_of("olmoe", tmp_path)
    for count, what in ((2000, r"missing \['model.layers.0.mlp.experts.\*.gate_proj.weight \(1,992 of them\)'"),
                        (7, r"unexpected \['model.layers.0.mlp.experts.7.down_proj.weight',")):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**values, "num_experts": count}))
        with pytest.raises(CheckpointError, match=what) as caught:
            load_decoder(tmp_path)
        assert len(str(caught.value)) < 1500
    (tmp_path / "config.json").write_text(json.dumps({**values, "intermediate_size": 24}))
    wrong = r"experts.\*.up_proj.weight \(8 of them\) expected \(24, 32\), got \(40, 32\)"
    with pytest.raises(CheckpointError, match=wrong):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nemotron_h", {"attention.head_count_kv": [2, 2]}, "head_count_kv': expected a whole number, or 4 of them"),
        ("nemotron_h", {"attention.head_count_kv": None}, "head_count_kv': expected a whole number, or 4 .*, got None"),
        ("nemotron_h", {"attention.head_count_kv": [0, 2, 1, 0]}, "head_count_kv': expected one number in all blocks"),
        ("nemotron_h_moe", {"feed_forward_length": [0, 24, 24, 24]}, r"expected 0 in blocks \[2\], which have key"),
        ("nemotron_h", {"ssm.inner_size": 7}, "expected a multiple of nemotron_h.ssm.time_step_rank 4, got 7"),
        ("mamba", {"ssm.inner_size": 33}, "ssm.inner_size': expected a multiple of mamba.embedding_length 32, got 33"),
        ("mamba2", {"ssm.time_step_rank": 0}, "'mamba2.ssm.time_step_rank': expected .* from 1 to .*, got 0"),
        ("bamba", {"ssm.inner_size": "x"}, "'granitehybrid.ssm.inner_size': expected .* from 1 .*, got 'x'"),
        ("bamba", {"ssm.group_count": 3}, r"block 0: mamba2 groups \(metadata 'granitehybrid.ssm.group_count'\)"),
        ("jamba_moe", {"attention.head_count_kv": [2, 0, 2, 2]}, "blocks with jamba.attention.head_count_kv: "
         r"expected the first of each of equal numbers of blocks, got \[0, 2, 3\]"),
        ("jamba_moe", {"expert_used_count": 9}, r"moe chosen \(metadata 'jamba.expert_used_count'\): .* 1 to 4"),
        ("lfm2_moe", {"expert_gating_func": 1}, r"'lfm2moe.expert_gating_func': expected 2 \(sigmoid\), got 1"),
        ("lfm2_moe", {"expert_count": 0}, r"block 1: moe experts \(metadata 'lfm2moe.expert_count'\): .*, got 0"),
        ("lfm2", {"shortconv.l_cache": "a"}, "metadata 'lfm2.shortconv.l_cache' expected int, got 'a'"),
        ("qwen3_5", {"full_attention_interval": 0}, "full_attention_interval': expected .* from 1 to .*, got 0"),
        ("qwen3_5", {"ssm.inner_size": None}, "'qwen35.ssm.inner_size': expected .* from 1 .*, got None"),
        ("falcon_mamba", {"ssm.dt_b_c_rms": 3}, "'mamba.ssm.dt_b_c_rms': expected True, got 3"),
        ("granitemoehybrid", {"expert_count": -1}, "'granitehybrid.expert_count': expected .* from 0 .*, got -1"),
    ],
)  # fmt: skip
def test_metadata_that_does_not_fit(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "m.gguf"
    save_gguf(tiny(name), path, "f32")
    arch = GgufFile(path).metadata["general.architecture"]
    rewritten(path, {f"{arch}.{key}": value for key, value in change.items()})
    with pytest.raises((ConfigError, FormatError), match=message) as caught:
        load_decoder(path)
    assert "m.gguf" in str(caught.value)


def test_a_pattern_that_disagrees_with_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    save_gguf(tiny("lfm2"), path, "f32")
    rewritten(path, {"lfm2.attention.head_count_kv": [2, 0]})
    missing = r"missing \['blk.0.attn_q.weight'.*'blk.1.shortconv.conv.weight'.*unexpected \['blk.0.shortconv"
    with pytest.raises(CheckpointError, match=missing):
        load_decoder(path)


# -- values of any kind ------------------------------------------------------------------------------------------------
VALUES: list[Any] = [None, 0, -1, 1.5, "x", True, 2**31, 2**70, float("nan"), float("inf"), [], [1], {}, (1, 2, 3)]


@pytest.mark.parametrize("kind", SPECS)
def test_fields_of_any_type(kind: str) -> None:
    """A spec is made, and its costs can be counted, or it says which field is wrong."""
    refused = 0
    for name, example in list(SPECS.get(kind).examples(24).items())[:1]:  # type: ignore[attr-defined]
        for each in dataclasses.fields(example):
            for value in VALUES:
                try:
                    made = dataclasses.replace(example, **{each.name: value})
                    assert made.parameters(24) >= 0 and made.activations(24) >= 0 and made.flops(9) >= 0
                except ConfigError as error:
                    refused += 1
                    assert kind in str(error) or each.name in str(error) or "activation" in str(error), (
                        name,
                        each.name,
                    )
        assert refused >= len(dataclasses.fields(example))


@pytest.mark.parametrize("name", MODELS)
def test_presets_of_any_size(name: str) -> None:
    good = {"vocab_size": 29, "width": 24, "layers": 2, "heads": 4, "block_size": 16, "dropout": 0.0}
    for key in good:
        for value in [*VALUES, 2**40]:
            if key == "dropout" and value in (0, True):
                continue
            try:
                MODELS.get(name)(**{**good, key: value})
            except ConfigError as error:
                assert key in str(error)
            else:
                assert value is True and key != "dropout", (key, value)


# -- mutants -----------------------------------------------------------------------------------------------------------
def settled(load: Any, what: str) -> str:
    """How it ends: loaded, or the name of a typed error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load()
    except MicrogptError as error:
        assert 0 < len(str(error)) < 8000
        return type(error).__name__
    except Exception as error:
        raise AssertionError(what) from error
    return "loaded"


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("own", [False, True])
def test_mutants_of_config_json(tmp_path: Path, count: int, own: bool) -> None:
    """With the weights of the good one beside it; in our own layout too."""
    rng, ends = random.Random(count), Counter[str]()
    for name in FAMILIES_HERE:
        folder = tmp_path / name
        folder.mkdir()
        model = Decoder(FAMILIES.get(TINY[name][0]).read(dict(TINY[name][1])), seed=1)
        if own:
            model.config = dataclasses.replace(model.config, family="microgpt")
        save_decoder(model, folder)
        values = json.loads((folder / "config.json").read_text())
        for _ in range(count // len(FAMILIES_HERE)):
            try:
                text = json.dumps(mutant(values, rng))
            except ValueError:
                continue  # a number that is too long to write
            (folder / "config.json").write_text(text)
            ends[settled(lambda folder=folder: load_decoder(folder), text)] += 1  # type: ignore[misc]
    print(dict(ends))
    assert ends["ConfigError"] > 0.3 * ends.total() and ends["loaded"] and ends["CheckpointError"]


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.soak)])
def test_mutants_of_metadata(tmp_path: Path, count: int) -> None:
    """A value of a good GGUF file is another, of any type."""
    path, rng, ends = tmp_path / "m.gguf", random.Random(count), Counter[str]()
    lists: list[Any] = [[0, 0, 0], [1, 0, 2], [-1, 1], [2**31 - 1, 0, 0], ["a", "b"], [0.5] * 3, [float("nan")]]
    for name in IN_GGUF:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_gguf(tiny(name), path, "f32")
        good, arch = path.read_bytes(), GgufFile(path).metadata["general.architecture"]
        keys = [key for key in GgufFile(path).metadata if key.startswith(f"{arch}.")]
        for _ in range(count // len(IN_GGUF)):
            path.write_bytes(good)
            key, value = rng.choice(keys), rng.choice([*BAD, *lists, 2, 3, np.array([True, False, True])])
            try:
                rewritten(path, {key: value})
            except MicrogptError:
                continue  # what GGUF has no type for
            ends[settled(lambda: load_decoder(path), f"{name} {key} {value!r}")] += 1
    print(dict(ends))
    assert {"ConfigError", "FormatError", "CheckpointError", "loaded"} <= set(ends)

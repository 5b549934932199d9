"""Every family on its tiny configuration: golden logits of transformers, incremental decoding, both directions."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from microgpt import _kernels as k
from microgpt.autograd import no_grad
from microgpt.errors import CheckpointError, ConfigError, MicrogptError, UsageError
from microgpt.io.names import from_file, to_file
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import load_config, load_decoder, save_decoder
from microgpt.nn import Ctx, Layout
from microgpt.state.contiguous import ContiguousStates
from tests.tiny_families import ENCODERS, LENGTHS, TINY, rows, weight
from tests.variants import check_pieces

GOLDEN = Path(__file__).parent / "golden" / "families.npz"
every_name = pytest.mark.parametrize("name", [*TINY, *ENCODERS])
every_family = pytest.mark.parametrize("name", TINY)


def config_of(name: str) -> ModelConfig:
    kind, settings = {**TINY, **ENCODERS}[name]
    return FAMILIES.get(kind).read(settings)


def stored(config: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
    """The weights file: every array drawn from its name."""
    rules = FAMILIES.get(config.family).rules
    assert rules is not None
    return {name: weight(name, rule.shape) for rule in rules(config) for name in rule.names() if rule.shape is not None}


def model_of(name: str) -> Decoder:
    config = config_of(name)
    family = FAMILIES.get(config.family)
    assert family.rules is not None
    model = Decoder(config)
    model.load_arrays(from_file(family.rules(config), stored(config), name, family.optional(config)))
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, npt.NDArray[np.float32]]:
    return dict(np.load(GOLDEN))


@every_family
def test_logits_are_those_of_transformers(name: str, golden: dict[str, Any]) -> None:
    model = model_of(name)
    with no_grad():
        hidden = model.hidden(k.from_numpy(np.concatenate(rows())), Ctx(Layout.packed(LENGTHS)))
        got = model.logits(hidden).numpy()
    assert np.abs(golden[name]).max() > 0.1
    assert np.abs(got - golden[name]).max() <= 1e-4


@every_family
def test_decoding_in_pieces_is_the_whole_forward(name: str) -> None:
    model, ids = model_of(name), np.concatenate(rows())
    with no_grad():
        whole = model.logits(model.hidden(k.from_numpy(ids), Ctx(Layout.packed([len(ids)])))).numpy().copy()
        for chunk in (1, 3, 7):
            states = ContiguousStates(model.state_specs(), 1, len(ids))
            parts = []
            for start in range(0, len(ids), chunk):
                piece = ids[start : start + chunk].copy()
                states.begin([len(piece)])
                ctx = Ctx(Layout.cached([len(piece)], states.lengths, states.rows), states=states)
                parts.append(model.logits(model.hidden(k.from_numpy(piece), ctx)).numpy().copy())
                states.commit()
            check_pieces(model.config, np.concatenate(parts), whole)


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_those_of_transformers(name: str, golden: dict[str, Any]) -> None:
    model = model_of(name)
    with no_grad():
        ctx = Ctx(Layout.packed(LENGTHS))
        got = model.hidden(k.from_numpy(np.concatenate(rows())), ctx)
        assert np.abs(got.numpy() - golden[name]).max() <= 1e-4
    if model.pooler is None:
        with pytest.raises(UsageError, match="no pooler"):
            model.pooled(got, ctx)


@every_family
def test_bfloat16_is_float32_up_to_the_rounding_of_activations(name: str) -> None:
    """Gemma 3 has 26 roundings a block: six norms with 1 + weight (12), seven products, two rotations, softmax,
    attention, gate, two sums; two more at either end of the model. Each is up to 2^-9 of a value; of independent sign,
    they move the logits by sqrt(28 blocks) 2^-9 of their size. What a gated delta layer puts out is q . k times v, and
    for random keys of n numbers |q| |k| is sqrt(n) times q . k: the four roundings behind them count n times."""
    import ml_dtypes

    config, found = config_of(name), []
    family = FAMILIES.get(config.family)
    assert family.rules is not None
    arrays = from_file(family.rules(config), stored(config), name, family.optional(config))
    rounded = {each: value.astype(ml_dtypes.bfloat16) for each, value in arrays.items()}
    for dtype in ("float32", "bfloat16"):
        model = Decoder(config, dtype)
        model.load_arrays(rounded)
        with no_grad():
            hidden = model.hidden(k.from_numpy(np.concatenate(rows())), Ctx(Layout.packed(LENGTHS)))
            found.append(model.logits(hidden).numpy().astype(np.float64))
    off = np.sqrt(np.mean((found[1] - found[0]) ** 2) / np.mean(found[0] ** 2))
    deltas = [block.mixer for block in config.blocks if getattr(block.mixer, "kind", None) == "gated_delta"]
    assert off <= np.sqrt(28 * len(config.blocks) + 4 * sum(each.key_dim for each in deltas)) * 2.0**-9


@every_name
def test_what_is_written_is_read_again(name: str) -> None:
    config = config_of(name)
    family = FAMILIES.get(config.family)
    assert family.read(json.loads(json.dumps(family.write(config)))) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert family.rules is not None
    model, rules = Decoder(config, seed=2), family.rules(config)
    arrays = model.arrays()
    assert {key: value.shape for key, value in arrays.items()} == config.shapes()
    back = from_file(rules, to_file(rules, arrays), "file", family.optional(config))
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[each], arrays[each]) for each in arrays)


@every_name
def test_a_folder_gives_back_its_weights(name: str, tmp_path: Path) -> None:
    """As files are opened: weight by weight from the map, in all the forms that names have."""
    model = Decoder(config_of(name), seed=3)
    save_decoder(model, tmp_path)
    back = load_decoder(tmp_path)
    assert back.config == model.config
    arrays, found = model.arrays(), back.arrays()
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[each], arrays[each]) for each in arrays)


@every_name
def test_all_weights_that_do_not_fit_are_named(name: str) -> None:
    config = config_of(name)
    family = FAMILIES.get(config.family)
    assert family.rules is not None
    arrays: dict[str, Any] = dict(stored(config))
    first, second, *_, last = arrays
    arrays["model.extra.weight"] = arrays.pop(first)
    for each in (second, last):
        arrays[each] = np.zeros((*arrays[each].shape, 1), np.float32)
    with pytest.raises(CheckpointError) as caught:
        from_file(family.rules(config), arrays, "file", family.optional(config))
    message = str(caught.value)
    assert f"missing ['{first}']" in message and "unexpected ['model.extra.weight']" in message
    assert f"{second} expected" in message and f"{last} expected" in message


def test_files_without_the_prefix_of_the_whole_model() -> None:
    """openai-community/gpt2 and bigscience/bloom-560m were saved without their head."""
    for name in ("gpt2", "bloom"):
        config = config_of(name)
        family = FAMILIES.get(config.family)
        assert family.rules is not None
        whole = stored(config)
        bare = {each.removeprefix("transformer."): value for each, value in whole.items()}
        bare["h.0.attn.bias"] = np.zeros((1, 1, 4, 4), np.float32)
        if name == "bloom":
            del bare["h.0.attn.bias"]
        first, second = (from_file(family.rules(config), each, name, family.optional(config)) for each in (whole, bare))
        assert first.keys() == second.keys() and all(np.array_equal(first[each], second[each]) for each in first)


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    # configurations as their authors published them (older dialects), and the parameters that they state
    "bloom": ({"n_embed": 1024, "n_layer": 24, "num_attention_heads": 16, "vocab_size": 250880, "offset_alibi": 100},
              559_214_592),
    "falcon": ({"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "multi_query": True,
                "new_decoder_architecture": False, "parallel_attn": True, "bias": False, "alibi": False,
                "vocab_size": 65024}, 6_921_720_704),
    "gpt_neox": ({"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6,
                  "rotary_emb_base": 10000, "rotary_pct": 0.25, "vocab_size": 50304, "use_parallel_residual": True},
                 70_426_624),
    "phi": ({"hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32, "num_hidden_layers": 32,
             "partial_rotary_factor": 0.4, "rope_theta": 10000.0, "vocab_size": 51200}, 2_779_683_840),
    "qwen2": ({"hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24, "num_attention_heads": 14,
               "num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0, "sliding_window": 131072,
               "use_sliding_window": False, "tie_word_embeddings": True, "vocab_size": 151936}, 494_032_768),
    "qwen3": ({"head_dim": 128, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
               "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_theta": 1000000, "rope_scaling": None,
               "tie_word_embeddings": True, "vocab_size": 151936}, 596_049_920),
    "gemma2": ({"head_dim": 256, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
                "num_hidden_layers": 26, "num_key_value_heads": 4, "rope_theta": 10000.0,
                "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "sliding_window": 4096,
                "vocab_size": 256000}, 2_614_341_888),
    "gemma3_text": ({"head_dim": 256, "hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4,
                     "num_hidden_layers": 18, "num_key_value_heads": 1, "rope_theta": 1000000.0,
                     "rope_local_base_freq": 10000.0, "sliding_window": 512, "_sliding_window_pattern": 6,
                     "vocab_size": 262144}, 268_098_176),
    "bert": ({"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 6,
              "gradient_checkpointing": False, "position_embedding_type": "absolute"}, 22_713_216),  # all-MiniLM-L6
    "modernbert": ({"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3},
                   149_014_272),
    "llama": ({"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_hidden_layers": 30,
               "num_key_value_heads": 3, "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152},
              134_515_008),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_configurations(kind: str) -> None:
    settings, parameters = PUBLISHED[kind]
    config = FAMILIES.get(kind).read(settings)
    assert config.num_parameters() == parameters
    assert FAMILIES.get(kind).read(FAMILIES.get(kind).write(config)) == config
    if kind == "gemma3_text":
        assert [block.mixer.window for block in config.blocks[:6]] == [512] * 5 + [None]
        assert [block.mixer.rope.theta for block in config.blocks[:6]] == [1e4] * 5 + [1e6]
    if kind == "qwen2":
        assert {block.mixer.window for block in config.blocks} == {None}
    if kind in ("phi", "gpt_neox"):
        assert config.blocks[0].mixer.rope.dims == {"phi": 32, "gpt_neox": 16}[kind]


def test_minicpm_is_granite_with_its_multipliers(golden: dict[str, Any]) -> None:
    """Its reference needs remote code; Granite's multipliers say the same, and Granite is checked above."""
    kind, granite = TINY["granite"]
    width, layers = granite["hidden_size"], granite["num_hidden_layers"]
    mine = {key: value for key, value in granite.items() if "mult" not in key and "logits" not in key}
    mini = FAMILIES.get("minicpm").read(
        {**mine, "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 8, "tie_word_embeddings": False}
    )
    twin = FAMILIES.get(kind).read(
        {**mine, "embedding_multiplier": 3.0, "residual_multiplier": 1.4 / layers**0.5, "logits_scaling": width / 8,
         "attention_multiplier": mini.blocks[0].mixer.head_dim ** -0.5}
    )  # fmt: skip
    scores = []
    for config in (mini, twin):
        model = Decoder(config)
        rules = FAMILIES.get(config.family).rules
        assert rules is not None
        model.load_arrays(from_file(rules(config), stored(config), "file"))
        scores.append(model.logits(model.hidden(k.from_numpy(rows()[0]), Ctx(Layout.packed([LENGTHS[0]])))).numpy())
    # One side multiplies scores by a rounded 1/sqrt(head_dim) that the other derives: a few float32 roundings.
    assert np.abs(scores[0] - scores[1]).max() <= 1e-5 and np.abs(scores[0]).max() > 0.1
    assert FAMILIES.get("minicpm").read(FAMILIES.get("minicpm").write(mini)) == mini


def test_every_registered_family_is_in_the_table() -> None:
    tiny = {kind for kind, _ in [*TINY.values(), *ENCODERS.values()]}
    assert tiny | {"microgpt", "minicpm"} == set(FAMILIES)


def test_the_page_of_families_is_that_of_its_command() -> None:
    """A line for every tiny model, and the part about GGUF files as tools/family_table.py writes it."""
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("family_table", root / "tools" / "family_table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    page = (root / "docs" / "families.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.endswith(" |")]
    assert [line[0].removeprefix("| ") for line in lines[1:]] == [*TINY, *ENCODERS]
    assert all(line[-1] == "same |" for line in lines[1:])
    assert page.endswith(table.gguf_part())


@pytest.mark.parametrize(
    ("kind", "near"), [("qwen33", "qwen3"), ("gemma3", "gemma3_text"), ("lama", "llama"), ("phi-3", "phi3")]
)
def test_an_unknown_model_type_is_refused_with_the_nearest(tmp_path: Path, kind: str, near: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigError, match=f"unknown model family '{kind}' .did you mean '{near}"):
        load_config(tmp_path)


def test_a_family_writes_what_it_can_hold_and_refuses_the_rest() -> None:
    held = 0
    for name in TINY:
        for other in sorted(set(FAMILIES) - {"microgpt"}):
            config = dataclasses.replace(config_of(name), family=other)
            try:
                values = FAMILIES.get(other).write(config)
            except ConfigError as error:
                assert f"not a {other}" in str(error) or "config.json" in str(error), (name, other)
                continue
            held += 1
            assert FAMILIES.get(other).read(values) == config
            rules = FAMILIES.get(other).rules
            assert rules is not None
            assert {part for rule in rules(config) for part in rule.parts()} == set(config.shapes()), (name, other)
    assert held > len(TINY)


BAD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -0.0, 1e308, float("inf"), float("nan"), 1e-320, "", "x",
    "relu", [], [1], [None] * 3, {}, {"a": 1}, [[[]]], "full_attention", 0.5, 3,
]  # fmt: skip


def mutant(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one to three values, at any depth, gone or replaced by something hostile."""
    made = copy.deepcopy(config)
    for _ in range(rng.randint(1, 3)):
        place, key = made, rng.choice(list(made))
        while isinstance(place[key], dict) and place[key] and rng.random() < 0.7:
            place = place[key]
            key = rng.choice(list(place))
        if isinstance(place[key], list) and place[key] and rng.random() < 0.5:
            place[key][rng.randrange(len(place[key]))] = rng.choice(BAD)
        elif rng.random() < 0.15 and len(place) > 1:
            del place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(BAD))
    return made


def read_mutants(count: int, seed: int) -> int:
    """How many are refused. Each is read or ends in a typed error."""
    rng, refused = random.Random(seed), 0
    whole = {name: FAMILIES.get(config_of(name).family).write(config_of(name)) for name in [*TINY, *ENCODERS]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys that are not understood
        for _ in range(count):
            name = rng.choice(list(whole))
            family, values = FAMILIES.get(config_of(name).family), mutant(whole[name], rng)
            try:
                config = family.read(values)
                assert config.num_parameters() > 0 and family.rules is not None and family.rules(config)
            except MicrogptError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{family.name}: {values}") from error
    return refused


def test_hostile_configurations_are_read_or_refused() -> None:
    refused = read_mutants(2000, seed=0)
    assert 600 < refused < 1900


@pytest.mark.soak
def test_many_hostile_configurations_are_read_or_refused() -> None:
    read_mutants(20_000, seed=random.SystemRandom().randrange(2**32))

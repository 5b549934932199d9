"""What every decoder variant must do, over a table of specs and over the registries.

A mixer, feed-forward, family or ready-made model that is registered and not in the tables here fails a test.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from microgpt import _kernels as k
from microgpt.autograd import no_grad
from microgpt.errors import ConfigError, ShapeError
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.models.zoo import MODELS
from microgpt.nn.block import Block
from microgpt.nn.context import Ctx, Dropout, Layout
from microgpt.nn.ffn import FFNS
from microgpt.nn.linear import Adapter, Linear
from microgpt.nn.mixers import MIXERS
from microgpt.nn.module import edit
from microgpt.nn.rope import RopeScaling, RopeSpec
from microgpt.nn.spec import AttentionSpec, BlockSpec, DifferentialSpec, GluSpec, MlpSpec, NormSpec, XieluSpec
from microgpt.ops.raw import ACTS
from microgpt.state.contiguous import ContiguousStates
from microgpt.tensor import Tensor

VOCAB, WIDTH, HEADS, HEAD_DIM, CONTEXT, TOKENS = 29, 24, 4, 6, 32, 21
RMS = NormSpec("rms", bias=False)
PLUS_ONE = NormSpec("rms", bias=False, plus_one=True)
ROPE = RopeSpec()
SCALINGS = [
    RopeScaling("linear", 2.0),
    RopeScaling("dynamic", 2.0, 16),
    RopeScaling("yarn", 4.0, 8),
    RopeScaling("longrope", 4.0, 8, short_factor=(1.0, 1.0, 1.0), long_factor=(1.0, 2.0, 4.0)),
    RopeScaling("llama3", 4.0, 8),
    RopeScaling("proportional", 2.0, share=0.7),
    RopeScaling("ntk", 4.0),
]


def variant(
    kv_heads: int = HEADS,
    ffn: Any = None,
    norm: NormSpec | None = None,
    placement: str = "pre",
    learned: bool = False,
    model: dict[str, Any] | None = None,
    block: dict[str, Any] | None = None,
    kind: type[AttentionSpec] = AttentionSpec,
    **attention: Any,
) -> ModelConfig:
    """A decoder of two blocks; `learned` positions, `attention`, `block` and `model` are fields of the specs."""
    norm = norm or NormSpec()
    mixer = kind(HEADS, HEAD_DIM, kv_heads, **attention)
    both = BlockSpec(mixer, ffn or MlpSpec(40), norm, placement, **(block or {}))
    # Weights wide enough that everything in the model matters to the logits.
    settings = {"final_norm": norm, "init_std": 0.2, **(model or {})}
    return ModelConfig(VOCAB, WIDTH, CONTEXT, (both, both), learned_positions=learned, **settings)


VARIANTS = {
    "learned": variant(learned=True),
    "rope": variant(rope=ROPE),
    "rope_interleaved": variant(rope=RopeSpec(500.0, interleaved=True)),
    "rope_partial": variant(rope=RopeSpec(100.0, dims=4)),
    **{f"rope_{scaling.kind}": variant(rope=RopeSpec(100.0, scaling=scaling)) for scaling in SCALINGS},
    "alibi": variant(alibi=True),
    "no_positions": variant(),
    "gqa": variant(kv_heads=2, rope=ROPE),
    "mqa": variant(kv_heads=1, rope=ROPE),
    "mqa_alibi": variant(kv_heads=1, alibi=True),
    "rms": variant(norm=RMS, rope=ROPE),
    "norm_without_weight": variant(norm=NormSpec("rms", weight=False, bias=False), rope=ROPE),
    "post": variant(placement="post", rope=ROPE),
    "post_rms": variant(placement="post", norm=RMS, learned=True, model={"final_norm": None}),
    "sandwich": variant(placement="sandwich", norm=RMS, rope=ROPE),
    "sandwich_layer": variant(placement="sandwich", learned=True),
    **{f"mlp_{act}": variant(ffn=MlpSpec(40, act), rope=ROPE) for act in ACTS},
    "mlp_no_bias": variant(ffn=MlpSpec(40, "gelu", bias=False), bias=False, out_bias=False, learned=True),
    "swiglu": variant(ffn=GluSpec(40), norm=RMS, rope=ROPE),
    "geglu": variant(ffn=GluSpec(40, "gelu"), rope=ROPE),
    "geglu_tanh_bias": variant(ffn=GluSpec(40, "gelu_tanh", bias=True), rope=ROPE),
    "window": variant(window=5, rope=ROPE),
    "window_1": variant(window=1, learned=True),
    "soft_cap": variant(soft_cap=2.0, rope=ROPE),
    "window_soft_cap_alibi_gqa": variant(kv_heads=2, window=6, soft_cap=3.0, alibi=True),
    "scale": variant(scale=1.0, rope=ROPE),
    "untied": variant(rope=ROPE, model={"tie_embeddings": False}),
    "head_bias": variant(rope=ROPE, model={"head_bias": True}),
    "untied_head_bias": variant(rope=ROPE, model={"tie_embeddings": False, "head_bias": True}),
    "embed_norm": variant(rope=ROPE, norm=RMS, model={"embed_norm": RMS}),
    "qk_norm": variant(rope=RopeSpec(reverse=True), qk_norm=RMS, qk_norm_last=True),
    "qk_norm_heads": variant(kv_heads=2, rope=ROPE, qk_norm=NormSpec(), qk_norm_over="heads"),
    "qk_norm_width": variant(kv_heads=2, rope=ROPE, qk_norm=PLUS_ONE, qk_norm_over="width"),
    "plus_one": variant(norm=PLUS_ONE, placement="sandwich", rope=ROPE),
    "res_post_layer_plus_one": variant(norm=NormSpec(plus_one=True), placement="res_post", rope=ROPE),
    "parallel": variant(block={"parallel": True}, rope=ROPE),
    "parallel_shared": variant(block={"parallel": True, "shared_norm": True}, rope=ROPE),
    "sinks_gate_window": variant(kv_heads=2, window=6, sinks=True, gate=True, rope=ROPE),
    "clip_temperature": variant(clip=0.7, temperature=(0.5, 4), rope=ROPE),
    "scales": variant(block={"residual_scale": 0.5}, alibi=True, alibi_scale=0.4,
                      model={"embed_scale": 3.0, "logit_scale": 0.5, "logit_soft_cap": 2.0}),
    "differential": variant(kv_heads=2, kind=DifferentialSpec, rope=ROPE),
    "xielu": variant(ffn=XieluSpec(40, bias=True), rope=ROPE),
    **{f"model_{name}": dataclasses.replace(make(VOCAB, WIDTH, 2, HEADS, CONTEXT, 0.0), init_std=0.2)
       for name, make in MODELS.items()},
}  # fmt: skip
_block = VARIANTS["gqa"].blocks[0]
_sharing = dataclasses.replace(_block, mixer=dataclasses.replace(_block.mixer, kv_from=0))
VARIANTS["shared_kv"] = dataclasses.replace(VARIANTS["gqa"], blocks=(_block, _sharing))
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())

IDS = np.random.default_rng(7).integers(0, VOCAB, TOKENS, dtype=np.int32)


def make(config: ModelConfig, dtype: str = "float32", seed: int = 3) -> Decoder:
    """A decoder whose norms and biases are not at their trivial initial values."""
    model = Decoder(config, dtype, seed)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        if parameter.std is None:
            values = parameter.numpy()
            values += rng.uniform(-0.3, 0.3, values.shape).astype(dtype)
    return model


def logits(model: Decoder, ids: npt.NDArray[np.int32], lengths: list[int] | None = None) -> npt.NDArray[Any]:
    with no_grad():
        ctx = Ctx(Layout.packed(lengths or [len(ids)]))
        return model.logits(model.hidden(k.from_numpy(ids), ctx)).numpy().copy()


def loss_of(model: Decoder, ids: npt.NDArray[np.int32], **ctx: Any) -> Tensor:
    layout = Layout.packed([len(ids) - 1])
    return model.loss(k.from_numpy(ids[:-1].copy()), k.from_numpy(ids[1:].copy()), Ctx(layout, **ctx))


# -- forward -----------------------------------------------------------
@every_variant
def test_the_future_does_not_reach_the_past(config: ModelConfig) -> None:
    model, before = make(config), logits(make(config), IDS)
    assert np.isfinite(before).all() and before.std() > 1e-3
    for place in (1, 9, TOKENS - 1):
        changed = IDS.copy()
        changed[place] = (changed[place] + 1) % VOCAB
        after = logits(model, changed)
        assert np.array_equal(after[:place], before[:place])
        assert (after[place] != before[place]).any()


@every_variant
def test_the_past_reaches_as_far_as_the_window_lets_it(config: ModelConfig) -> None:
    model, before = make(config, "float64"), logits(make(config, "float64"), IDS)
    changed = IDS.copy()
    changed[0] = (changed[0] + 1) % VOCAB
    differs = (logits(model, changed) != before).any(axis=1)
    window = config.blocks[0].mixer.window
    # Each of the two layers carries what it sees window - 1 tokens further.
    reach = TOKENS if window is None else 1 + 2 * (window - 1)
    assert differs[:reach].all()
    assert not differs[reach:].any()


@every_variant
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_incremental_decoding_is_the_whole_forward(config: ModelConfig, chunk: int) -> None:
    model = make(config)
    whole = logits(model, IDS)
    states = ContiguousStates(model.state_specs(), 1, TOKENS)
    parts = []
    for start in range(0, TOKENS, chunk):
        ids = IDS[start : start + chunk].copy()
        states.begin([len(ids)])
        with no_grad():
            layout = Layout.cached([len(ids)], states.lengths, states.rows)
            parts.append(model.logits(model.hidden(k.from_numpy(ids), Ctx(layout, states=states))).numpy().copy())
        states.commit()
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", ["rope", "mqa_alibi", "window_soft_cap_alibi_gqa", "model_gpt"])
def test_incremental_decoding_over_many_tiles(name: str) -> None:
    """Longer than the stretches of keys and rows that the kernels work in, in uneven pieces."""
    total = 333
    config = dataclasses.replace(VARIANTS[name], max_positions=total)
    ids = np.random.default_rng(1).integers(0, VOCAB, total, dtype=np.int32)
    model = make(config)
    whole = logits(model, ids)
    states = ContiguousStates(model.state_specs(), 1, total)
    parts, start = [], 0
    for size in [130, 1, 1, 63, 1, 64, 65, 1, 7]:
        piece = ids[start : start + size].copy()
        states.begin([size])
        with no_grad():
            layout = Layout.cached([size], states.lengths, states.rows)
            parts.append(model.logits(model.hidden(k.from_numpy(piece), Ctx(layout, states=states))).numpy().copy())
        states.commit()
        start += size
    assert start == total
    assert np.array_equal(np.concatenate(parts), whole)


@every_variant
def test_more_tokens_than_positions(config: ModelConfig) -> None:
    """Tables of positions end; what has no table (ALiBi, none) goes on."""
    model = make(config)
    ids = np.zeros(CONTEXT + 1, np.int32)
    limited = config.learned_positions or config.blocks[0].mixer.rope is not None
    if limited:
        with pytest.raises(ShapeError):
            logits(model, ids)
    else:
        assert np.isfinite(logits(model, ids)).all()


@every_variant
def test_packed_documents_do_not_see_each_other(config: ModelConfig) -> None:
    model = make(config)
    lengths = [5, 1, 8, 7]
    assert sum(lengths) == TOKENS
    packed = logits(model, IDS, lengths)
    starts = np.cumsum([0, *lengths])
    alone = [logits(model, IDS[a:b].copy()) for a, b in itertools.pairwise(starts)]
    assert np.array_equal(packed, np.concatenate(alone))


@every_variant
def test_any_number_of_threads_gives_the_same_bits(config: ModelConfig) -> None:
    model = make(config)
    found = []
    for threads in (1, 2, 5):
        k.set_num_threads(threads)
        model.embed.weight.zero_grad()
        for parameter in model.parameters():
            parameter.zero_grad()
        value = loss_of(model, IDS)
        value.backward()
        found.append([value.item(), *(p.grad.copy() for p in model.parameters() if p.grad is not None)])
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


# -- backward -----------------------------------------------------------
@every_variant
def test_gradients_are_those_of_the_loss(config: ModelConfig) -> None:
    """Central differences in float64. With h = 1e-5 their own error is of the order h^2 f''' + eps f / h, that is
    1e-10 + 2e-16 * 3 / 1e-5 = 1.6e-10 for derivatives of the order of one; 1e-7 leaves room for large f'''."""
    model = make(config, "float64")
    loss_of(model, IDS).backward()
    rng, h = np.random.default_rng(11), 1e-5
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        gradient, values = parameter.grad, parameter.numpy()
        assert gradient is not None and np.isfinite(gradient).all(), name
        direction = rng.standard_normal(values.shape)  # all numbers of a parameter at once
        start = values.copy()
        around = []
        for sign in (1, -1):
            values[...] = start + sign * h * direction
            with no_grad():
                around.append(loss_of(model, IDS).item())
        values[...] = start
        slope = (around[0] - around[1]) / (2 * h)
        size = max(1.0, float(np.linalg.norm(gradient) * np.linalg.norm(direction)))
        assert abs(slope - float((gradient * direction).sum())) <= 1e-7 * size, name


@every_variant
def test_every_parameter_takes_part(config: ModelConfig) -> None:
    model = make(config)
    loss_of(model, IDS).backward()
    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not np.isfinite(parameter.grad).all() or not parameter.grad.any()
    ]
    window_1 = config.blocks[0].mixer.window == 1  # softmax over one key: queries and keys do not matter
    if window_1:
        still = [name for name in still if ".mixer.q." not in name and ".mixer.k." not in name]
    elif config.blocks[0].mixer.rope is None:
        # A bias on all keys adds the same number to all scores of a query, which the softmax ignores.
        still = [name for name in still if not name.endswith(".mixer.k.bias")]
    assert still == []


@every_variant
def test_recomputed_activations_give_the_same_bits(config: ModelConfig) -> None:
    dropped = dataclasses.replace(
        config, blocks=tuple(dataclasses.replace(b, dropout=0.2) for b in config.blocks), embed_dropout=0.1
    )
    found = []
    for remat in (False, True):
        model = make(dropped)
        model.remat = remat
        step = k.from_numpy(np.array([5], np.int64))
        value = loss_of(model, IDS, dropout=Dropout(1, step))
        value.backward()
        found.append([value.item(), *(p.grad.copy() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == 1 + len(model.parameters())
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


# -- descriptions, files, weights -----------------------------------------------------------
@every_variant
def test_configuration_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@every_variant
def test_folder_round_trip(config: ModelConfig, tmp_path: Path) -> None:
    model = make(config)
    save_decoder(model, tmp_path)
    loaded = load_decoder(tmp_path)
    assert loaded.config == config
    assert np.array_equal(logits(loaded, IDS), logits(model, IDS))


@every_variant
def test_parameters_are_counted_without_building_the_model(config: ModelConfig) -> None:
    assert config.num_parameters() == make(config).num_parameters()


@every_variant
def test_stated_flops_are_the_products_of_a_forward(config: ModelConfig) -> None:
    """Counted from the shapes of all weights that multiply, and 2 products of K numbers a head and seen token."""
    model = make(config)
    weights = sum(p.size for p in model.parameters() if p.ndim == 2)
    weights += 0 if model.head is None else -model.embed.weight.size
    weights -= 0 if model.positions is None else model.positions.weight.size
    attention = 0
    for block in config.blocks:
        value = 2 if block.mixer.kind == "differential" else 1  # its width over a head's
        attention += 2 * HEADS * HEAD_DIM * (1 + value) * min(CONTEXT, block.mixer.window or CONTEXT)
    vectors = sum(p.size for p in model.parameters() if p.ndim == 1)  # norms and biases may be counted or not
    stated = model.flops_per_token(CONTEXT)
    assert 2 * weights + attention <= stated <= 2 * (weights + vectors) + attention


@every_variant
def test_stated_state_is_the_cache_that_is_kept(config: ModelConfig) -> None:
    model = make(config)
    heads = sum(block.mixer.kv_heads for block in config.blocks if block.mixer.kv_from is None)
    assert model.state_bytes_per_token() == 2 * heads * HEAD_DIM * 4  # keys and values, heads, bytes
    assert ContiguousStates(model.state_specs(), 3, 10).bytes == 30 * model.state_bytes_per_token()


# -- adapters -----------------------------------------------------------
class AddZero(Adapter):
    """Changes nothing, through both hooks."""

    def weight(self, weight: Tensor, ctx: Ctx) -> Tensor:
        return weight + 0.0

    def output(self, x: Tensor, weight: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        return y + 0.0


class Double(Adapter):
    """Twice the output."""

    def output(self, x: Tensor, weight: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        return y * 2.0


def attach(model: Decoder, where: Any, adapter: type[Adapter]) -> int:
    def add(name: str, module: Any) -> None:
        module.adapters.append(adapter())

    return edit(model, where, add)


@every_variant
def test_an_adapter_that_adds_nothing_changes_nothing(config: ModelConfig) -> None:
    """Activation and residual leave the fused product then. They round as before, so the bits are the same, but for
    activations: their fused form may differ in the last place, as test_ops bounds it, hence the tolerance there."""
    plain, adapted = make(config), make(config)
    count = attach(adapted, lambda name, module: isinstance(module, Linear), AddZero)
    assert count == sum(isinstance(module, Linear) for _, module in plain.named_modules()) > 0
    expected, got = logits(plain, IDS), logits(adapted, IDS)
    # Each of the 2 * 7 products passes on at most a few float32 roundings, relative to the logits' size.
    assert np.abs(got - expected).max() <= 14 * 8 * np.finfo(np.float32).eps * np.abs(expected).max()
    attach(adapted, ["blocks.0.mixer.v", "blocks.0.ffn.up"], Double)
    assert np.abs(logits(adapted, IDS) - expected).max() > 1e-3


def test_a_filter_without_a_match_is_a_mistake() -> None:
    model = make(VARIANTS["rope"])
    with pytest.raises(ConfigError, match="matches no module"):
        attach(model, "blocks.*.mixer.query", AddZero)
    assert attach(model, "blocks.*.mixer.[qv]", AddZero) == 4


# -- registries -----------------------------------------------------------
def test_every_mixer_and_feed_forward_is_in_the_table() -> None:
    blocks = [block for config in VARIANTS.values() for block in config.blocks]
    assert {block.mixer.kind for block in blocks} == set(MIXERS)
    assert {block.ffn.kind for block in blocks} == set(FFNS)


def test_keys_are_shared_with_an_earlier_block_that_has_them() -> None:
    config = VARIANTS["shared_kv"]
    whole = sum(p.size for p in make(VARIANTS["gqa"]).parameters())
    assert whole - make(config).num_parameters() == 2 * (WIDTH + 1) * 2 * HEAD_DIM
    first, second = config.blocks
    for blocks in (
        (second, first),
        (first, second, dataclasses.replace(second, mixer=dataclasses.replace(second.mixer, kv_from=1))),
        (first, dataclasses.replace(second, mixer=dataclasses.replace(second.mixer, kv_heads=4))),
    ):
        with pytest.raises(ConfigError, match="kv_from"):
            dataclasses.replace(config, blocks=blocks)


def test_blocks_are_built_from_the_registries() -> None:
    for config in VARIANTS.values():
        block = make(config).blocks[0]
        assert isinstance(block, Block)
        assert type(block.mixer) is MIXERS.get(config.blocks[0].mixer.kind)
        assert type(block.ffn) is FFNS.get(config.blocks[0].ffn.kind)


@pytest.mark.parametrize("name", list(MODELS))
def test_ready_made_model_says_what_is_wrong_with_its_heads(name: str) -> None:
    for heads in (5, 0, 25):
        with pytest.raises(ConfigError, match="divisor of the width 24"):
            MODELS.get(name)(VOCAB, WIDTH, 2, heads, CONTEXT, 0.0)

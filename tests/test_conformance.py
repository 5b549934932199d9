"""What every decoder variant must do, over a table of specs and over the registries.

A mixer, feed-forward, family or ready-made model that is registered and not in the tables here fails a test.
"""

from __future__ import annotations

import copy
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
from microgpt.models.presets import MODELS
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.nn.block import Block
from microgpt.nn.context import Ctx, Dropout, Layout
from microgpt.nn.ffn import FFNS
from microgpt.nn.linear import Adapter, Linear
from microgpt.nn.mixers import MIXERS
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.nn.module import edit
from microgpt.program import Program
from microgpt.state.contiguous import ContiguousStates
from microgpt.tensors import Tensor
from tests.variants import (
    CONTEXT,
    HEAD_DIM,
    IDS,
    TOKENS,
    VARIANTS,
    VOCAB,
    WIDTH,
    check_pieces,
    layers,
    learned,
    logits,
    loss_of,
    make,
    mixers,
)

every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


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
    windows = [mixer.window for mixer in mixers(config)]
    # Each layer carries what it sees window - 1 tokens further.
    reach = TOKENS if None in windows else 1 + sum(window - 1 for window in windows)
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
    check_pieces(config, np.concatenate(parts), whole)


def forward(model: Decoder, states: ContiguousStates, pieces: list[list[int]]) -> npt.NDArray[Any]:
    """Logits of the new tokens of each sequence."""
    states.begin([len(piece) for piece in pieces])
    with no_grad():
        layout = Layout.cached([len(piece) for piece in pieces], states.lengths, states.rows)
        tokens = k.from_numpy(np.array([each for piece in pieces for each in piece], np.int32))
        found = model.logits(model.hidden(tokens, Ctx(layout, states=states))).numpy().copy()
    states.commit()
    return found


@every_variant
def test_fork_and_rollback_are_as_if_the_rest_had_never_been(config: ModelConfig) -> None:
    model, ids = make(config), IDS.tolist()
    states = ContiguousStates(model.state_specs(), 3, TOKENS)
    forward(model, states, [ids[:9], ids[3:8], []])
    states.keep(0)
    states.fork(0, 2)
    after = forward(model, states, [ids[9:14], [], ids[9:14]])
    assert np.array_equal(after[:5], after[5:])
    forward(model, states, [[7, 8], [1], []])
    states.rollback(0, 9)
    again = forward(model, states, [ids[9:14], [], [4]])
    assert np.array_equal(again[:5], after[:5])
    states.rollback(1, 0)
    fresh = ContiguousStates(model.state_specs(), 1, TOKENS)
    assert np.array_equal(forward(model, states, [[], ids, []]), forward(model, fresh, [ids]))
    states.rollback(0, 0)
    assert states.lengths == [0, TOKENS, 15]
    if any(layer.fixed_state_numbers() for layer in layers(config)):
        with pytest.raises(ShapeError, match="kept its state at 0, 9, 15 tokens, not at 14"):
            states.rollback(2, 14)
        assert states.bytes > 3 * model.state_bytes(TOKENS)
        states.drop(2)
        assert states.bytes == 3 * model.state_bytes(TOKENS)


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
    limited = config.learned_positions or any(getattr(each, "rope", None) is not None for each in mixers(config))
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
def test_sequences_of_no_and_of_one_token(config: ModelConfig) -> None:
    """Packed between others, and with states: they change nothing of the others, and nothing alone is no error."""
    model = make(config)

    def packed(lengths: list[int], ids: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
        with no_grad():
            return model.logits(model.hidden(k.from_numpy(ids), Ctx(Layout.packed(lengths)))).numpy().copy()

    parts = [packed([len(ids)], ids.copy()) for ids in (IDS[:1], IDS[1:6], IDS[6:7])]
    assert np.array_equal(packed([0, 1, 5, 0, 1, 0], IDS[:7].copy()), np.concatenate(parts))
    assert packed([0, 0], IDS[:0].copy()).shape == (0, VOCAB)
    states = ContiguousStates(model.state_specs(), 2, 8)
    one, two, _, three = (forward(model, states, pieces) for pieces in ([[], [3]], [[4], []], [[], []], [[1, 2], [5]]))
    check_pieces(config, np.concatenate([two, three[:2]]), packed([3], np.array([4, 1, 2], np.int32)))
    check_pieces(config, np.concatenate([one, three[2:]]), packed([2], np.array([3, 5], np.int32)))


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
    for name, parameter in learned(model).items():
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
        for name, parameter in learned(model).items()
        if parameter.grad is None or not np.isfinite(parameter.grad).all() or not parameter.grad.any()
    ]
    first = mixers(config)[0]
    if first.window == 1:  # softmax over one key: queries and keys do not matter
        still = [name for name in still if ".mixer.q." not in name and ".mixer.k." not in name]
    elif getattr(first, "rope", None) is None:
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
    assert len(found[0]) == 1 + len(learned(model))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@every_variant
def test_replayed_steps_are_eager_steps(config: ModelConfig) -> None:
    """Ten steps of gradient descent, each over other tokens and other boundaries."""
    rows, found = 20, []
    for way in (lambda step: step, Program):
        model, layout = make(config), Layout(rows, 4)
        tokens, targets = k.empty((rows,), "int32"), k.empty((rows,), "int32")

        def step(model: Decoder = model, layout: Layout = layout, ids: Any = tokens, then: Any = targets) -> Tensor:
            for parameter in learned(model).values():
                parameter.zero_grad()
            loss = model.loss(ids, then, Ctx(layout))
            loss.backward()
            for parameter in learned(model).values():
                k.axpy(parameter.slot.array, parameter.data, -0.02, 1.0)
            return loss

        call, rng, losses = way(step), np.random.default_rng(4), []
        for _ in range(10):
            ids = rng.integers(0, VOCAB, rows + 1, dtype=np.int32)
            starts = np.sort(rng.integers(0, rows + 1, 3)).astype(np.int32)
            starts = np.concatenate([[0], starts, [rows]]).astype(np.int32)
            positions = np.concatenate([np.arange(n, dtype=np.int32) for n in np.diff(starts)])
            layout.feed(starts, positions)
            tokens.copy_from(ids[:-1])
            targets.copy_from(ids[1:])
            losses.append(call().item())
        assert len(set(losses)) == 10 and np.isfinite(losses).all()
        found.append([*losses, *(parameter.numpy().copy() for parameter in model.parameters())])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@every_variant
def test_every_instruction_set_computes_the_same(config: ModelConfig) -> None:
    """Beside float64. All of them make the same roundings but for the order of sums, so their errors are alike: none is
    four times the least, or what a rounding of the largest logit in each of 16 sums would make."""
    truth = logits(make(config, "float64"), IDS)
    errors = {}
    for isa in (name for name, supported in k.isas() if supported):
        k.set_isa(isa)
        errors[isa] = float(np.abs(logits(make(config), IDS) - truth).max())
    assert len(errors) > 1
    bound = max(4 * min(errors.values()), 16 * float(np.finfo(np.float32).eps) * float(np.abs(truth).max()))
    assert max(errors.values()) <= bound, errors


@every_variant
def test_a_copy_is_a_model_of_its_own(config: ModelConfig) -> None:
    model = make(config)
    before, other = logits(model, IDS), copy.deepcopy(model)
    assert np.array_equal(logits(other, IDS), before)
    for parameter in other.parameters():
        k.fill(parameter.data, 0.01)
    assert np.array_equal(logits(model, IDS), before)
    assert not np.array_equal(logits(other, IDS), before)


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
    weights = sum(p.size for p in model.parameters() if p.ndim >= 2)
    weights += 0 if model.head is None else -model.embed.weight.size
    weights -= 0 if model.positions is None else model.positions.weight.size
    weights -= sum(layer.idle(WIDTH) for layer in layers(config))
    own = 0
    for mixer in mixers(config):
        if isinstance(mixer, AttentionSpec):
            value = 2 if mixer.kind == "differential" else 1  # its width over a head's
            own += 2 * mixer.heads * mixer.head_dim * (1 + value) * min(CONTEXT, mixer.window or CONTEXT)
        else:
            own += mixer.flops(CONTEXT)
    vectors = sum(p.size for p in model.parameters() if p.ndim == 1)  # norms and biases may be counted or not
    stated = model.flops_per_token(CONTEXT)
    assert 2 * weights + own <= stated <= 2 * (weights + vectors) + own


@every_variant
def test_stated_state_is_what_is_kept(config: ModelConfig) -> None:
    model = make(config)
    pairs = [mixer for mixer in mixers(config) if isinstance(mixer, AttentionSpec) and mixer.kv_from is None]
    assert config.state_numbers() == sum(2 * mixer.kv_heads * mixer.head_dim for mixer in pairs)
    assert model.state_bytes(10) == 4 * (10 * config.state_numbers() + config.fixed_state_numbers())
    assert ContiguousStates(model.state_specs(), 3, 10).bytes == 3 * model.state_bytes(10)


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
    names = [name for name, module in adapted.named_modules() if isinstance(module, Linear)]
    attach(adapted, [next(name for name in names if not name.endswith((".q", ".k"))), names[-1]], Double)
    assert np.abs(logits(adapted, IDS) - expected).max() > 1e-3


def test_a_filter_without_a_match_is_a_mistake() -> None:
    model = make(VARIANTS["rope"])
    with pytest.raises(ConfigError, match="matches no module"):
        attach(model, "blocks.*.mixer.query", AddZero)
    assert attach(model, "blocks.*.mixer.[qv]", AddZero) == 4


# -- registries -----------------------------------------------------------
def test_every_mixer_and_feed_forward_is_in_the_table() -> None:
    blocks = [block for config in VARIANTS.values() for block in config.blocks]
    assert {block.mixer.kind for block in blocks if block.mixer} == set(MIXERS)
    assert {block.ffn.kind for block in blocks if block.ffn} == set(FFNS)


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
        for module, spec, registry in ((block.mixer, block.spec.mixer, MIXERS), (block.ffn, block.spec.ffn, FFNS)):
            assert module is None if spec is None else type(module) is registry.get(spec.kind)


@pytest.mark.parametrize("name", list(MODELS))
def test_ready_made_model_says_what_is_wrong_with_its_heads(name: str) -> None:
    for heads in (5, 0, 25):
        with pytest.raises(ConfigError, match="divisor of the width 24"):
            MODELS.get(name)(VOCAB, WIDTH, 2, heads, CONTEXT, 0.0)

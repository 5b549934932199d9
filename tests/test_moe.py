"""Experts beyond what op cases and conformance try: who is chosen, balance, bits, replay, files in MXFP4."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import ops
from microgpt.autograd import no_grad
from microgpt.errors import CheckpointError, ConfigError, DTypeError, FormatError, ShapeError
from microgpt.io import safetensors
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.presets import MODELS
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.nn.context import Ctx, Layout
from microgpt.nn.ffn.moe import MoeSpec
from microgpt.nn.linear import Adapter, GroupedLinear
from microgpt.nn.module import edit
from microgpt.optim import AdamW, Optimizer, decay_groups
from microgpt.program import Program
from microgpt.tensors import Tensor
from tests.variants import VARIANTS, logits, loss_of, make

ISAS = [name for name, supported in k.isas() if supported]
NAN, INF = float("nan"), float("inf")


def route(values: Any, chosen: int, **options: Any) -> list[list[int]]:
    ids = ops.route(k.from_numpy(np.array(values, np.float32)), chosen, **options).ids.numpy()
    return [list(map(int, row)) for row in ids]


# -- who is chosen -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_scores_win_and_the_first_of_equals(isa: str) -> None:
    k.set_isa(isa)
    rows = [[0.1, 0.4, 0.3], [1.0, 1.0, 1.0], [-INF, 0.0, -INF], [0.0, -0.0, 0.0]]
    for score in ("softmax", "sigmoid"):
        assert route(rows, 2, score=score) == [[1, 2], [0, 1], [1, 0], [0, 1]]
    bias = k.from_numpy(np.array([0.9, 0.0, 0.0], np.float32))
    assert route(rows[:1], 3, bias=bias) == [[0, 1, 2]]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 33)).astype(np.float32)
    assert route(x, 7) == [list(map(int, row)) for row in np.argsort(-x, axis=1, kind="stable")[:, :7]]


@pytest.mark.parametrize("isa", ISAS)
def test_nan_is_chosen_and_shows(isa: str) -> None:
    """No id out of range, no two the same, NaN in the weights and in what is made of them."""
    k.set_isa(isa)
    rows = np.array([[NAN, 1.0, 2.0], [1.0, NAN, NAN], [NAN] * 3, [INF, 1.0, NAN], [INF, INF, 0.0]], np.float32)
    for score in ("softmax", "sigmoid"):
        for bias in (None, k.from_numpy(np.array([0.1, NAN, 0.2], np.float32))):
            routing = ops.route(k.from_numpy(rows), 2, score=score, bias=bias)
            ids = routing.ids.numpy()
            assert all(len(set(row)) == 2 and 0 <= min(row) <= max(row) < 3 for row in ids.tolist())
            for renormalize in (False, True):
                weights = ops.expert_weights(
                    k.from_numpy(rows), routing.ids, score=score, renormalize=renormalize
                ).numpy()
                assert np.isnan(weights[:3]).any(axis=1).all()
            assert sorted(routing.order.numpy().tolist()) == list(range(10))
    config = VARIANTS["moe_softmax"]
    model = make(config)
    model.blocks[0].ffn.router.weight.numpy()[0] = NAN
    assert np.isnan(logits(model, np.arange(5, dtype=np.int32))).all()


def test_routing_is_refused_by_what_and_where() -> None:
    x = k.from_numpy(np.zeros((3, 4), np.float32))
    for chosen in (0, 5, -1):
        with pytest.raises(ShapeError, match="route: `chosen` expected 1 to the 4 experts"):
            ops.route(x, chosen)
    with pytest.raises(ShapeError, match=r"route: `bias` expected \(4,\), got \(3,\)"):
        ops.route(x, 1, bias=k.from_numpy(np.zeros(3, np.float32)))
    with pytest.raises(DTypeError, match="`bias` expected float32"):
        ops.route(x, 1, bias=k.from_numpy(np.zeros(4)))
    with pytest.raises(ShapeError, match=r"two axes .*got \(3, 0\)"):
        ops.route(k.from_numpy(np.zeros((3, 0), np.float32)), 1)
    with pytest.raises(ShapeError, match=r"`ids` must be in \[0, 4\), got 4 at position 1"):
        ops.sort_experts(k.from_numpy(np.array([[0, 4]], np.int32)), 4)
    for wrong in ({"experts": 0}, {"chosen": 5}, {"chosen": 0}, {"shared_gate": True}, {"balance_rate": 0.1},
                  {"score": "tanh"}, {"limit": -1.0}, {"width": 0}):  # fmt: skip
        with pytest.raises(ConfigError):
            dataclasses.replace(MoeSpec(4, 8, 2), **wrong)


def test_no_tokens() -> None:
    routing = ops.route(k.from_numpy(np.zeros((0, 4), np.float32)), 2)
    assert routing.offsets.numpy().tolist() == [0] * 5
    assert ops.gather_rows(k.from_numpy(np.zeros((0, 8), np.float32)), routing.order, routing.place).shape == (0, 8)


def test_a_thousand_random_choices_against_numpy() -> None:
    """The whole layer, step by step in float64."""
    rng = np.random.default_rng(1)
    for _ in range(1000):
        tokens, experts = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        chosen, width, inner = int(rng.integers(1, experts + 1)), int(rng.integers(1, 6)), int(rng.integers(1, 6))
        x, scores = rng.standard_normal((tokens, width)), rng.standard_normal((tokens, experts))
        weight = rng.standard_normal((experts, inner, width))
        routing = ops.route(k.from_numpy(scores), chosen)
        weights = ops.expert_weights(k.from_numpy(scores), routing.ids)
        rows = ops.gather_rows(k.from_numpy(x), routing.order, routing.place)
        out = ops.grouped_linear(rows, k.from_numpy(weight), None, routing.offsets)
        got = ops.combine_rows(out, weights, None, routing.order, routing.place).numpy()
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        want = np.zeros((tokens, inner))
        for t in range(tokens):
            for e in np.argsort(-scores[t], kind="stable")[:chosen]:
                want[t] += p[t, e] * (weight[e] @ x[t])
        assert np.abs(got - want).max() <= 1e-13 * max(1.0, float(np.abs(want).max()))


# -- products ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_among_any_others(isa: str, dtype: str) -> None:
    """However many rows its expert has, and in whichever place: also those of the plain product with that weight."""
    k.set_isa(isa)
    rng = np.random.default_rng(3)

    def array(*shape: int) -> k.Array:
        made = k.from_numpy(rng.standard_normal(shape).astype(np.float32))
        return made if dtype == "float32" else ops.cast(made, dtype).data

    for n, inner in ((65, 600), (300, 33), (31, 1025)):
        weight, rows = array(3, n, inner), array(700, inner)
        alone = [ops.linear(rows, weight.view((n, inner), e * n * inner)).numpy() for e in range(3)]
        for counts in ((700, 0, 0), (1, 698, 1), (0, 13, 687), (300, 257, 143), (11, 500, 189)):
            offsets = k.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
            got = ops.grouped_linear(rows, weight, None, offsets).numpy()
            ends = offsets.numpy()
            for e in range(3):
                assert np.array_equal(got[ends[e] : ends[e + 1]], alone[e][ends[e] : ends[e + 1]])


class Halve(Adapter):
    """Half the weight, through the hook of weights; twice the output."""

    def weight(self, weight: Tensor, ctx: Ctx) -> Tensor:
        return weight * 0.5

    def output(self, x: Tensor, weight: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        return y * 2.0


def test_adapters_see_the_weights_of_all_experts() -> None:
    model, ids = make(VARIANTS["moe_softmax"]), np.arange(9, dtype=np.int32)
    before = logits(model, ids)
    found = edit(
        model, lambda name, module: isinstance(module, GroupedLinear), lambda name, m: m.adapters.append(Halve())
    )
    assert found == 6
    assert np.array_equal(logits(model, ids), before)  # powers of two round nothing


# -- balance -------------------------------------------------------------------------------------------------------
def test_the_loss_of_balance_is_that_of_all_layers_together() -> None:
    config = VARIANTS["moe_one"]
    model, ids = make(config, "float64"), np.arange(20, dtype=np.int32)
    ctx = Ctx(Layout.packed([20]))
    model.hidden(k.from_numpy(ids), ctx)
    assert len(ctx.aux) == 2
    got = ctx.aux_loss()
    assert got is not None
    load = sum(term.load.numpy() for term in ctx.aux)
    scores = sum(term.scores.numpy() for term in ctx.aux)
    assert load.sum() == 40 and abs(scores.sum() - 40) < 1e-12
    assert abs(got.item() - 0.01 * 4 * float((load / 40 * scores / 40).sum())) <= 1e-15
    with no_grad():
        other = Ctx(Layout.packed([20]))
        model.hidden(k.from_numpy(ids), other)
        assert other.aux == [] and other.aux_loss() is None
    # Its gradient: central differences of the sum, through the scores alone.
    loss = model.loss(k.from_numpy(ids[:-1].copy()), k.from_numpy(ids[1:].copy()), ctx := Ctx(Layout.packed([19])))
    (loss + ctx.aux_loss() * 100.0).backward()
    router = model.blocks[1].ffn.router.weight
    direction, h = np.random.default_rng(0).standard_normal(router.shape), 1e-5
    start, around = router.numpy().copy(), []
    for sign in (1, -1):
        router.numpy()[...] = start + sign * h * direction
        ctx = Ctx(Layout.packed([19]))
        loss = model.loss(k.from_numpy(ids[:-1].copy()), k.from_numpy(ids[1:].copy()), ctx)
        around.append((loss + ctx.aux_loss() * 100.0).item())
    slope = (around[0] - around[1]) / (2 * h)
    assert abs(slope - float((router.grad * direction).sum())) <= 1e-7 * np.linalg.norm(router.grad) * 20


@pytest.mark.parametrize("way", ["eager", "replayed", "recomputed"])
def test_the_bias_moves_towards_idle_experts(way: str) -> None:
    """Algorithm 1 of arXiv:2408.15664, by hand; and a step whose loss is not finite moves nothing."""
    model = make(VARIANTS["moe_sigmoid"])
    model.remat = way == "recomputed"
    optimizer = Optimizer(model, AdamW(0.9, 0.95, 1e-8), decay_groups(0.0))
    moe = model.blocks[0].ffn
    assert "blocks.0.ffn.balance" in model.arrays() and moe.balance.grad is None
    tokens, targets, layout = k.empty((30,), "int32"), k.empty((30,), "int32"), Layout.packed([30])
    loads: list[Any] = []

    def step() -> Tensor:
        loss = model.loss(tokens, targets, Ctx(layout))
        loss.backward()
        loads[:] = [moe._load.data]
        optimizer.launch(loss)
        return loss

    call, rng = Program(step) if way == "replayed" else step, np.random.default_rng(5)
    for number in range(1, 6):
        ids = rng.integers(0, 29, 31, dtype=np.int32)
        tokens.copy_from(ids[:-1])
        targets.copy_from(ids[1:])
        with no_grad():
            before = moe.balance.numpy().copy()
            x = model.embed(tokens)
            x = model.blocks[0]._half(x, model.blocks[0].mixer, model.blocks[0].mixer_norm, None, Ctx(layout), 0)
            scores = moe.router(model.blocks[0].ffn_norm(x), Ctx(layout))
            load = ops.route(scores, 2, "sigmoid", moe.balance.data).load.numpy().copy()
        optimizer.feed(number, 1e-3)
        call()
        assert load.sum() == 60
        want = before + np.float32(1e-3) * np.sign(load.mean() - load).astype(np.float32)
        assert np.array_equal(moe.balance.numpy(), want)
    assert not moe._load.numpy().any()
    model.embed.weight.numpy()[...] = NAN
    before = moe.balance.numpy().copy()
    optimizer.feed(6, 1e-3)
    call()
    assert not optimizer.finite() and np.array_equal(moe.balance.numpy(), before)


def test_the_preset_trains_and_its_experts_stay_busy(tmp_path: Path) -> None:
    import microgpt

    run = microgpt.train(data="names", steps=30, out=tmp_path / "run", layers=1, width=32, heads=2, model="moe")
    assert run.steps == 30
    model = load_decoder(tmp_path / "run" / "step-30")
    assert model.config.family == "mixtral" and model.config.blocks[0].ffn.experts == 4


def test_flops_are_those_of_the_experts_at_work() -> None:
    config: ModelConfig = MODELS.get("moe")(256, 64, 2, 4, 32, 0.0)
    spec = config.blocks[0].ffn
    one = 3 * 64 * spec.width
    assert spec.idle(64) == 2 * one
    dense = dataclasses.replace(config, blocks=tuple(dataclasses.replace(
        block, ffn=dataclasses.replace(block.ffn, chosen=4)) for block in config.blocks))  # fmt: skip
    assert dense.flops_per_token(8) - config.flops_per_token(8) == 2 * 2 * 2 * one


# -- files ---------------------------------------------------------------------------------------------------------
OSS = {
    "vocab_size": 31, "max_position_embeddings": 32, "hidden_size": 64, "intermediate_size": 32, "head_dim": 8,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3,
    "num_experts_per_tok": 2,
}  # fmt: skip
TABLE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def in_mxfp4(folder: Path) -> dict[str, np.ndarray]:
    """A gpt-oss folder whose experts are MXFP4, as OpenAI's is; returns their matrices (experts, in, out)."""
    save_decoder(Decoder(FAMILIES.get("gpt_oss").read(OSS), seed=1), folder)
    path, rng, meant = folder / "model.safetensors", np.random.default_rng(2), {}
    arrays = {name: stored.array().copy() for name, stored in safetensors.open_weights(path).items()}
    for name in [name for name in arrays if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = arrays.pop(name).shape
        codes = rng.integers(0, 16, (experts, outputs, inputs // 32, 32), dtype=np.uint8)
        scales = rng.integers(120, 126, codes.shape[:3], dtype=np.uint8)
        arrays[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        arrays[f"{name}_scales"] = scales
        values = TABLE[codes] * (2.0 ** (scales.astype(np.float32) - 127.0))[..., None]
        meant[name] = values.reshape(experts, outputs, inputs).swapaxes(1, 2)
    path.unlink()
    safetensors.save(path, arrays, {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": {"quant_method": "mxfp4"}}))
    return meant


def test_experts_in_mxfp4_are_read(tmp_path: Path) -> None:
    meant = in_mxfp4(tmp_path)
    model = load_decoder(tmp_path)
    for i, block in enumerate(model.blocks):
        name = f"model.layers.{i}.mlp.experts"
        gate_up, down = meant[f"{name}.gate_up_proj"], meant[f"{name}.down_proj"]
        assert np.array_equal(block.ffn.gate.weight.numpy(), gate_up[:, :, ::2].swapaxes(1, 2))
        assert np.array_equal(block.ffn.up.weight.numpy(), gate_up[:, :, 1::2].swapaxes(1, 2))
        assert np.array_equal(block.ffn.down.weight.numpy(), down.swapaxes(1, 2))


def test_experts_in_mxfp4_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    in_mxfp4(tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = {name: stored.array().copy() for name, stored in safetensors.open_weights(path).items()}
    first = "model.layers.0.mlp.experts.gate_up_proj"

    def changed(**others: Any) -> None:
        made = {**arrays, **{f"{first}_{part}": value for part, value in others.items()}}
        path.unlink()
        safetensors.save(path, {name: value for name, value in made.items() if value is not None}, {"format": "pt"})
        load_decoder(tmp_path)

    with pytest.raises(FormatError, match="gate_up_proj expected blocks and scales"):
        changed(scales=None)
    with pytest.raises(FormatError, match=r"gate_up_proj: expected blocks .*got uint8 \(3, 64, 2, 8\)"):
        changed(blocks=arrays[f"{first}_blocks"][..., :8].copy())
    with pytest.raises(FormatError, match=r"gate_up_proj: expected blocks .*uint8 \(3, 64, 1\)"):
        changed(scales=arrays[f"{first}_scales"][..., :1].copy())
    with pytest.raises(CheckpointError, match=r"gate_up_proj expected \(3, 64, 64\), got \(3, 64, 62\)"):
        changed(blocks=arrays[f"{first}_blocks"][:, :62].copy(), scales=arrays[f"{first}_scales"][:, :62].copy())


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "lfm2_moe"])
def test_counts_of_experts_that_cannot_be(kind: str) -> None:
    family = FAMILIES.get(kind)
    key = family.keys["ffn.experts"]
    for value in (0, -1, 2**40):
        with pytest.raises(ConfigError):
            family.read({key: value})
    for value in (0, 10**6):
        with pytest.raises(ConfigError, match="chosen"):
            family.read({"num_experts_per_tok": value})


def test_losses_with_and_without_recomputation() -> None:
    """A layer that adds to the loss is kept whole; the others are computed again."""
    for name in ("moe_one", "moe_shared"):
        found = []
        for remat in (False, True):
            model = make(VARIANTS[name])
            model.remat = remat
            value = loss_of(model, np.arange(20, dtype=np.int32))
            value.backward()
            found.append([value.item(), *(p.grad.copy() for p in model.parameters())])
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))

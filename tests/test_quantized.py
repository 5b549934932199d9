"""Quantized weights: products, gradients through them, models rounded while loading, saved and read again, errors."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt import ops
from microgpt.api import LanguageModel
from microgpt.engine.generate import forward_cached
from microgpt.engine.step import Steps
from microgpt.errors import ConfigError, FormatError, NonFiniteError, ShapeError, UsageError
from microgpt.io import ggml, ggml_quantize
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import open_checkpoint, take
from microgpt.models.quantized import Report, places, weights_of
from microgpt.nn.ffn.mlp import GluSpec
from microgpt.nn.linear import Linear, project
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.nn.rope import RopeSpec
from microgpt.nn.spec import BlockSpec, NormSpec
from microgpt.optim import Optimizer
from microgpt.optim.groups import named_groups
from microgpt.optim.rules import AdamW
from microgpt.qtensor import Q_TYPES, QTensor
from microgpt.state.contiguous import ContiguousStates
from microgpt.tensors import Room, Tensor, numpy_dtype, tensor
from microgpt.tokenizers.char import CharTokenizer
from tests.tiny_families import BASE

TYPES = sorted(name for name, row in Q_TYPES.items() if row.rounds)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small(tied: bool = True, dtype: str = "float32") -> Decoder:
    rms = NormSpec("rms", bias=False)
    block = BlockSpec(AttentionSpec(4, 12, 2, rope=RopeSpec()), GluSpec(80), rms)
    config = ModelConfig(70, 48, 64, (block, block), learned_positions=False, final_norm=rms, tie_embeddings=tied,
                         init_std=0.2)  # fmt: skip
    return Decoder(config, dtype, seed=3)


def model_of(decoder: Decoder) -> LanguageModel:
    return LanguageModel(decoder, CharTokenizer("abcdefgh \n"))


# -- products --------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("type", TYPES)
def test_the_numbers_of_a_weight_times_the_activations(type: str, dtype: str):
    q = QTensor.from_float(numbers(333, 100), type, dtype=dtype)
    q.activations = "float"
    x, bias, residual = (tensor(numbers(*s, seed=i).astype(numpy_dtype(dtype))) for i, s in
                         enumerate([(5, 100), (333,), (5, 333)], 1))  # fmt: skip
    right = ops.linear(x, tensor(q.dequantize(dtype=dtype)), bias, residual, "silu")
    assert np.array_equal(ops.linear(x, q, bias, residual, "silu").numpy(), right.numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("type", TYPES)
def test_activations_are_rounded_to_a_254th_of_their_largest(type: str, dtype: str):
    q = QTensor.from_float(numbers(70, 200), type)
    x = tensor(numbers(9, 200, seed=1).astype(numpy_dtype(dtype)))
    y = ops.linear(x, q, wide_out=True).numpy().astype(np.float64)
    w, values = q.dequantize().astype(np.float64), x.numpy().astype(np.float64)
    group = q.group
    most = np.stack([np.abs(values[:, g : g + group]).max(1) for g in range(0, 200, group)], 1)
    weight = np.stack([np.abs(w[:, g : g + group]).sum(1) for g in range(0, 200, group)], 1)
    # Half a step of each activation, and the float32 sums.
    bound = (most / 254) @ weight.T * (1 + 1e-5) + 1e-5
    assert (np.abs(y - values @ w.T) <= bound).all()


@pytest.mark.parametrize("type", TYPES)
def test_a_row_has_the_same_bits_alone_on_any_number_of_threads(type: str):
    q = QTensor.from_float(numbers(500, 300), type)
    x = numbers(31, 300, seed=1)
    together = ops.linear(tensor(x), q).numpy().copy()
    k.set_num_threads(1)
    for row in range(31):
        assert np.array_equal(ops.linear(tensor(x[row : row + 1]), q).numpy()[0], together[row])


@pytest.mark.parametrize("group", [32, 48])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("isa", [name for name, supported in k.isas() if supported])
def test_whole_panels_and_the_last_one_have_the_same_bits(isa: str, type: str, dtype: str, group: int):
    k.set_isa(isa)
    w, bias, residual = numbers(32, 96), numbers(32, seed=1), numbers(15, 32, seed=2)
    q = QTensor.from_float(np.concatenate([w, w[:9]]), type, group, dtype)  # 32 columns, and 9 of them once more
    x, added, start = (
        tensor(each.astype(numpy_dtype(dtype)))
        for each in (numbers(15, 96, seed=3), np.append(bias, bias[:9]), np.append(residual, residual[:, :9], axis=1))
    )
    small = tensor(x.numpy() * x.numpy().dtype.type(1e-36))  # with results that are denormal
    for y in (ops.linear(x, q, added, start), ops.linear(x, q), ops.linear(small, q)):
        assert np.array_equal(y.numpy()[:, 32:], y.numpy()[:, :9])
        assert np.abs(y.numpy().astype(np.float64)).max() > 0.0


@pytest.mark.parametrize("act", ["none", "silu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_go_through_a_weight(dtype: str, act: str):
    q = QTensor.from_float(numbers(600, 100), "int4", dtype=dtype)
    gradients = []
    for weight in (q, tensor(q.dequantize(dtype=dtype))):
        x = tensor(numbers(5, 100, seed=1).astype(dtype), requires_grad=True)
        (ops.linear(x, weight, act=act) * 2.0).sum().backward()
        gradients.append(x.grad.copy())
    assert np.array_equal(*gradients)


def test_gradients_of_bfloat16_are_summed_in_float32():
    q = QTensor.from_float(numbers(9000, 64), "int8", dtype="bfloat16")  # several pieces
    x = tensor(numbers(3, 64, seed=1).astype(numpy_dtype("bfloat16")), requires_grad=True)
    ops.linear(x, q).sum().backward()
    right = q.dequantize(dtype="bfloat16").astype(np.float64).sum(0)
    assert np.abs(x.grad.astype(np.float64) - right).max() <= 2.0**-8 * np.abs(right).max() + 1e-3


def test_projections_share_their_rounded_activations():
    linears = [Linear(64, n) for n in (64, 32, 40)]
    for linear in linears:
        linear.weight = QTensor.from_float(linear.weight.numpy() + numbers(*linear.weight.shape), "int4")
    x = tensor(numbers(3, 64))
    program = k.Program()
    program.begin()
    together = project(x, None, linears)
    program.end()
    assert program.names().count("qrows") == 1
    for y, linear in zip(together, linears, strict=True):
        assert np.array_equal(y.numpy(), linear(x, None).numpy())


def test_embeddings_read_rows():
    q = QTensor.from_float(numbers(50, 40), "int8", dtype="bfloat16")
    ids = k.from_numpy(np.array([3, 49, 0, 3], np.int32))
    y = ops.embedding(q, ids)
    assert y.dtype == "bfloat16"
    assert np.array_equal(y.numpy(), q.dequantize(dtype="bfloat16")[[3, 49, 0, 3]])


# -- rounding --------------------------------------------------------------
def test_the_search_for_scales_beats_the_largest_weight():
    w = numbers(256, 512)
    groups = w.reshape(-1, 32)
    scale = np.take_along_axis(groups, np.abs(groups).argmax(axis=1, keepdims=True), axis=1) / -8
    plain = (scale * np.clip(np.rint(groups / scale), -8, 7)).reshape(w.shape)
    error = [float(((q - w) ** 2).mean()) for q in (QTensor.from_float(w, "int4").dequantize(), plain)]
    assert error[0] < 0.9 * error[1]


@pytest.mark.parametrize("group", [16, 24, 64, 256])
def test_groups_and_their_tails(group: int):
    w = numbers(40, 300)
    q = QTensor.from_float(w, "int4", group)
    for start in range(0, 300, group):
        part = QTensor.from_float(w[:, start : start + group], "int4", group)
        assert np.array_equal(q.dequantize()[:, start : start + group], part.dequantize())


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_blocks_of_gguf_are_taken_as_they_are(kind: str):
    w = numbers(70, 96)
    raw = ggml_quantize.quantize(w, ggml.NAMED[kind]).reshape(70, -1)
    q = QTensor.from_ggml(kind, lambda start, stop: raw[start:stop], w.shape)
    assert np.array_equal(q.dequantize(), ggml.dequantize(raw.reshape(-1), ggml.NAMED[kind], w.shape))


def test_what_cannot_be_rounded_is_named():
    w = numbers(4, 32)
    w[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"blocks\.0"):
        QTensor.from_float(w, what="blocks.0")
    with pytest.raises(NonFiniteError, match="fit int4"):
        QTensor.from_float(np.full((4, 32), 1e7, np.float32))
    with pytest.raises(ConfigError, match="int4"):
        QTensor((4, 32), "int5")
    for group in (0, 8, 20, 512):
        with pytest.raises(ConfigError, match="multiple of 8 from 16 to 256"):
            QTensor((4, 32), "int4", group)
    with pytest.raises(ShapeError):
        QTensor((4, 0))
    with pytest.raises(ShapeError, match="below 16"):
        QTensor.from_codes(np.full((4, 32), 16, np.uint8), np.ones((4, 1), np.float32), "int4")


# -- models ----------------------------------------------------------------
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_while_loading_saving_and_reading_again(tmp_path: Path, tied: bool, dtype: str):
    original = model_of(small(tied, dtype))
    original.save(tmp_path / "original")
    report = Report()
    loaded = microgpt.load(tmp_path / "original", quantize="int4", report=report)
    found = weights_of(loaded.decoder)
    assert set(found) == set(places(loaded.decoder)) == set(report.weights)
    assert {w.type.name for name, w in found.items() if name not in ("embed.weight", "head")} == {"int4"}
    assert loaded.decoder.dtype == dtype
    assert 0.02 < report.relative_error < 0.1
    in_place = model_of(small(tied, dtype))
    assert microgpt.quantize(in_place, 4).relative_error == pytest.approx(report.relative_error)
    ids = [1, 5, 2, 9, 3, 3]
    logits = loaded.logits(ids)
    assert np.array_equal(in_place.logits(ids), logits)
    loaded.save(tmp_path / "saved")
    again = microgpt.load(tmp_path / "saved")
    assert again.decoder.dtype == dtype
    assert np.array_equal(again.logits(ids), logits)
    with pytest.raises(ConfigError, match="quantized already"):
        microgpt.load(tmp_path / "saved", quantize="int8")


def test_a_quantized_model_is_close_to_its_original():
    original, eight = model_of(small()), model_of(small())
    microgpt.quantize(eight, 8)
    text = "abc defg hhab\nfed cab " * 8
    score = eight.perplexity(text, 32, original)
    assert len(original.tokenizer.encode(text, add_bos=True)) == 177
    assert score.tokens == 5 * 31 + 16  # the first of each piece is not predicted
    assert score.divergence is not None and 0 < score.divergence < 1e-3
    assert score.agreement is not None and score.agreement > 0.95
    assert score.loss == pytest.approx(original.perplexity(text, 32).loss, abs=0.02)
    assert original.perplexity(text, 32, original).divergence == 0.0


def test_damaged_folders_are_refused(tmp_path: Path):
    model = model_of(small())
    microgpt.quantize(model)
    model.save(tmp_path)
    good = json.loads((tmp_path / "config.json").read_text())

    def change(**values: object) -> None:
        bad = json.loads(json.dumps(good))
        bad["quantized"].update(values)
        (tmp_path / "config.json").write_text(json.dumps(bad))

    rows = good["quantized"]["weights"]
    name = "blocks.0.ffn.up.weight"
    for bad in ({"layout": 2}, {"dtype": "int4"}, {"weights": []}, {"weights": {**rows, name: ["int4", 32, 80]}},
                {"weights": {**rows, name: ["int9", 32, 80, 48]}}, {"weights": {**rows, name: ["int4", 31, 80, 48]}},
                {"weights": {**rows, name: ["int8", 32, 80, 48]}}):  # fmt: skip
        change(**bad)
        with pytest.raises(FormatError):
            microgpt.load(tmp_path)
    change(weights={**rows, name: ["int4", 32, 96, 48]})
    with pytest.raises(microgpt.MicrogptError, match=r"ffn\.up"):
        microgpt.load(tmp_path)
    change(weights={**rows, "norm.weight": ["int4", 32, 1, 48]})
    with pytest.raises(microgpt.MicrogptError, match=r"norm\.weight"):
        microgpt.load(tmp_path)


def test_training_a_quantized_model_says_to_use_an_adapter():
    decoder = small()
    microgpt.quantize(model_of(decoder))
    with pytest.raises(UsageError, match="adapter"):
        Optimizer(decoder, AdamW(), named_groups(decoder, 0.1, []))
    with pytest.raises(UsageError, match="adapter"):
        decoder.embed.weight.requires_grad = True


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k", "q6_k"])
def test_gguf_blocks_stay_quantized(tmp_path: Path, kind: str):
    width = 256 if kind.endswith("_k") else 64
    values = {
        **BASE,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
    }  # rows of q and k are reordered
    model = LanguageModel(Decoder(FAMILIES.get("llama").read(values), seed=1), CharTokenizer("abcdefgh \n"))
    path = tmp_path / f"{kind}.gguf"
    model.export(path, type=kind)
    wide = take(open_checkpoint(path))
    kept = take(open_checkpoint(path), keep=True)
    found = weights_of(kept)
    assert len(found) > 6
    values_of = dict(wide.named_parameters())
    for name, weight in found.items():
        assert np.array_equal(weight.dequantize(), values_of[name].numpy()), name
        weight.activations = "float"
    ids = [1, 5, 2, 9, 3]
    logits = LanguageModel(kept, model.tokenizer).logits(ids)
    assert np.array_equal(logits, LanguageModel(wide, model.tokenizer).logits(ids))
    for weight in found.values():
        weight.activations = "int8"
    rounded = LanguageModel(kept, model.tokenizer)
    assert np.abs(rounded.logits(ids) - logits).max() < 0.02 * np.abs(logits).max()
    rounded.save(tmp_path / "saved")
    again = microgpt.load(tmp_path / "saved")
    assert np.array_equal(again.logits(ids), rounded.logits(ids))


def test_peak_memory_of_rounding_while_loading(tmp_path: Path):
    rms = NormSpec("rms", bias=False)
    block = BlockSpec(AttentionSpec(8, 64, 8, rope=RopeSpec()), GluSpec(1536), rms)
    config = ModelConfig(8192, 512, 64, (block,) * 10, learned_positions=False, final_norm=rms, tie_embeddings=True)
    LanguageModel(Decoder(config, "bfloat16", seed=1), CharTokenizer("ab")).save(tmp_path)
    code = (
        "import resource, sys, microgpt, microgpt.models.quantized as q\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = microgpt.load(sys.argv[1], quantize='int4')\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(used * 1024, sum(w.nbytes for w in q.weights_of(model.decoder).values()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
                          env={**os.environ, "MICROGPT_NUM_THREADS": "1"})  # fmt: skip
    used, weights = map(int, done.stdout.split())
    assert used <= 1.1 * weights + 60e6, (used, weights)  # the model in bfloat16 would take 76 MB beside them


# -- steps -----------------------------------------------------------------
@pytest.mark.parametrize("bits", [None, 4])
def test_recorded_steps_have_the_bits_of_eager_ones(bits: int | None, monkeypatch: pytest.MonkeyPatch):
    decoder = small()
    if bits:
        microgpt.quantize(model_of(decoder), bits)
    prompts = [[1, 2, 3], [4], [5, 6]]
    results = []
    for recorded in (True, False):
        states = ContiguousStates(decoder.state_specs(), 3, 20)
        forward_cached(decoder, prompts, states)
        steps = Steps(decoder, states)
        found = []
        for rows in ([0, 1, 2], [0, 1, 2], [0, 2], [2], [1, 2], [0, 1, 2]):
            tokens = [7 + row for row in rows]
            if recorded:
                found.append(steps.run(rows, tokens).copy())
            else:
                fresh: list[list[int]] = [[], [], []]
                for row, token in zip(rows, tokens, strict=True):
                    fresh[row] = [token]
                found.append(forward_cached(decoder, fresh, states).copy())
        results.append((found, list(states.lengths)))
    assert results[0][1] == results[1][1] == [7, 5, 8]
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert np.array_equal(a, b)


def test_steps_are_gone_with_their_last_user():
    decoder = small()
    states = ContiguousStates(decoder.state_specs(), 1, 8)
    forward_cached(decoder, [[1, 2]], states)
    steps = Steps(decoder, states)
    steps.run([0], [1])
    gone = weakref.ref(states)
    gc.disable()
    try:
        del steps, states
        assert gone() is None  # without a collection
    finally:
        gc.enable()


def test_a_full_cache_is_an_error():
    decoder = small()
    states = ContiguousStates(decoder.state_specs(), 1, 3)
    forward_cached(decoder, [[1, 2]], states)
    steps = Steps(decoder, states)
    steps.run([0], [1])
    with pytest.raises(ShapeError, match="cache holds 3"):
        steps.run([0], [1])


def test_wrong_sizes_never_reach_the_kernels():
    q = QTensor.from_float(numbers(40, 64), "int4")
    with pytest.raises(ShapeError):
        ops.linear(tensor(numbers(2, 63)), q)
    with pytest.raises(ShapeError):
        ops.linear(tensor(numbers(2, 64)), q, tensor(numbers(41)))
    with pytest.raises(ShapeError):
        k.q_dequantize(q.data, k.empty((2, 64)), 2, 40, 64, 32, first=39)
    with pytest.raises(ShapeError):
        k.q_dequantize(q.data, k.empty((2, 64)), 2, 400, 64, 32)
    with pytest.raises(ShapeError):
        k.put_rows(k.empty((2, 8)), k.from_numpy(np.array([0, 1], np.int32)), k.empty((3, 7)))
    assert isinstance(ops.linear(tensor(numbers(0, 64)), q), Tensor)


def test_pieces_of_a_room_do_not_overlap():
    room = Room("uint8")
    pieces = [room.take((size,)) for size in (1 << 16, (1 << 16) + 1, 100, 1 << 22, 3 << 20, *[1 << 21] * 20)]
    for number, piece in enumerate(pieces):
        piece.numpy()[:] = number
    for number, piece in enumerate(pieces):
        assert (piece.numpy() == number).all()
        assert piece.numpy().ctypes.data % 64 == 0

"""Experts whose weights are quantized: products with the bits of plain ones, gradients, models rounded, kept, saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt import ops
from microgpt.api import LanguageModel
from microgpt.autograd import no_grad
from microgpt.engine.generate import forward_cached
from microgpt.engine.step import Steps
from microgpt.errors import ConfigError, FormatError, NonFiniteError, ShapeError
from microgpt.io import ggml, safetensors
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.gguf import save_gguf
from microgpt.models.kept import from_packed, kept_bytes
from microgpt.models.presets import MODELS
from microgpt.models.pretrained import open_checkpoint, take
from microgpt.models.quantized import Report, Scheme, places, quantize_decoder, weights_of
from microgpt.nn.context import Ctx, Layout
from microgpt.nn.ffn.moe import Moe
from microgpt.nn.linear import Adapter, GroupedLinear
from microgpt.program import Program
from microgpt.qtensor import GGUF_TYPES, Q_TYPES, QTensor
from microgpt.quantization.quantize import LEAST_ROWS, quantize_calibrated
from microgpt.state.contiguous import ContiguousStates
from microgpt.tensors import Tensor, numpy_dtype, tensor
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.ids import IdsTokenizer
from tests import packed_tools
from tests.cli_tools import run
from tests.test_moe import in_mxfp4
from tests.test_qtypes import blocks, made
from tests.variants import IDS, VARIANTS, logits, make

ISAS = [name for name, supported in k.isas() if supported]
MOE = [name for name in VARIANTS if name.startswith("moe_")]
COUNTS = ([5, 0, 13, 1, 32], [0, 0, 0, 51, 0], [51, 0, 0, 0, 0])
EXPERTS, ROWS = 5, 51


def numbers(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(numpy_dtype(dtype))


def stacked(name: str, n: int, inner: int, count: int = EXPERTS, dtype: str = "float32") -> QTensor:
    """A weight of any type, each expert another."""
    parts = [made(name, n, inner, seed, dtype=dtype) for seed in range(count)]
    whole = QTensor((count, n, inner), name, parts[0].group, dtype)
    for e, part in enumerate(parts):
        whole.place(e).take(part.data.shape).copy_from(part.data.numpy())
    return whole


def offsets_of(counts: list[int]) -> Any:
    return k.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


# -- products ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", Q_TYPES)
def test_each_experts_rows_have_the_bits_of_a_plain_product(name: str, dtype: str) -> None:
    n, inner = 70, 512 if Q_TYPES[name].fixed == 256 else 160
    q, x, bias = stacked(name, n, inner, dtype=dtype), numbers(ROWS, inner, seed=1, dtype=dtype), numbers(EXPERTS, n)
    bias = bias.astype(numpy_dtype(dtype))
    for activations in ("int8", "float"):
        q.activations = activations
        for counts in COUNTS:
            found = ops.grouped_linear(tensor(x), q, tensor(bias), offsets_of(counts)).numpy()
            first = 0
            for e, (count, part) in enumerate(zip(counts, q.matrices(), strict=True)):
                assert part.activations == activations
                if count:
                    rows = slice(first, first + count)
                    right = ops.linear(tensor(x[rows]), part, tensor(bias[e])).numpy()
                    assert np.array_equal(found[rows], right), (activations, counts, e)
                first += count


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set_and_number_of_threads(isa: str) -> None:
    k.set_isa(isa)
    q, x = QTensor.from_float(numbers(EXPERTS, 300, 200), "int4"), numbers(ROWS, 200, seed=1)
    offsets = offsets_of(COUNTS[0])
    together = ops.grouped_linear(tensor(x), q, None, offsets).numpy().copy()
    k.set_num_threads(1)
    assert np.array_equal(ops.grouped_linear(tensor(x), q, None, offsets).numpy(), together)
    right = [ops.linear(tensor(x[a:b]), part).numpy() for part, a, b in
             zip(q.matrices(), offsets.numpy()[:-1], offsets.numpy()[1:], strict=True) if b > a]  # fmt: skip
    assert np.array_equal(np.concatenate(right), together)


@pytest.mark.parametrize("name", ["int4", "int8", "int8_channel", "q4_k", "mxfp4", "zero4"])
def test_tokens_are_rounded_once_for_all_their_experts(name: str) -> None:
    tokens, chosen, inner = 23, 3, 512 if name == "q4_k" else 160
    weights = [stacked(name, n, inner) for n in (48, 33)]
    x = tensor(numbers(tokens, inner, seed=1))
    routing = ops.route(k.from_numpy(numbers(tokens, EXPERTS, seed=2)), chosen)
    gathered = ops.gather_rows(x, routing.order, routing.place)
    program = k.Program()
    program.begin()
    rows = ops.expert_rows(x, weights, routing)
    found = [ops.grouped_linear(x, weight, None, routing.offsets, rows=rows) for weight in weights]
    program.end()
    assert [program.names().count(each) for each in ("qrows", "qgather", "grouped_qgemm")] == [1, 1, 2]
    for weight, y in zip(weights, found, strict=True):
        right = ops.grouped_linear(gathered, weight, None, routing.offsets)
        assert y.shape == (tokens * chosen, weight.shape[1]) and np.array_equal(y.numpy(), right.numpy())


def test_tokens_are_not_rounded_for_those_who_want_numbers() -> None:
    four, other = (QTensor.from_float(numbers(EXPERTS, 33, 64), name) for name in ("int4", "int8"))
    routing = ops.route(k.from_numpy(numbers(4, EXPERTS)), 2)
    x, taped = tensor(numbers(4, 64)), tensor(numbers(4, 64), requires_grad=True)
    assert ops.expert_rows(x, [four, four], routing) is not None
    assert ops.expert_rows(taped, [four, four], routing) is None
    assert ops.expert_rows(x, [four, other], routing) is None
    assert ops.expert_rows(x, [four, tensor(numbers(EXPERTS, 33, 64))], routing) is None
    assert ops.expert_rows(tensor(numbers(4, 64).astype(np.float64)), [four], routing) is None
    rows = ops.expert_rows(x, [other], routing)
    with pytest.raises(ShapeError, match="rows"):
        ops.grouped_linear(x, four, None, routing.offsets, rows=rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", [(600, 100), (300, 2048)], ids=str)
def test_gradients_go_through_the_numbers(shape: tuple[int, int], dtype: str) -> None:
    q = QTensor.from_float(numbers(EXPERTS, *shape, dtype=dtype), "int4", dtype=dtype)
    found = []
    for weight in (q, tensor(q.dequantize(dtype=dtype))):
        x = tensor(numbers(ROWS, shape[1], seed=1, dtype=dtype), requires_grad=True)
        bias = tensor(numbers(EXPERTS, shape[0], seed=2, dtype=dtype), requires_grad=True)
        y = ops.grouped_linear(x, weight, bias, offsets_of(COUNTS[0]))
        (ops.grouped_linear(x, weight, bias, offsets_of(COUNTS[1])) * 2.0 + y).sum().backward()
        found.append((y.numpy().copy(), x.grad.copy(), bias.grad.copy()))
    for mine, right in zip(*found, strict=True):
        assert np.array_equal(mine, right)


def test_replayed_with_other_offsets() -> None:
    q = QTensor.from_float(numbers(EXPERTS, 64, 96), "int4")
    x, offsets = k.from_numpy(numbers(ROWS, 96, seed=1)), offsets_of(COUNTS[0])
    for activations in ("int8", "float"):
        q.activations = activations
        offsets.copy_from(offsets_of(COUNTS[0]).numpy())
        step = Program(lambda: ops.grouped_linear(x, q, None, offsets))
        for counts in (*COUNTS, [10, 10, 10, 10, 11]):
            offsets.copy_from(offsets_of(counts).numpy())
            right = ops.grouped_linear(x, q, None, offsets_of(counts)).numpy().copy()
            assert np.array_equal(step().numpy(), right)


def test_wrong_sizes_never_reach_the_kernels() -> None:
    q = QTensor.from_float(numbers(EXPERTS, 40, 64), "int4")
    x, offsets = tensor(numbers(ROWS, 64)), offsets_of(COUNTS[0])
    for bad in (lambda: ops.grouped_linear(tensor(numbers(ROWS, 63)), q, None, offsets),
                lambda: ops.grouped_linear(x, q, tensor(numbers(EXPERTS, 41)), offsets),
                lambda: ops.grouped_linear(x, q, None, offsets_of([51, 0, 0, 0])),
                lambda: ops.grouped_linear(x, q, None, offsets_of([50, 0, 0, 0, 0])),
                lambda: ops.grouped_linear(x, q.matrices()[0], None, offsets),
                lambda: QTensor((4, 0, 8)), lambda: QTensor((2, 2, 2, 32)), lambda: QTensor((32,))):  # fmt: skip
        with pytest.raises(ShapeError):
            bad()
    two = k.from_numpy(np.array([0, ROWS], np.int32))
    with pytest.raises(ShapeError, match="data"):
        k.grouped_q_matmul(x.data, q.data, k.empty((ROWS, 40)), two, *q.sizes[:1], 4000, 64, 32)
    with pytest.raises(NonFiniteError, match="here"):
        QTensor.from_float(np.full((2, 3, 32), np.nan, np.float32), what="here")


# -- models --------------------------------------------------------------------------------------------------------
def model_of(decoder: Decoder) -> LanguageModel:
    return LanguageModel(decoder, IdsTokenizer(decoder.config.vocab_size))


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("name", MOE)
def test_conformance(name: str, kind: str) -> None:
    """Pieces, packing and replayed steps have the bits of the whole; instruction sets agree."""
    model = make(VARIANTS[name])
    quantize_decoder(model, Scheme.named(kind))
    experts = [m for _, m in model.named_modules() if isinstance(m, GroupedLinear)]
    assert experts and all(isinstance(each.weight, QTensor) for each in experts)
    assert not any(isinstance(m.router.weight, QTensor) for _, m in model.named_modules() if isinstance(m, Moe))
    whole = logits(model, IDS)
    assert np.array_equal(logits(model, np.concatenate([IDS[:9], IDS[9:]]), [9, len(IDS) - 9])[:9], whole[:9])
    states = ContiguousStates(model.state_specs(), 2, len(IDS))
    pieces = [forward_cached(model, [list(IDS[:4]), list(IDS[:1])], states).copy()[0]]
    pieces += [forward_cached(model, [list(IDS[4:11]), []], states).copy()[0]]
    assert np.array_equal(pieces, [whole[3], whole[10]])
    steps = Steps(model, states)
    for place in range(11, len(IDS)):  # the second sequence lags behind: other rows go to other experts
        found = steps.run([0, 1], [int(IDS[place]), int(IDS[place - 10])])
        assert np.array_equal(found[0], whole[place]) and np.array_equal(found[1], whole[place - 10])
    for isa in ISAS:
        k.set_isa(isa)
        other = logits(model, IDS)
        # A rounding of an activation may fall the other way, an expert be another where two are near.
        assert np.median(np.abs(other - whole)) <= 1e-5 * np.abs(whole).max()
    k.set_isa("auto")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_while_loading_saving_and_reading_again(tmp_path: Path, dtype: str) -> None:
    config = dataclasses.replace(MODELS.get("moe")(61, 64, 2, 4, 32, 0.0), init_std=0.2)
    original = LanguageModel(Decoder(config, dtype, seed=3), CharTokenizer("abcdefgh \n"))
    original.save(tmp_path / "original")
    report = Report()
    loaded = microgpt.load(tmp_path / "original", quantize="int4", report=report)
    found = weights_of(loaded.decoder)
    routers = {name for name in places(loaded.decoder) if "router" in name}
    assert set(found) == places(loaded.decoder).keys() - routers == set(report.weights) and len(routers) == 2
    assert found["blocks.0.ffn.gate.weight"].shape == (4, config.blocks[0].ffn.width, 64)
    assert 0.02 < report.relative_error < 0.1
    in_place = LanguageModel(Decoder(config, dtype, seed=3), original.tokenizer)
    assert microgpt.quantize(in_place, 4).relative_error == pytest.approx(report.relative_error)
    ids = [1, 5, 2, 9, 3, 3]
    right = loaded.logits(ids)
    assert np.array_equal(in_place.logits(ids), right)
    loaded.save(tmp_path / "saved")
    again = microgpt.load(tmp_path / "saved")
    assert np.array_equal(again.logits(ids), right) and again.decoder.dtype == dtype
    checkpoint = open_checkpoint(tmp_path / "original")
    stated = checkpoint.bytes_needed(dtype, Scheme.named("int4"))
    held = sum(w.nbytes for w in found.values()) + sum(a.nbytes for a in loaded.decoder.arrays().values())
    assert stated == held
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    name = "blocks.0.ffn.gate.weight"
    row = values["quantized"]["weights"][name]
    for bad in ([*row[:2], *row[3:]], [row[0], row[1], 0, *row[3:]], [row[0], row[1], 3, *row[3:]], [*row, 1]):
        values["quantized"]["weights"][name] = bad
        (tmp_path / "saved" / "config.json").write_text(json.dumps(values))
        with pytest.raises((FormatError, microgpt.MicrogptError), match=r"ffn\.gate"):
            microgpt.load(tmp_path / "saved")


def test_filters_give_experts_a_type_of_their_own() -> None:
    model = model_of(make(VARIANTS["moe_softmax"]))
    microgpt.quantize(model, 4, filters={"*.down.weight": "int8", "blocks.0.*.up.weight": "float", "*.router*": "int8"})
    found = {name: weight.type.name for name, weight in weights_of(model.decoder).items()}
    assert found["blocks.0.ffn.down.weight"] == found["blocks.1.ffn.router.weight"] == "int8"
    assert found["blocks.0.ffn.gate.weight"] == "int4" and "blocks.0.ffn.up.weight" not in found
    assert np.isfinite(model.logits([1, 2, 3])).all()
    with pytest.raises(ConfigError, match="matches no weight"):
        microgpt.quantize(model_of(make(VARIANTS["moe_softmax"])), 4, filters={"*.experts.*": "int8"})


class Plus(Adapter):
    """Adds a tensor to what experts are given, so that a gradient goes through them."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift

    def output(self, x: Tensor, weight: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        return y + self.shift


def test_adapters_beside_quantized_experts_get_gradients() -> None:
    model = make(VARIANTS["moe_softmax"], "float64")
    quantize_decoder(model, Scheme.named("int8"))
    model.embed.weight.activations = "float"
    shift = tensor(np.zeros(24), requires_grad=True)
    model.blocks[0].ffn.up.adapters.append(Plus(shift))

    def loss() -> Tensor:
        ctx = Ctx(Layout.packed([len(IDS) - 1]))
        found: Tensor = model.loss(k.from_numpy(IDS[:-1].copy()), k.from_numpy(IDS[1:].copy()), ctx)
        return found

    loss().backward()
    direction, around = numbers(24, seed=4).astype(np.float64), []
    for sign in (1, -1):
        shift.numpy()[...] = sign * 1e-5 * direction
        with no_grad():
            around.append(loss().item())
    slope = (around[0] - around[1]) / 2e-5
    assert abs(slope) > 1e-4 and abs(slope - float((shift.grad * direction).sum())) <= 1e-6 * abs(slope) + 1e-9


# -- files of others -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("family", "kind"), [
    ("mixtral", "q4_0"), ("qwen3_moe", "q4_k"), ("olmoe", "q6_k"), ("gpt_oss", "q8_0"),
])  # fmt: skip
def test_experts_of_gguf_files_stay_quantized(tmp_path: Path, family: str, kind: str) -> None:
    model = wide_experts(family, 256 if kind.endswith("_k") else 64)
    save_gguf(model, tmp_path / "m.gguf", kind)
    check_kept(tmp_path / "m.gguf", {{"q4_0": "int4", "q8_0": "int8"}.get(kind, kind)})


def wide_experts(family: str, width: int = 64) -> Decoder:
    """Two layers of four experts as wide as the stream."""
    count = "num_local_experts" if family in ("mixtral", "gpt_oss") else "num_experts"
    settings: dict[str, Any] = {
        "vocab_size": 61, "max_position_embeddings": 32, "hidden_size": width, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4 if family == "olmoe" else 2, "intermediate_size": width,
        "num_experts_per_tok": 2, count: 4,
    }  # fmt: skip
    settings |= {} if family == "olmoe" else {"head_dim": width // 4}
    settings |= {"moe_intermediate_size": width, "norm_topk_prob": True} if family == "qwen3_moe" else {}
    return Decoder(FAMILIES.get(family).read(settings), seed=1)


def check_kept(path: Path, types: set[str]) -> LanguageModel:
    """Experts kept as they are have the numbers that reading them as numbers gives; saved and read again too."""
    wide, kept = take(open_checkpoint(path)), take(open_checkpoint(path), keep=True)
    found, values = weights_of(kept), dict(wide.named_parameters())
    experts = {name: weight for name, weight in found.items() if weight.ndim == 3}
    assert len(experts) == 3 * len(wide.blocks) and {weight.type.name for weight in experts.values()} == types
    for name, weight in found.items():
        assert np.array_equal(weight.dequantize(), values[name].numpy()), name
        weight.activations = "float"
    ids = np.array([1, 5, 2, 9, 3], np.int32)
    right = logits(wide, ids)
    assert np.array_equal(logits(kept, ids), right)
    for weight in found.values():
        weight.activations = "int8"
    model = model_of(kept)
    rounded = model.logits([1, 5, 2, 9, 3])
    model.save(path.parent / "kept")
    assert np.array_equal(microgpt.load(path.parent / "kept").logits([1, 5, 2, 9, 3]), rounded)
    return model


def test_experts_in_mxfp4_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    in_mxfp4(tmp_path / "m")
    check_kept(tmp_path / "m", {"mxfp4"})
    found = open_checkpoint(tmp_path / "m")
    model = take(found, keep=True)
    held = sum(w.nbytes for w in weights_of(model).values()) + sum(a.nbytes for a in model.arrays().values())
    assert held - 4096 <= kept_bytes(found.weights, "float32") <= held + 4096


@pytest.mark.parametrize("kind", sorted(GGUF_TYPES))
def test_three_axes_of_every_type_of_gguf(kind: str) -> None:
    type, inner = ggml.NAMED[kind], 512
    raw = np.stack([blocks(kind, 40, inner, seed) for seed in range(3)])
    right = ggml.dequantize(raw.reshape(-1), type, (3, 40, inner))
    whole = QTensor((3, 40, inner), GGUF_TYPES[kind])
    for e in range(3):
        QTensor.from_ggml(kind, raw[e], (40, inner), room=whole.place(e))
    assert np.array_equal(whole.dequantize(), right)
    assert np.array_equal(whole.dequantize(1, 3), right[1:3])
    assert whole.nbytes == sum(each.nbytes for each in whole.matrices())


@pytest.mark.parametrize(("kinds", "type"), [
    (("symmetric", "symmetric"), "int4"), (("plain", "plain"), "zero4"), (("symmetric", "plain"), "zero4"),
    (("act", "act"), "zero4"), (("act", "plain"), "zero4"),
])  # fmt: skip
def test_experts_of_other_folders_get_one_type(kinds: tuple[str, ...], type: str) -> None:
    rng, packed, meant = np.random.default_rng(0), [], []
    for kind in kinds:
        order = "act" if kind == "act" else ""
        tensors, meaning = packed_tools.gptq((64, 96), 4, 32, rng, symmetric=kind == "symmetric", order=order)
        packed.append(packed_of(tensors))
        meant.append(meaning)
    found = from_packed(packed, "float32", experts=True)
    assert found is not None and found.type.name == type and found.ordered == ("act" in kinds)
    assert np.array_equal(found.dequantize(), np.stack(meant))
    x, offsets = tensor(numbers(20, 96)), offsets_of([7, 13])
    y = ops.grouped_linear(x, found, None, offsets).numpy()
    for part, rows in zip(found.matrices(), (slice(7), slice(7, 20)), strict=True):
        assert np.array_equal(y[rows], ops.linear(tensor(x.numpy()[rows]), part).numpy())


def packed_of(tensors: dict[str, np.ndarray]) -> Any:
    from microgpt.io.packed import opened
    from microgpt.io.stored import Stored

    def stored(value: np.ndarray) -> Stored:
        return Stored(value.shape, value.dtype.name, lambda: value, lambda a, b: value[a:b])

    settings = {"quant_method": "gptq", "group_size": 32, "bits": 4}
    weights = {f"w.{name}": stored(value) for name, value in tensors.items()}
    return opened(weights, {"quantization_config": settings}, "here")["w.weight"].packed


def test_mixtral_of_gptq_is_kept(tmp_path: Path) -> None:
    """Experts that are matrices of their own in the file become one weight of three axes."""
    model = wide_experts("mixtral")
    LanguageModel(model, CharTokenizer("ab")).save(tmp_path / "m")
    path, rng = tmp_path / "m" / "model.safetensors", np.random.default_rng(0)
    arrays = {name: stored.array() for name, stored in safetensors.open_weights(path).items()}
    for name in [name for name in arrays if ".experts." in name]:
        tensors, _ = packed_tools.gptq(arrays.pop(name).shape, 4, 32, rng)
        arrays |= {name.replace("weight", part): np.ascontiguousarray(value) for part, value in tensors.items()}
    path.unlink()
    safetensors.save(path, arrays, {"format": "pt"})
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gptq", "group_size": 32, "bits": 4}
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    check_kept(tmp_path / "m", {"zero4"})


# -- quantizers ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained() -> Callable[[], Decoder]:
    """A model whose experts differ, made anew at each call."""
    config = dataclasses.replace(MODELS.get("moe")(61, 64, 2, 4, 64, 0.0), init_std=0.2)
    return lambda: Decoder(config, seed=3)


@pytest.mark.parametrize("method", ["imatrix", "gptq", "awq"])
def test_calibrated_methods_see_what_each_expert_is_given(trained: Callable[[], Decoder], method: str) -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 61, 64, dtype=np.int32) for _ in range(12)]
    original, nearest, better = trained(), trained(), trained()
    quantize_decoder(nearest, Scheme.named("int4"))
    report = quantize_calibrated(better, Scheme.named("int4"), method, pieces)
    assert report.unseen == {} and weights_of(better).keys() == weights_of(nearest).keys()
    test = rng.integers(0, 61, 64, dtype=np.int32)
    right = logits(original, test)
    errors = [float(np.mean((logits(each, test) - right) ** 2)) for each in (better, nearest)]
    if method == "gptq":
        assert errors[0] < errors[1]
    name = "blocks.1.ffn.down.weight"
    assert not np.array_equal(weights_of(better)[name].dequantize(), weights_of(nearest)[name].dequantize())


def test_experts_that_saw_too_little_are_rounded_to_nearest(trained: Callable[[], Decoder]) -> None:
    pieces = [np.full(64, 7, np.int32)] * 12  # one token: each layer sends it to two experts of four
    model, nearest = trained(), trained()
    for each in (model, nearest):
        for block in each.blocks:  # the same two, whatever comes before
            block.ffn.router.weight.numpy()[...] = 0.0
    report = quantize_calibrated(model, Scheme.named("int4"), "gptq", pieces)
    quantize_decoder(nearest, Scheme.named("int4"))
    experts = {f"blocks.{i}.ffn.{part}.weight" for i in range(2) for part in ("gate", "up", "down")}
    assert report.unseen == dict.fromkeys(experts, 2)
    assert report.to_dict()["matrices"]["blocks.0.ffn.up.weight"]["unseen_experts"] == 2
    for name in ("blocks.0.ffn.up.weight", "blocks.1.ffn.down.weight"):
        mine, right = (weights_of(each)[name].dequantize() for each in (model, nearest))
        assert np.array_equal(mine[2:], right[2:])
    assert not np.array_equal(
        *(weights_of(each)["blocks.0.ffn.up.weight"].dequantize()[0] for each in (model, nearest))
    )
    assert LEAST_ROWS == 64


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_command_rounds_a_mixture_of_experts(tmp_path: Path, method: str) -> None:
    config = dataclasses.replace(MODELS.get("moe")(32, 64, 2, 4, 64, 0.0), init_std=0.05)
    text = "the quick brown fox jumps over the lazy dog\n" * 40
    tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxyz \n")
    LanguageModel(Decoder(dataclasses.replace(config, vocab_size=tokenizer.vocab_size), seed=1), tokenizer).save(
        tmp_path / "m"
    )
    (tmp_path / "t.txt").write_text(text)
    command = ["quantize", str(tmp_path / "m"), "-o", str(tmp_path / "q"), "--bits", "8", "--json", "--method", method,
               "--text", str(tmp_path / "t.txt"), "--filter", "blocks.1.ffn.down.weight=int4"]  # fmt: skip
    command += [] if method == "rtn" else ["--calibration", str(tmp_path / "t.txt"), "--tokens", "1024"]
    done = run(*command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().split("\n")[-1])
    assert found["matrices"]["blocks.1.ffn.down.weight"]["type"] == "int4"
    assert found["matrices"]["blocks.0.ffn.gate.weight"]["type"] == "int8"
    assert found["quantized"]["perplexity"] == pytest.approx(found["original"]["perplexity"], rel=0.01)
    loaded = microgpt.load(tmp_path / "q")
    assert weights_of(loaded.decoder)["blocks.1.ffn.down.weight"].shape == (4, 64, config.blocks[0].ffn.width)


def test_a_quantized_mixture_is_close_to_its_original(trained: Callable[[], Decoder]) -> None:
    original, eight = (LanguageModel(trained(), IdsTokenizer(61)) for _ in range(2))
    quantize_decoder(eight.decoder, Scheme.named("int8"))
    ids = np.random.default_rng(5).integers(0, 61, 60, dtype=np.int32)
    right, found = logits(original.decoder, ids), logits(eight.decoder, ids)
    assert np.median(np.abs(found - right)) <= 0.02 * np.abs(right).max()

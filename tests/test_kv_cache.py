"""Caches of keys and values in float32, bfloat16 or int8 beside models of another type."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt import ops
from microgpt.api import LanguageModel
from microgpt.engine.generate import forward_cached
from microgpt.engine.step import Steps
from microgpt.errors import ConfigError, DTypeError, ShapeError, UsageError
from microgpt.kvrows import KVRows
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.presets import MODELS
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.state.contiguous import ContiguousStates
from microgpt.state.spec import KVSpec
from microgpt.tensors import Tensor, numpy_dtype
from microgpt.tokenizers.char import CharTokenizer
from tests.cli_tools import run
from tests.format_tools import a_model
from tests.opcases import attention as cases
from tests.variants import IDS, TOKENS, VARIANTS, check_pieces, make, mixers

ISAS = [name for name, supported in k.isas() if supported]
STORED = ("float32", "bfloat16", "int8")
U16 = 2.0**-9
Numbers = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def own_isa() -> Any:
    yield
    k.set_isa("auto")


def put(values: Numbers, stored: str, dtype: str = "float32", places: list[int] | None = None) -> KVRows:
    """A cache that holds `values` (rows, heads, width), written from numbers of `dtype`."""
    rows = KVRows(values.shape, stored)  # type: ignore[arg-type]
    at = np.arange(len(values), dtype=np.int32) if places is None else np.array(places, np.int32)
    rows.put(k.from_numpy(values.astype(numpy_dtype(dtype))), k.from_numpy(at))
    return rows


# -- what is written --------------------
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("width", [1, 7, 64, 300])
def test_int8_is_rounded_to_nearest_with_a_scale_for_each_token_and_head(isa: str, dtype: str, width: int) -> None:
    k.set_isa(isa)
    rng = np.random.default_rng(width)
    x = (rng.standard_normal((9, 3, width)) * 10.0 ** rng.integers(-3, 3, (9, 3, 1))).astype(numpy_dtype(dtype))
    x[4, 1] = 0
    places = rng.permutation(9)
    rows = put(x, "int8", dtype, places.tolist())
    numbers = x.astype(np.float32)
    largest = np.abs(numbers).max(axis=2)
    assert rows.scales is not None
    assert np.array_equal(rows.scales.numpy()[:, places], (largest / np.float32(127)).T)
    inverse = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, 1), 0).astype(np.float32)
    codes = np.rint(numbers * inverse[:, :, None]).astype(np.int8)
    assert np.array_equal(rows.data.numpy().view(np.int8)[places], codes)
    # half a step, and the roundings of the scale, of its inverse and of the product
    bound = largest[:, :, None].astype(np.float64) / 127 * 0.5 * (1 + 127 * 2.0**-21)
    assert (np.abs(rows.numbers()[places] - numbers) <= bound).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_own_scale_nan(isa: str, bad: float) -> None:
    k.set_isa(isa)
    x = np.ones((3, 2, 20), np.float32)
    x[1, 0, 17] = bad
    rows = put(x, "int8")
    assert rows.scales is not None
    assert np.isnan(rows.scales.numpy()[:, :3]).tolist() == [[False, True, False], [False, False, False]]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_floats_are_rounded_once(stored: str, dtype: str) -> None:
    x = np.random.default_rng(3).standard_normal((5, 2, 33)).astype(numpy_dtype(dtype))
    rows = put(x, stored, dtype)
    assert np.array_equal(rows.data.numpy(), x.astype(np.float32).astype(numpy_dtype(stored)))


# -- what is read --------------------
def attend(i: dict[str, Any], keys: Any, values: Any, dtype: str, **options: Any) -> Numbers:
    arrays = [k.from_numpy(i[name]) for name in ("q_start", "k_start", "k_len")]
    if "alibi" in i:
        options["alibi"] = k.from_numpy(i["alibi"].astype("float64" if dtype == "float64" else "float32"))
    y = ops.attention(k.from_numpy(i["q"].astype(numpy_dtype(dtype))), keys, values, *arrays, **options)
    return y.numpy().astype(np.float64)


CASES = [case for case in cases.CASES if case.inputs()["keys"].shape[0]]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_over_a_cache_is_that_over_the_numbers_it_holds(case: Any, stored: str, isa: str) -> None:
    """Bounds are the op cases', for the numbers stored. int8 rounds twice more, where a score and a probability meet
    their scales: one rounding beside at least three of the same size in what the bound counts for each."""
    k.set_isa(isa)
    i = case.inputs()
    keys, values = put(i["keys"], stored), put(i["values"], stored)
    held = {**i, "keys": keys.numbers(), "values": values.numbers()}
    truth = attend(held, k.from_numpy(held["keys"]), k.from_numpy(held["values"]), "float64", **case.options)
    got = attend(i, keys, values, "float32", **case.options)
    bound = cases._forward(held, case.options, truth, 2.0**-24) * (4 / 3 if stored == "int8" else 1) + 1e-37
    assert (np.abs(got - truth) <= bound).all()
    exact = attend(i, keys, values, "float64", **case.options)
    assert np.abs(exact - truth).max(initial=0.0) <= 1e-12 * max(1.0, np.abs(truth).max(initial=0.0))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stored", ["float32", "int8"])
@pytest.mark.parametrize(
    ("rows", "lengths", "width"), [([1, 1], [200, 33], 64), ([40, 1], [200, 33], 20), ([40, 1], [200, 33], 64)]
)
def test_bfloat16_queries_over_a_cache(rows: list[int], lengths: list[int], width: int, stored: str, isa: str) -> None:
    """What is rounded to bfloat16: probabilities, times their scale, as factors, and results; errors add in squares (as
    in test_attention_bfloat16)."""
    k.set_isa(isa)
    i = cases.packed(rows, lengths, 4, 2, width, gap=3)(np.random.default_rng(5))
    i["q"] = i["q"].astype(numpy_dtype("bfloat16")).astype(np.float64)
    keys, values = (put(i[name], stored, "bfloat16") for name in ("keys", "values"))
    held = {**i, "keys": keys.numbers(), "values": values.numbers()}
    truth = attend(held, k.from_numpy(held["keys"]), k.from_numpy(held["values"]), "float64")
    error = attend(i, keys, values, "bfloat16") - truth
    square = truth**2
    for part, at, h, g, scores, _, _ in cases.heads_of(held, {}):
        p, _ = cases.softmax_of(scores, np.zeros_like(scores), 2.0**-24)
        square[part, h] += p**2 @ held["values"][at, g] ** 2
    assert math.sqrt(np.mean(error**2)) <= U16 * math.sqrt(np.mean(square))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stored", STORED)
def test_a_row_has_the_same_bits_alone_packed_and_by_any_number_of_threads(stored: str, isa: str) -> None:
    k.set_isa(isa)
    rng = np.random.default_rng(2)
    length, heads, width = 1200, 6, 32
    q = rng.standard_normal((length, heads, width)).astype(np.float32)
    keys, values = (put(rng.standard_normal((length, 3, width)), stored) for _ in range(2))
    threads = k.num_threads()

    def rows(first: int, last: int) -> Numbers:
        """Query rows [first, last) of one sequence."""
        i = {"q": q[first:last], "q_start": [0, last - first], "k_start": [0], "k_len": [last]}
        return attend({n: np.array(v, None if n == "q" else np.int32) for n, v in i.items()}, keys, values, "float32")

    whole = rows(0, length)
    try:
        for number in (1, 3):
            k.set_num_threads(number)
            assert np.array_equal(rows(0, length), whole)
            assert np.array_equal(rows(37, 700), whole[37:700])
            for row in (0, 63, 64, 511, 512, 1199):
                assert np.array_equal(rows(row, row + 1)[0], whole[row])
    finally:
        k.set_num_threads(threads)


@pytest.mark.parametrize("stored", STORED)
def test_rows_that_nobody_sees_may_hold_anything(stored: str) -> None:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((70, 2, 16))
    q = {"q": rng.standard_normal((3, 2, 16)), "q_start": np.array([0, 3], np.int32),
         "k_start": np.array([5], np.int32), "k_len": np.array([40], np.int32)}  # fmt: skip
    before = attend(q, put(values, stored), put(values, stored), "float32")
    values[:5] = values[45:] = np.nan
    assert np.array_equal(attend(q, put(values, stored), put(values, stored), "float32"), before)
    values[44] = np.nan  # the last query sees it, those before do not
    after = attend(q, put(values, stored), put(values, stored), "float32")
    assert np.array_equal(after[:2], before[:2]) and np.isnan(after[2]).all()


# -- states --------------------
def feed(model: Any, states: ContiguousStates, pieces: list[list[list[int]]]) -> list[Numbers]:
    return [forward_cached(model, piece, states).copy() for piece in pieces]


@pytest.mark.parametrize("stored", ["int8", "bfloat16"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_pieces_forks_and_rollbacks(config: ModelConfig, stored: str) -> None:
    model, ids = make(config), IDS.tolist()
    model.kv_dtype = stored
    states = ContiguousStates(model.state_specs(), 3, TOKENS)
    whole = feed(model, states, [[ids, [], []]])[0]
    states.rollback(0, 0)
    parts = feed(model, states, [[ids[:9], ids[3:8], []], [ids[9:10], [], []], [ids[10:], [], []]])[-1]
    check_pieces(config, parts, whole)
    if states.recurrent_layers:
        return
    states.rollback(0, 9)
    states.fork(0, 2)
    after = feed(model, states, [[ids[9:14], [], ids[9:14]]])[0]
    assert np.array_equal(after[0], after[1])
    check_pieces(config, feed(model, states, [[ids[14:], [], []]])[0], whole)


def test_recorded_steps_have_the_bits_of_eager_ones() -> None:
    for dtype in ("float32", "bfloat16"):
        model = a_model(dtype=dtype)
        model.kv_dtype = "int8"
        states = [ContiguousStates(model.state_specs(), 2, 20) for _ in range(2)]
        steps = Steps(model, states[0])
        for each in states:
            forward_cached(model, [[1, 2, 3], [4]], each)
        for token in range(5, 9):
            assert np.array_equal(steps.run([0, 1], [token, 3]), forward_cached(model, [[token], [3]], states[1]))


def test_a_cache_of_the_models_own_type_is_the_cache_there_was() -> None:
    model = a_model()
    model.kv_dtype = "float32"
    assert model.state_specs() == [KVSpec(2, 4, 4, "float32")] * len(model.blocks) or all(
        spec.stored is None for spec in model.state_specs() if isinstance(spec, KVSpec)
    )


# -- memory --------------------
@pytest.mark.parametrize("name", ["gqa", "shared_kv", "differential", "parallel_plain_hybrid", "window"])
def test_memory_is_what_the_figures_say(name: str) -> None:
    config, model = VARIANTS[name], make(VARIANTS[name])
    pad = (
        2 * 4 * k.KV_PAD * sum(m.kv_heads for m in mixers(config) if isinstance(m, AttentionSpec) and m.kv_from is None)
    )
    for stored in STORED:
        model.kv_dtype = stored
        per_token = model.state_bytes(101) - model.state_bytes(100)
        typed = any(spec.stored == "int8" for spec in model.state_specs() if isinstance(spec, KVSpec))
        assert ContiguousStates(model.state_specs(), 3, 10).bytes == 3 * model.state_bytes(10) + (pad if typed else 0)
        if name != "differential":  # whose cache stays in the model's type, float32 here
            assert per_token == config.cache_bytes(stored)
    assert config.cache_bytes("float32") == 4 * config.state_numbers()


def test_int8_is_an_eighth_more_than_a_quarter() -> None:
    config = VARIANTS["gqa"]
    heads = sum(2 * m.kv_heads for m in mixers(config) if isinstance(m, AttentionSpec))
    assert config.cache_bytes("int8") == config.state_numbers() + 4 * heads


# -- the public face --------------------
def test_load_generate_and_perplexity(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abcdefgh \n")
    config = MODELS.get("gpt")(tokenizer.vocab_size, 32, 2, 4, 256, 0.0)
    LanguageModel(Decoder(dataclasses.replace(config, init_std=0.2)), tokenizer).save(tmp_path)
    plain, eight = microgpt.load(tmp_path), microgpt.load(tmp_path, kv_dtype="int8")
    assert eight.decoder.kv_dtype == "int8"
    text = "a b a b c" * 20
    one, two = plain.perplexity(text), eight.perplexity(text)
    assert one.perplexity != two.perplexity and abs(one.loss - two.loss) < 0.01 * one.loss
    assert microgpt.load(tmp_path, kv_dtype="f32").perplexity(text) == one
    assert len(eight.generate("a", max_tokens=5, ignore_eos=True).ids) == 5
    done = run("generate", "--model", str(tmp_path), "--prompt", "a", "--kv-dtype", "int8", "--max-tokens", "5",
               "--seed", "1")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    (tmp_path / "text.txt").write_text(text)
    done = run("perplexity", str(tmp_path), str(tmp_path / "text.txt"), "--kv-dtype", "int8")
    assert f"perplexity {two.perplexity:.4f}" in done.stdout
    for option in ("q8", "int4"):
        assert run("generate", "--model", str(tmp_path), "--kv-dtype", option).exit_code == 2
    with pytest.raises(ConfigError, match=r"kv_dtype: expected f32, bf16, int8, got 'int9'.*int8"):
        microgpt.load(tmp_path, kv_dtype="int9")


def test_zoo_counts_the_cache() -> None:
    plain, eight = (run("zoo", "qwen3", "--kv-dtype", kind).stdout for kind in ("bf16", "int8"))
    assert "of bf16 cache a token" in plain and "of int8 cache a token" in eight
    assert run("zoo", "--list", "--kv-dtype", "int8").stdout != run("zoo", "--list").stdout


# -- bad input --------------------
def test_wrong_caches_never_reach_the_kernels() -> None:
    x = np.zeros((3, 2, 8), np.float32)
    with pytest.raises(ConfigError, match="expected float32, bfloat16 or int8, got 'int4'"):
        KVRows((3, 2, 8), "int4")
    rows = put(x, "int8")
    ends = [k.from_numpy(np.array(each, np.int32)) for each in ([0, 1], [0], [3])]
    q = k.from_numpy(x[:1].copy())
    for values in (k.from_numpy(x), put(x, "bfloat16")):
        with pytest.raises(UsageError, match="cached in one type"):
            ops.attention(q, rows, values, *ends)
    with pytest.raises(UsageError, match="no gradient"):
        ops.attention(Tensor(q, requires_grad=True), rows, rows, *ends).sum().backward()
    with pytest.raises(ShapeError):
        ops.attention(q, rows, put(np.zeros((2, 2, 8)), "int8"), *ends)
    with pytest.raises(ShapeError, match="ids"):
        put(x, "int8", places=[0, 1, 3])
    with pytest.raises(ShapeError):
        k.kv_put(k.from_numpy(x[:2].copy()), k.from_numpy(np.array([0, 1, 2], np.int32)), rows.data, 2, 8, rows.scales)
    with pytest.raises(DTypeError):
        k.kv_put(q, k.from_numpy(np.array([0], np.int32)), k.empty((3, 2, 8), "int32"), 2, 8)
    with pytest.raises(UsageError, match="`scales` is missing"):
        k.kv_put(q, k.from_numpy(np.array([0], np.int32)), rows.data, 2, 8)

"""bfloat16 models: what rounding may do to logits, master weights, replay, and files."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt import ops
from microgpt.engine.generate import generate_ids
from microgpt.engine.sampler import Sampling
from microgpt.errors import CheckpointError, ConfigError, DTypeError
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.presets.plain import gpt
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.nn.context import Ctx, Layout
from microgpt.nn.ffn.mlp import GluSpec
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.nn.module import Module, Parameter
from microgpt.nn.rope import RopeSpec
from microgpt.nn.spec import BlockSpec, NormSpec
from microgpt.optim import AdamW, Optimizer, Sgd, UpdateRule, decay_groups
from microgpt.program import Program
from microgpt.tensors import Tensor, numpy_dtype

from .opcases.bounds import U16

BF16 = numpy_dtype("bfloat16")
ISAS = [name for name, supported in k.isas() if supported]
VOCAB, CONTEXT, TOKENS = 61, 48, 40


def llama_like() -> ModelConfig:
    norm = NormSpec("rms", bias=False)
    mixer = AttentionSpec(4, 8, 2, bias=False, out_bias=False, rope=RopeSpec())
    block = BlockSpec(mixer, GluSpec(56, bias=False), norm)
    return ModelConfig(VOCAB, 32, CONTEXT, (block,) * 3, tie_embeddings=False, final_norm=norm, init_std=0.2)


CONFIGS = {"gpt": gpt(VOCAB, 32, 3, 4, CONTEXT, 0.0), "llama": llama_like()}


def numbers(seed: int, count: int = TOKENS) -> k.Array:
    return k.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32))


def ctx() -> Ctx:
    return Ctx(Layout.packed([TOKENS - 13, 13]))


def pair(name: str) -> tuple[Decoder, Decoder]:
    """A bfloat16 model and the float32 model of the same weights."""
    narrow = Decoder(CONFIGS[name], "bfloat16", seed=3)
    same = Decoder(CONFIGS[name])
    same.load_arrays(narrow.arrays())
    return narrow, same


def relative(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


# Each block stores about 8 results in bfloat16 on its way through (norms, projections, attention, two sums), the
# embedding and the last norm 3 more. A stored number is off by a random part of u = 2^-8 (rms u / sqrt(3) at most); the
# errors of R results add like a random walk, and no step changes its input's relative error much, as norms keep every
# branch at the scale of the stream: sqrt(R / 3) u. Twice that is allowed.
FORWARD_RESULTS = 3 * 8 + 3
ERROR = 2 * np.sqrt(FORWARD_RESULTS / 3) * U16


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_logits_loss_and_gradients_are_near_those_of_float32(name: str, isa: str) -> None:
    k.set_isa(isa)
    results = []
    for model in pair(name):
        logits = model.logits(model.hidden(numbers(0), ctx())).numpy()
        assert logits.dtype == np.float32
        loss = model.loss(numbers(0), numbers(1), ctx())
        assert loss.dtype == "float32"
        loss.backward()
        results.append((logits, loss.item(), {n: p.grad for n, p in model.named_parameters()}))
    (logits, loss, gradients), (want, want_loss, wanted) = results
    assert relative(logits, want) < ERROR
    # The loss is 1-Lipschitz in the largest logit error, and the mean of many rows of either sign.
    assert abs(loss - want_loss) < ERROR * np.abs(want).max()
    for key, gradient in gradients.items():
        assert gradient.dtype == np.float32
        # A bias of the keys shifts all scores of a row alike: its gradient is zero but for rounding, here and there.
        if not key.endswith("mixer.k.bias"):
            # The way back is as long again, twice, and meets the activations' errors.
            assert relative(gradient, wanted[key]) < 2 * ERROR, key


@pytest.mark.parametrize("isa", ISAS)
def test_decoding_token_by_token_has_the_bits_of_the_whole(isa: str) -> None:
    k.set_isa(isa)
    model = pair("llama")[0]
    ids = [int(i) for i in numbers(5, 20).numpy()]
    events = list(generate_ids(model, [ids], Sampling(temperature=0.0), 12))
    whole = [*ids, *(event.token for event in events)]
    logits = model.logits(
        model.hidden(k.from_numpy(np.array(whole, np.int32)), Ctx(Layout.packed([len(whole)])))
    ).numpy()
    assert [int(row.argmax()) for row in logits[len(ids) - 1 : -1]] == [event.token for event in events]
    assert [spec.bytes(1) for spec in model.state_specs()] == [2 * 2 * 8 * 2] * 3


def test_initial_weights_are_those_of_float32_rounded() -> None:
    narrow, wide = Decoder(CONFIGS["gpt"], "bfloat16", seed=9), Decoder(CONFIGS["gpt"], seed=9)
    for name, array in narrow.arrays().items():
        assert array.tobytes() == wide.arrays()[name].astype(BF16).tobytes()


def test_a_folder_keeps_the_type(tmp_path: Path) -> None:
    model = Decoder(CONFIGS["gpt"], "bfloat16", seed=9)
    save_decoder(model, tmp_path)
    again, as_float = load_decoder(tmp_path), load_decoder(tmp_path, "float32")
    assert (again.dtype, as_float.dtype) == ("bfloat16", "float32")
    for name, array in model.arrays().items():
        assert again.arrays()[name].tobytes() == array.tobytes()
        np.testing.assert_array_equal(as_float.arrays()[name], array.astype(np.float32))


# -- master weights ----------------------------------------
RULES: list[UpdateRule] = [AdamW(), Sgd(0.9), Sgd(0.9, True), Sgd(0.0)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_masters_take_the_steps_of_float32(rule: UpdateRule, isa: str) -> None:
    """Given the same gradients, masters have float32's bits and the weights are the masters rounded."""
    k.set_isa(isa)
    optimizers = [Optimizer(model, rule, decay_groups(0.1), 1.0) for model in pair("gpt")]
    rng = np.random.default_rng(0)
    for step in range(1, 6):
        gradient = rng.standard_normal(optimizers[0].arenas.size).astype(np.float32)
        for optimizer in optimizers:
            optimizer.arenas.grads.copy_from(gradient)
            for slot in optimizer.arenas.slots:
                slot.filled = True
            optimizer.feed(step, 1e-3)
            optimizer.launch()
        narrow, wide = (optimizer.arenas for optimizer in optimizers)
        assert narrow.params.numpy().tobytes() == wide.params.numpy().tobytes()
        assert narrow.rounded is not None
        assert narrow.rounded.numpy().tobytes() == wide.params.numpy().astype(BF16).tobytes()
    assert wide.rounded is None


def test_a_step_too_small_for_bfloat16_is_not_lost() -> None:
    """1 + 2^-10 is 1 in bfloat16: without masters the weight would never move."""
    weight = Parameter((1,), "bfloat16", fill=1.0)

    class One(Module):
        def __init__(self) -> None:
            self.weight = weight

    optimizer = Optimizer(One(), Sgd(0.0), decay_groups(0.0))
    for step in range(1, 9):
        ops.linear(Tensor(-np.ones((1, 1), BF16)), weight.reshape(1, 1)).backward(np.ones((1, 1), BF16))
        optimizer.feed(step, 2.0**-10)
        optimizer.launch()
    assert optimizer.arenas.params.numpy()[0] == 1 + 2.0**-7
    assert weight.item() == 1 + 2.0**-7


def trained(steps: range, model: Decoder, optimizer: Optimizer, *, record: bool) -> None:
    tokens, targets, here = k.empty((TOKENS,), "int32"), k.empty((TOKENS,), "int32"), ctx()

    def step() -> None:
        loss = model.loss(tokens, targets, here)
        loss.backward()
        optimizer.launch(loss)

    run = Program(step) if record else step
    for number in steps:
        tokens.copy_from(numbers(number).numpy())
        targets.copy_from(numbers(number + 1000).numpy())
        optimizer.feed(number, 1e-2)
        run()


def state(model: Decoder, optimizer: Optimizer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in {**model.arrays(), **optimizer.arrays()}.items()}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_eager_and_replayed_steps_have_the_same_bits(name: str) -> None:
    states = []
    for record in (False, True):
        model = Decoder(CONFIGS[name], "bfloat16", seed=3)
        optimizer = Optimizer(model, AdamW(), decay_groups(0.1), 1.0)
        trained(range(1, 7), model, optimizer, record=record)
        states.append(state(model, optimizer))
    assert states[0] == states[1]


def test_resumed_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Weights go through a model folder, masters and moments through arrays()."""
    model = Decoder(CONFIGS["llama"], "bfloat16", seed=3)
    optimizer = Optimizer(model, AdamW(), decay_groups(0.1), 1.0)
    trained(range(1, 5), model, optimizer, record=False)
    save_decoder(model, tmp_path)
    saved = {name: array.copy() for name, array in optimizer.arrays().items()}
    assert {name.partition(".")[0] for name in saved} == {"m", "v", "master"}
    trained(range(5, 9), model, optimizer, record=False)
    resumed = load_decoder(tmp_path)
    other = Optimizer(resumed, AdamW(), decay_groups(0.1), 1.0)
    other.load_arrays(saved)
    trained(range(5, 9), resumed, other, record=False)
    assert state(resumed, other) == state(model, optimizer)
    del saved["master.norm.weight"]
    with pytest.raises(CheckpointError, match=r"master\.norm\.weight"):
        other.load_arrays(saved)


def test_training_learns() -> None:
    """40 tokens can be learnt by heart: from log 61 = 4.1 nats to nothing, as in float32."""
    model = Decoder(CONFIGS["gpt"], "bfloat16", seed=3)
    optimizer = Optimizer(model, AdamW(), decay_groups(0.0), 1.0)
    for step in range(1, 101):
        loss = model.loss(numbers(0), numbers(1), ctx())
        loss.backward()
        optimizer.feed(step, 1e-2)
        optimizer.launch(loss)
    assert loss.item() < 0.1


# -- what is refused ----------------------------------------
def test_types_are_not_mixed_silently() -> None:
    narrow, wide = Tensor(np.ones((2, 2), BF16)), Tensor(np.ones((2, 2), np.float32))
    with pytest.raises(DTypeError, match="add: `b` expected bfloat16 like `a`, got float32"):
        ops.add(narrow, wide)
    with pytest.raises(DTypeError, match=r"linear: `weight` expected bfloat16 like `x`, got float32"):
        ops.linear(narrow, wide)
    with pytest.raises(DTypeError, match=r"adamw: `param` must be float32, got bfloat16|adamw: expected float32"):
        a = narrow.data
        k.adamw(a, a, a, a, a, k.empty((1,), "int64"), 0.9, 0.99, 1e-8, 0.0)
    with pytest.raises(DTypeError, match="cast: `x` must be float32, got float64"):
        k.cast(k.empty((2,), "float64"), k.empty((2,), "bfloat16"))
    with pytest.raises(ConfigError, match=r"expected bfloat16 like the others, got float32"):
        model = Decoder(CONFIGS["gpt"], "bfloat16")
        model.norm.bias = Parameter((32,))
        Optimizer(model, AdamW(), decay_groups(0.1))


def test_numpy_sees_bfloat16() -> None:
    values = np.array([1.0, 1.0 + 2.0**-7, -3e38, np.inf, np.nan]).astype(BF16)
    array = k.from_numpy(values)
    assert (array.dtype, array.nbytes, array.numpy().dtype) == ("bfloat16", 10, BF16)
    assert array.numpy().tobytes() == values.tobytes()
    assert [array.item(i) for i in range(2)] == [1.0, 1.0 + 2.0**-7]
    assert isinstance(k.fast_bf16(), bool)


def test_a_fresh_process_reads_what_another_wrote(tmp_path: Path) -> None:
    """NumPy knows bfloat16 only once ml_dtypes is imported, which reading must not leave to somebody else."""
    microgpt.train(data="names", steps=4, dtype="bf16", out=tmp_path / "run")
    code = "import microgpt, sys; run = microgpt.train(resume=sys.argv[1], steps=6); print(run.steps, run.model.dtype)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["6", "bfloat16"], done.stderr


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations_of_every_bfloat16_are_rounded_values(name: str, isa: str) -> None:
    """What is computed before rounding is within 2^-13 of the value (csrc/simd/math.h).

    That is 2^-14 of a reciprocal, 2^-18.5 of a power of two, 2^-16.8 of a fit of Mills' ratio, and an exponent that is
    off by three roundings, 3 x 2^-24 x 126 ln 2. Far out a limit may stand for what is below 2^-118.
    """
    k.set_isa(isa)
    x = np.arange(1 << 16, dtype=np.uint16).view(BF16)
    x = x[np.isfinite(x.astype(np.float32))]
    got = ops.activation(Tensor(k.from_numpy(x)), name).numpy().astype(np.float64)
    z = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if name == "gelu":
            want = z * np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2.0)), otypes=[np.float64])(z)
        else:
            want = z / (1.0 + np.exp(-z if name == "silu" else -2.0 * np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))
    half_ulp = np.exp2(np.floor(np.log2(np.maximum(np.abs(want), 2.0**-126))) - 8)
    off = np.abs(got - want)
    bad = ~(off <= half_ulp + 2.0**-13 * np.abs(want) + 2.0**-118)
    assert not bad.any(), (z[bad][:5], got[bad][:5], want[bad][:5])

"""Weights that an optimizer has laid side by side are one weight: q, k and v of attention as one product."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import ops
from microgpt.autograd import no_grad
from microgpt.errors import DTypeError, UsageError
from microgpt.nn.context import Ctx, Layout
from microgpt.nn.linear import Adapter, Linear, side_by_side
from microgpt.nn.mixers import MIXERS
from microgpt.nn.mixers.attention import Attention, AttentionSpec
from microgpt.nn.mixers.differential import DifferentialSpec
from microgpt.nn.module import Module
from microgpt.nn.place import Place
from microgpt.nn.rope import RopeSpec
from microgpt.nn.spec import NormSpec
from microgpt.optim.arena import Arenas, decay_groups
from microgpt.optim.optimizer import Optimizer
from microgpt.optim.rules import AdamW
from microgpt.program import Program
from microgpt.tensors import Tensor, tensor

WIDTH, LENGTHS = 32, (5, 11)


class Three(Module):
    def __init__(self, widths: tuple[int, ...] = (32, 16, 16), bias: bool = True, dtype: str = "float32") -> None:
        self.linears = [Linear(WIDTH, n, bias, dtype=dtype) for n in widths]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def attention(dtype: str, spec: Any = None) -> Attention:
    spec = spec or AttentionSpec(4, 8, 2)
    made: Any = MIXERS.get(spec.kind)(spec, Place(width=WIDTH, std=0.3, out_std=0.3, dtype=dtype, max_positions=16))
    made.initialize(1)
    return made


def gradients(mixer: Attention, x: np.ndarray, apart: bool = False) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output, and the gradients of x and of all parameters, for a loss of random weights."""
    if apart:
        mixer._packed = lambda x, ctx: None
    given = tensor(x.astype(np.float64 if mixer.q.weight.dtype == "float64" else np.float32), requires_grad=True)
    y = mixer(given, Ctx(Layout.packed(LENGTHS)), residual=given)
    (y * tensor(numbers(*y.shape, seed=3).astype(y.numpy().dtype))).sum().backward()
    own = {name: p.slot.array.numpy().copy() for name, p in mixer.named_parameters()}
    return y.numpy().copy(), {**own, "x": given.grad.copy()}


def two(dtype: str, spec: Any = None) -> list[Attention]:
    made = [attention(dtype, spec) for _ in range(2)]
    for each in made:
        each.arenas = Arenas(each, decay_groups(0.1))
    return made


def names(mixer: Attention) -> list[str]:
    x = tensor(numbers(sum(LENGTHS), WIDTH).astype(np.float32))
    ctx = Ctx(Layout.packed(LENGTHS))
    program = Program(lambda: mixer(x, ctx))
    program()
    return program.kernels()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_product_has_the_outputs_and_gradients_of_three(dtype: str):
    x = numbers(sum(LENGTHS), WIDTH)
    joined, apart = two(dtype)
    y, found = gradients(joined, x)
    expected_y, expected = gradients(apart, x, apart=True)
    assert np.array_equal(y, expected_y)  # the same chains of fma
    u = np.finfo(dtype).eps
    for name, value in expected.items():  # sums in another order
        np.testing.assert_allclose(found[name], value, rtol=0, atol=40 * u * np.abs(value).max(), err_msg=name)


def test_a_step_has_one_product_for_three():
    joined, apart = two("float32")
    apart._packed = lambda x, ctx: None
    assert names(joined).count("gemm") == 2 and names(apart).count("gemm") == 4


def test_gradients_of_two_backwards_add_up():
    joined, apart = two("float64")
    for _ in range(2):
        _, found = gradients(joined, numbers(sum(LENGTHS), WIDTH))
        _, expected = gradients(apart, numbers(sum(LENGTHS), WIDTH), apart=True)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("first", [True, False])
def test_a_weight_used_elsewhere_too_gets_both_gradients(first: bool):
    model = Three(dtype="float64")
    model.arenas = Arenas(model, decay_groups(0.1))
    q, others = model.linears[0], model.linears[1:]
    x = tensor(numbers(3, WIDTH))
    weight, bias = side_by_side(model.linears)
    uses = [lambda: ops.linear(x, weight, bias).sum(), lambda: 2.0 * ops.linear(x, q.weight, q.bias).sum()]
    total = uses[first]() + uses[not first]()
    total.backward()
    column = x.numpy().sum(0)
    np.testing.assert_allclose(q.weight.grad, np.tile(3 * column, (32, 1)))
    np.testing.assert_allclose(q.bias.grad, np.full(32, 9.0))
    for each in others:
        np.testing.assert_allclose(each.weight.grad, np.tile(column, (16, 1)))
        np.testing.assert_allclose(each.bias.grad, np.full(16, 3.0))


def test_what_lies_apart_stays_apart():
    model = Three()
    assert side_by_side(model.linears) is None  # each has memory of its own
    model.arenas = Arenas(model, decay_groups(0.1))
    weight, bias = side_by_side(model.linears)
    assert weight.shape == (64, WIDTH) and bias.shape == (64,)
    assert side_by_side(model.linears[::-1]) is None
    assert side_by_side([model.linears[0], model.linears[2]]) is None
    model.linears[1].adapters = [Adapter()]
    assert side_by_side(model.linears) is None
    assert side_by_side(model.linears[:1])[0].shape == (32, WIDTH)


def test_gaps_and_missing_biases_stay_apart():
    uneven = Three((32, 15, 16))
    uneven.arenas = Arenas(uneven, decay_groups(0.1))
    assert side_by_side(uneven.linears) is None  # 15 biases are padded to a cache line
    some = Three()
    some.linears[2].bias = None
    some.arenas = Arenas(some, decay_groups(0.1))
    assert side_by_side(some.linears) is None
    without = Three(bias=False)
    without.arenas = Arenas(without, decay_groups(0.1))
    assert side_by_side(without.linears)[1] is None


def test_a_frozen_weight_stays_apart():
    model = Three()
    model.linears[1].weight.freeze()
    model.arenas = Arenas(model, decay_groups(0.1))
    assert side_by_side(model.linears) is None


@pytest.mark.parametrize(
    "change",
    [
        {"rope": RopeSpec()},
        {"clip": 1.0},
        {"qk_norm": NormSpec("rms", bias=False)},
        {"gate": True},
        {"sinks": True},
        {"temperature": (0.1, 8)},
    ],
    ids=str,
)
def test_what_stands_between_keeps_products_apart(change: dict[str, Any]):
    mixer = two("float32", AttentionSpec(4, 8, 2, **change))[0]
    assert "q" in vars(mixer) and mixer._packed(tensor(numbers(4, WIDTH)), Ctx(Layout.packed((4,)))) is None
    plain = two("float32")[0]
    assert plain._packed(tensor(numbers(4, WIDTH).astype(np.float32)), Ctx(Layout.packed((4,)))) is not None


def test_differential_attention_keeps_its_own_way():
    mixer = two("float32", DifferentialSpec(4, 8, 4))[0]
    assert mixer._packed(tensor(numbers(4, WIDTH).astype(np.float32)), Ctx(Layout.packed((4,)))) is None


def test_arrays_are_joined_only_where_they_follow_each_other():
    block = k.empty((6, 4), "float32")
    parts = [block.view((2, 4)), block.view((3, 4), 8), block.view((1, 4), 20)]
    whole = k.joined(parts)
    assert whole.shape == (6, 4) and whole.address == block.address
    assert k.joined(parts[1:]).shape == (4, 4) and k.joined(parts[:1]).shape == (2, 4)
    for wrong in (parts[::-1], parts[::2], [parts[0], block.view((12,), 8)], [parts[0], block.view((3, 2), 8)], [],
                  [block.view(()), block.view((), 1)], [k.empty((2, 4)), k.empty((2, 4))]):  # fmt: skip
        assert k.joined(wrong) is None
    with pytest.raises(DTypeError, match="joined: expected arrays, got int"):
        k.joined([parts[0], 3])
    assert isinstance(Tensor(whole), Tensor)


@pytest.mark.parametrize("other", [decay_groups(0.0), decay_groups(0.1)])
def test_an_optimizer_made_before_the_walk_back_gets_the_gradients(other: Any):
    model, twin = two("float64")
    twin._packed = lambda x, ctx: None
    found = []
    for mixer in (model, twin):
        x = tensor(numbers(sum(LENGTHS), WIDTH), requires_grad=True)
        loss = (mixer(x, Ctx(Layout.packed(LENGTHS)), residual=x) * tensor(numbers(sum(LENGTHS), WIDTH, seed=3))).sum()
        mixer.arenas = Arenas(mixer, other)
        loss.backward()
        found.append({name: p.slot.array.numpy().copy() for name, p in mixer.named_parameters()})
    for name, value in found[1].items():
        assert np.abs(value).max() > 0
        np.testing.assert_allclose(found[0][name], value, rtol=1e-12, atol=1e-13, err_msg=name)


def test_weights_moved_apart_before_the_walk_back_are_an_error():
    mixer = attention("float64")
    mixer.arenas = Arenas(mixer, decay_groups(0.1))
    x = tensor(numbers(sum(LENGTHS), WIDTH))
    loss = mixer(x, Ctx(Layout.packed(LENGTHS)), residual=x).sum()
    mixer.k.weight.freeze()
    mixer.arenas = Arenas(mixer, decay_groups(0.1))
    with pytest.raises(UsageError, match="have been moved apart since the forward pass"):
        loss.backward()


class Doubled(Linear):
    def __call__(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return super().__call__(x, *args, **options) * 2.0


def test_what_a_subclass_changes_is_kept():
    x, ctx = tensor(numbers(sum(LENGTHS), WIDTH)), Ctx(Layout.packed(LENGTHS))

    def changed(mixer: Attention) -> list[np.ndarray]:
        found = []
        mixer.v.__class__ = Doubled
        found.append(mixer(x, ctx, residual=x).numpy().copy())
        mixer.v.__class__ = Linear
        mixer.attend = lambda q, k, v, ctx: Attention.attend(mixer, q, k, v, ctx) * 3.0
        found.append(mixer(x, ctx, residual=x).numpy().copy())
        del mixer.attend
        mixer._place = lambda x, *args: x * 0.5
        found.append(mixer(x, ctx, residual=x).numpy().copy())
        del mixer._place
        return [*found, mixer(x, ctx, residual=x).numpy().copy()]

    mixer = attention("float64")
    before = changed(mixer)
    mixer.arenas = Arenas(mixer, decay_groups(0.1))
    for now, then in zip(changed(mixer), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert all(np.abs(each - before[-1]).max() > 1e-3 for each in before[:-1])
    with no_grad():  # a few rows are one kernel's, too
        few, small = tensor(numbers(3, WIDTH)), Ctx(Layout.packed((3,)))
        plain = mixer(few, small, residual=few).numpy().copy()
        mixer.v.__class__ = Doubled
        assert np.abs(mixer(few, small, residual=few).numpy() - plain).max() > 1e-3


def test_an_optimizer_whose_parameters_were_frozen_or_taken_says_so():
    model = Three()
    optimizer = Optimizer(model, AdamW(), decay_groups(0.1))
    optimizer.feed(1, 0.1)
    optimizer.launch()
    model.linears[1].weight.freeze()
    with pytest.raises(UsageError, match=r"parameter 'linears.1.weight' was frozen after this optimizer was made"):
        optimizer.launch()
    other = Optimizer(model, AdamW(), decay_groups(0.1))
    other.feed(1, 0.1)
    other.launch()
    first = Three()
    before = Optimizer(first, AdamW(), decay_groups(0.1))
    Optimizer(first, AdamW(), decay_groups(0.1))
    before.feed(1, 0.1)
    with pytest.raises(UsageError, match=r"parameter 'linears.0.weight' was given to another optimizer"):
        before.launch()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_and_its_optimizer_are_copied_together(dtype):
    """The copy goes on as the original does, and neither moves the other."""

    def train(model: Attention, optimizer: Optimizer, steps: range) -> dict[str, bytes]:
        for step in steps:
            optimizer.feed(step, 0.01)
            x = ops.cast(tensor(numbers(sum(LENGTHS), WIDTH, seed=step).astype(np.float32)), dtype)
            loss = ops.cast(model(x, Ctx(Layout.packed(LENGTHS)), residual=x), "float32").sum()
            loss.backward()
            optimizer.launch(loss)
            assert optimizer.finite()
        weights = {name: p.data.numpy().tobytes() for name, p in model.named_parameters()}
        return weights | {name: array.tobytes() for name, array in optimizer.arrays().items()}

    model = attention(dtype)
    optimizer = Optimizer(model, AdamW(), decay_groups(0.1), max_norm=1.0)
    train(model, optimizer, range(1, 4))
    twin, its_own = copy.deepcopy((model, optimizer))
    before = train(twin, its_own, range(0))
    after = train(model, optimizer, range(4, 7))
    assert before == train(twin, its_own, range(0)) and before != after
    assert train(twin, its_own, range(4, 7)) == after
    assert train(model, optimizer, range(0)) == after

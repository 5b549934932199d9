"""The seam between Python and the core: how kernels are called, what an Array is, what a recording keeps."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from microgpt import Tensor, no_grad, ops
from microgpt import _kernels as k
from microgpt.errors import DTypeError, ShapeError, UsageError
from microgpt.program import Program


def array(*shape: int) -> k.Array:
    return k.from_numpy(np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape))


def test_arguments_by_place_by_name_and_by_default() -> None:
    x = array(5)
    for call in (
        lambda y: k.axpy(x, y, 2.0),
        lambda y: k.axpy(x, y, alpha=2),
        lambda y: k.axpy(y=y, alpha=np.float32(2), x=x),
        lambda y: k.axpy(x, y, **{"al" + "pha": 2.0}),  # a name that is not interned
    ):
        y = k.empty((5,))
        call(y)
        np.testing.assert_array_equal(y.numpy(), 2 * np.arange(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: k.axpy(x), r"axpy: `y` is missing"),
        (lambda x: k.axpy(x, x, 1.0, 0.0, None, 3), r"axpy: at most 5 arguments, got 6"),
        (lambda x: k.axpy(x, x, x=x), r"axpy: `x` was given twice"),
        (lambda x: k.axpy(x, x, gamma=1.0), r"axpy: no argument `gamma`"),
        (lambda x: k.axpy(x, 3), r"axpy: `y` expected an Array, got int"),
        (lambda x: k.axpy(x, None), r"axpy: `y` expected an Array, got NoneType"),
        (lambda x: k.axpy(x, x, alpha_at=1.0), r"axpy: `alpha_at` expected an Array or None, got float"),
        (lambda x: k.axpy(x, x, "2"), r"axpy: `alpha` expected a number, got str"),
        (lambda x: k.softmax(x, x, 5.0), r"softmax: `cols` expected an int of 64 bits, got float"),
        (lambda x: k.softmax(x, x, 2**63), r"softmax: `cols` expected an int of 64 bits, got int"),
        (lambda x: k.dropout(x, x, x, 0.5, -1), r"dropout: `seed` expected an int from 0 to 2\*\*64 - 1, got int"),
        (lambda x: k.copy(x, x, 5, [1]), r"copy: `shape` expected a list of ints, got int"),
        (lambda x: k.copy(x, x, [5], ["1"]), r"copy: `stride` expected an int of 64 bits, got str"),
    ],
)  # fmt: skip
def test_calls_that_do_not_fit(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(array(5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: k.copy(array(5), array(5), [1] * 7, [1] * 7), ShapeError, "copy: at most 6 axes"),
        (lambda: k.empty((2, "3")), ShapeError, "a shape must hold whole numbers, got '3'"),
        (lambda: k.empty((1,) * 9), ShapeError, "at most 8 axes"),
        (lambda: k.empty((-1,)), ShapeError, "negative size"),
        (lambda: k.empty((2,), "float16"), DTypeError, "float16"),
        (lambda: k.empty((2,), 3), DTypeError, "by its name, got int"),
        (lambda: k.binary(array(3), array(2), k.empty((3,)), 0), ShapeError, r"`b` of shape \(2,\) .* to \(3,\)"),
        (lambda: k.binary(array(2, 3), array(3), k.empty((3,)), 0), ShapeError, r"`a` of shape \(2, 3\)"),
        (lambda: k.broadcast_shape("add", (2, 3), (4, 3)), ShapeError, r"add: shapes \(2, 3\) and \(4, 3\) do not"),
        (lambda: k.check_float("op", x=array(1), y=k.empty((1,), "float64")), DTypeError,
         "op: `y` expected float32 like `x`, got float64"),
        (lambda: k.check_float("op", x=k.empty((1,), "int32")), DTypeError, "op: `x` expected float32, .*, got int32"),
        (lambda: k.check_wide("op", k.empty((1,), "bfloat16"), y=k.empty((1,), "bfloat16")), DTypeError,
         "op: `y` expected float32 beside bfloat16, got bfloat16"),
        (lambda: k.check_int32("op", ids=array(1)), DTypeError, "op: `ids` expected int32, got float32"),
        (lambda: k.check_int32("op", ids=[1]), DTypeError, "op: `ids` expected an Array, got list"),
    ],
)  # fmt: skip
def test_errors_of_the_core(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: k.unary(x, x, 99), UsageError, r"unary: `op` must be in 0\.\.11, got 99"),
        (lambda x: k.binary(x, x, x, -1), UsageError, r"binary: `op` must be in 0\.\.8, got -1"),
        (lambda x: k.reduce(x, k.empty((1,)), 1, 12, 1, 2), UsageError, r"reduce: `op` must be in 0\.\.1, got 2"),
        (lambda x: k.act(x, x, 6), UsageError, r"act: `kind` must be in 0\.\.5, got 6"),
        (lambda x: k.gemm(x, x, array(3, 3), 3, 3, 4, act=9), UsageError, r"matmul: `act` must be in 0\.\.5, got 9"),
        (lambda x: k.softmax(x, x, 5), ShapeError, r"softmax: \(3, 4\) has no whole rows of 5"),
        (lambda x: k.norm(x, x, x, 5, 1e-5), ShapeError, r"norm: \(3, 4\) has no whole rows of 5"),
    ],
)  # fmt: skip
def test_choices_and_rows_that_are_not_there(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(array(3, 4))


def _second_moments_in_the_weights(x: k.Array) -> None:
    step = k.from_numpy(np.ones(1, np.int64))
    k.adamw(x, array(3, 4), array(3, 4), x, array(1), step, 0.9, 0.99, 1e-8, 0.0)


def _attention_into_its_queries(x: k.Array) -> None:
    q, rows = x.view((3, 1, 4)), [k.from_numpy(np.array(n, np.int32)) for n in ([0, 3], [0], [3])]
    k.attention(q, array(3, 1, 4), array(3, 1, 4), q, *rows, 1, 1, 4, 4, 1.0, True, -1, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: k.gemm(x, array(4, 4), x, 3, 4, 4), r"gemm: `c` of shape \(3, 4\) shares memory with `a` of shape"),
        (lambda x: k.gemm(array(3, 4), array(4, 4), x, 3, 4, 4, bias=x.view((4,), 8)), r"gemm: `c` .* with `bias`"),
        (lambda x: k.gemm(array(2, 4), array(4, 4), x.view((2, 4)), 2, 4, 4, residual=x.view((2, 4), 4)),
         r"gemm: `c` .* with `residual` .*, or the same one"),
        (lambda x: k.gemm(array(3, 4), array(4, 4), x, 3, 4, 4, slope=x), r"gemm: `(c|slope)` .* with `(c|slope)`"),
        (lambda x: k.unary(x.view((11,)), x.view((11,), 1), 0), r"unary: `y` .* with `x`"),
        (lambda x: k.binary(x.view((4,)), x.view((3, 4)), x, 0), r"binary: `y` .* with `a` of shape \(4,\)"),
        (lambda x: k.axpy(x.view((8,)), x.view((8,), 4)), r"axpy: `y` .* with `x`"),
        (lambda x: k.copy(x, x.view((4,), 4), [4], [1]), r"copy: `y` .* with `x`"),
        (lambda x: k.copy(x, x.view((4,), 4), [4], [1], to_x=True), r"copy: `x` .* with `y`"),
        (lambda x: k.reduce(x, x.view((4,)), 1, 3, 4, 0), r"reduce: `y` .* with `x`"),
        (lambda x: k.softmax(x.view((2, 4)), x.view((2, 4), 4), 4), r"softmax: `y` .* with `x`"),
        (lambda x: k.norm(x, k.empty((3, 4)), x.view((3,)), 4, 1e-5), r"norm: `rstd` .* with `x`"),
        (_second_moments_in_the_weights, r"adamw: `param` .* with `v`"),
        (_attention_into_its_queries, r"attention: `o` of shape \(3, 1, 4\) shares memory with `q`"),
    ],
)  # fmt: skip
def test_what_is_written_is_no_part_of_what_is_read(call: Any, message: str) -> None:
    x = array(3, 4)
    with pytest.raises(UsageError, match=message):
        call(x)
    np.testing.assert_array_equal(x.numpy(), array(3, 4).numpy())


def test_keys_that_sequences_share_have_no_gradients() -> None:
    q, keys, values = (Tensor(array(n, 1, 4), requires_grad=True) for n in (2, 3, 3))
    where = [k.from_numpy(np.array(n, np.int32)) for n in ([0, 1, 2], [1, 0], [2, 2])]
    y = ops.attention(q, keys, values, *where)
    with pytest.raises(UsageError, match="attention_backward: sequences share the key at row 1"):
        y.sum().backward()


def test_element_by_element_an_array_may_be_replaced() -> None:
    x, double = array(3, 4), 2 * array(3, 4).numpy()
    k.binary(x, x, x, 0)
    np.testing.assert_array_equal(x.numpy(), double)
    k.axpy(x, x, 1.0, 1.0)
    np.testing.assert_array_equal(x.numpy(), 2 * double)
    eye = k.from_numpy(np.eye(4, dtype=np.float32))
    k.gemm(array(3, 4), eye, x, 3, 4, 4, residual=x)
    np.testing.assert_array_equal(x.numpy(), 2.5 * double)
    whole = array(6)  # neighbours in one block are apart
    k.unary(whole.view((3,)), whole.view((3,), 3), 0)
    np.testing.assert_array_equal(whole.numpy(), [0, 1, 2, 0, -1, -2])


def test_broadcast_shapes_are_numpys() -> None:
    for a, b in (((), ()), ((3,), ()), ((2, 1, 3), (4, 1)), ((0, 3), (1, 3)), ((1,), (0,))):
        assert k.broadcast_shape("op", a, b) == np.broadcast_shapes(a, b)
        assert k.broadcast_shape("op", list(b), list(a)) == np.broadcast_shapes(a, b)


def test_an_array_says_what_it_is_and_counts_its_references() -> None:
    x = array(2, 3)
    assert (x.shape, x.ndim, x.size, x.nbytes, x.dtype) == ((2, 3), 2, 6, 24, "float32")
    assert repr(x) == "Array((2, 3), float32)"
    assert x.dtype is k.empty((1,)).dtype
    gc.collect()  # arrays in cycles that other tests have left
    before = sys.getrefcount(x), sys.getrefcount(x.shape), sys.getrefcount(k.Array)
    for _ in range(100):
        k.axpy(x, x)
        x.view((3, 2)), x.shape, k.empty_like(x), x.numpy()
    gc.collect()
    assert (sys.getrefcount(x), sys.getrefcount(x.shape), sys.getrefcount(k.Array)) == before
    with pytest.raises(TypeError):
        k.Array()
    with pytest.raises(TypeError):
        type("Sub", (k.Array,), {})
    with pytest.raises(AttributeError):
        x.size = 3


def test_memory_outlives_its_array_as_long_as_a_view_does() -> None:
    x = array(1000)
    view, numbers = x.view((10,), 990), x.numpy()
    del x
    held = [array(1000) for _ in range(5)]
    np.testing.assert_array_equal(view.numpy(), np.arange(990, 1000))
    np.testing.assert_array_equal(numbers, np.arange(1000))
    assert len(held) == 5


def test_a_result_that_nobody_walks_back_is_gone_at_once() -> None:
    """No cycle between a tensor's slot and its entry: memory does not wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        x = Tensor(np.ones(1000, np.float32), requires_grad=True)
        before = k.pool_stats()["live_bytes"]
        y = ops.exp(ops.exp(x))
        gone = weakref.ref(y)
        assert k.pool_stats()["live_bytes"] > before
        del y
        assert gone() is None
        assert k.pool_stats()["live_bytes"] == before
    finally:
        gc.enable()


def test_a_constant_made_while_recording_is_the_same_in_every_replay() -> None:
    """Its block may have been free before: what earlier nodes write to it in a replay must not reach it."""
    x = array(1000)

    def fn() -> Tensor:
        total = ops.sum(ops.tanh(x))
        two = k.from_numpy(np.full(1000, 2, np.float32))  # the size of tanh's result, which is free by now
        return ops.add(ops.mul(x, two), total)

    program = Program(fn)
    with no_grad():
        want = fn().numpy().copy()
        for _ in range(3):
            np.testing.assert_array_equal(program().numpy(), want)


def test_a_plan_is_as_small_as_what_lives_at_once() -> None:
    """Results of all sizes that live for different times: nothing overlaps, and little is wasted."""
    rng = np.random.default_rng(0)
    inputs = [k.from_numpy(rng.standard_normal(size, dtype=np.float32)) for size in rng.integers(1, 20000, 30)]
    kept = set(rng.integers(0, 30, 10).tolist())

    def fn() -> Tensor:
        results = []
        for number, x in enumerate(inputs):
            y = ops.exp(ops.tanh(ops.square(x)))
            if number in kept:
                results.append(y)
            results.append(ops.sum(y))
        return ops.concat([ops.reshape(ops.sum(each), (1,)) for each in results])

    program = Program(fn)
    with no_grad():
        want = fn().numpy().copy()
        for _ in range(3):
            np.testing.assert_array_equal(program().numpy(), want)
    assert 0 < program.live_bytes <= program.bytes <= 1.05 * program.live_bytes + 64 * len(program)

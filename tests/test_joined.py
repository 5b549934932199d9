"""Projections of the same rows as one kernel: the bits of linear() each, whatever the shares; what is left to it."""

from __future__ import annotations

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import ops
from microgpt.autograd import no_grad
from microgpt.errors import ShapeError, UsageError
from microgpt.nn.linear import Adapter, Linear, project
from microgpt.program import Program
from microgpt.qtensor import Q_TYPES, QTensor
from microgpt.tensors import Tensor, numpy_dtype, tensor

ISAS = [name for name, supported in k.isas() if supported]
WIDTHS = (96, 33, 1, 0, 31, 160)  # of outputs: whole panels and not, none, more than one kernel takes


def numbers(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(numpy_dtype(dtype))


def given(inner: int, widths: tuple[int, ...], dtype: str) -> tuple[list[Tensor], list[Tensor | None]]:
    weights = [tensor(numbers(n, inner, seed=i, dtype=dtype)) for i, n in enumerate(widths)]
    return weights, [tensor(numbers(n, seed=n, dtype=dtype)) if i % 2 else None for i, n in enumerate(widths)]


def same(ys: list[Tensor] | None, x: Tensor, weights: list, biases: list) -> None:
    assert ys is not None
    for y, weight, bias in zip(ys, weights, biases, strict=True):
        right = ops.linear(x, weight, bias)
        assert y.shape == right.shape and y.dtype == right.dtype
        assert np.array_equal(y.numpy(), right.numpy())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("inner", [0, 1, 31, 70, 576])
def test_rows_have_the_bits_of_single_products(inner: int, dtype: str, isa: str):
    k.set_isa(isa)
    weights, biases = given(inner, WIDTHS, dtype)
    for rows in (0, 1, 3, k.JOINED_ROWS):
        x = tensor(numbers(rows, inner, seed=9, dtype=dtype))
        same(ops.joined_linear(x, weights, biases), x, weights, biases)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shares_cut_weights_anywhere(dtype: str):
    widths = (576, 192, 192, 1000)  # 62 units: several shares, none of which ends where a weight does
    weights, biases = given(600, widths, dtype)
    x = tensor(numbers(2, 600, dtype=dtype))
    for threads in (1, 2, 3):
        k.set_num_threads(threads)
        same(ops.joined_linear(x, weights, biases), x, weights, biases)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", sorted(name for name, row in Q_TYPES.items() if row.rounds))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_rows_have_the_bits_of_single_products(dtype: str, type: str, isa: str):
    k.set_isa(isa)
    _, biases = given(100, WIDTHS[:3] + WIDTHS[4:], dtype)
    weights = [QTensor.from_float(numbers(n, 100, seed=n), type, dtype=dtype) for n in WIDTHS if n]
    for rows in (1, 5, 8, 40):
        x = tensor(numbers(rows, 100, seed=9, dtype=dtype))
        same(ops.joined_linear(x, weights, biases), x, weights, biases)


@pytest.mark.parametrize("rows", [1, 8, 130, 400])
def test_quantized_shares_cut_weights_anywhere(rows: int):
    weights = [QTensor.from_float(numbers(n, 512, seed=n), "int4") for n in (500, 64, 1100, 32)]
    x = tensor(numbers(rows, 512))
    for threads in (1, 2, 3):
        k.set_num_threads(threads)
        same(ops.joined_linear(x, weights, [None] * 4), x, weights, [None] * 4)


def test_types_that_take_the_same_activations_are_joined():
    blocks = np.random.default_rng(0).integers(0, 256, (2, 64, 8 * 22)).astype(np.uint8)
    blocks.reshape(2, 64, 8, 22)[..., :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    weights = [QTensor.from_ggml("Q5_0", each, (64, 256)) for each in blocks]
    x = tensor(numbers(3, 256))
    same(ops.joined_linear(x, weights, [None] * 2), x, weights, [None] * 2)


def test_a_replay_is_one_kernel_with_the_same_bits():
    weights, biases = given(64, (48, 48, 96), "float32")
    x = tensor(numbers(2, 64))
    program = Program(lambda: ops.joined_linear(x, weights, biases))
    eager = [y.numpy().copy() for y in program()]  # the recording itself
    assert program.kernels() == ["gemm_joined"]
    x.data.copy_from(numbers(2, 64, seed=5))
    same(program(), x, weights, biases)
    x.data.copy_from(numbers(2, 64))
    assert all(np.array_equal(y.numpy(), before) for y, before in zip(program(), eager, strict=True))


def test_projections_are_one_kernel_where_no_gradient_is_wanted():
    linears = [Linear(64, n) for n in (64, 32)]
    x = tensor(numbers(1, 64))
    assert ops.joined_linear(x, [each.weight for each in linears], [None, None]) is None  # parameters want theirs
    taped = [y.numpy().copy() for y in project(x, None, linears)]
    with no_grad():
        program = Program(lambda: project(x, None, linears))
        ys = program()
        assert program.kernels() == ["gemm_joined"]
        assert all(np.array_equal(y.numpy(), each) for y, each in zip(ys, taped, strict=True))
        linears[0].adapters = [Adapter()]
        plain = Program(lambda: project(x, None, linears))
        assert all(np.array_equal(y.numpy(), each) for y, each in zip(plain(), taped, strict=True))
        assert plain.kernels() == ["gemm", "gemm"]


def test_what_one_kernel_does_not_do_is_left_to_linear():
    weights, _ = given(64, (32, 32), "float32")
    mixed = [weights[0], QTensor.from_float(numbers(32, 64), "int4")]
    x = tensor(numbers(1, 64))
    assert ops.joined_linear(x, mixed, [None, None]) is None
    assert ops.joined_linear(x, weights[:1], [None]) is None
    assert ops.joined_linear(tensor(numbers(k.JOINED_ROWS + 1, 64)), weights, [None, None]) is None
    assert (
        ops.joined_linear(x, [QTensor.from_float(numbers(32, 64), each) for each in ("int4", "int8")], [None] * 2)
        is None
    )
    float_weights = [QTensor.from_float(numbers(32, 64), "int4") for _ in range(2)]
    for each in float_weights:
        each.activations = "float"
    assert ops.joined_linear(x, float_weights, [None, None]) is None


def test_wrong_shapes_are_refused():
    weights, _ = given(64, (32, 16), "float32")
    arrays = tuple(weight.data for weight in weights)
    x = k.from_numpy(numbers(1, 64))
    with pytest.raises(ShapeError, match="weights"):
        k.linear_joined(k.from_numpy(numbers(1, 63)), arrays, (None, None))
    with pytest.raises(ShapeError, match="rows"):
        k.linear_joined(k.from_numpy(numbers(k.JOINED_ROWS + 1, 64)), arrays, (None, None))
    with pytest.raises(ShapeError, match="bias"):
        k.linear_joined(x, arrays, (k.from_numpy(numbers(31)), None))
    with pytest.raises(UsageError, match="one to four"):
        k.linear_joined(x, (), ())
    with pytest.raises(UsageError, match="one to four"):
        k.linear_joined(x, arrays, (None,))

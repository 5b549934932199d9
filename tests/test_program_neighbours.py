"""Nodes of a recording that run side by side: the bits of eager execution, within the memory that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import ops
from microgpt.program import Program
from microgpt.tensors import Tensor

Numbers = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_neighbours_side_by_side_have_the_bits_of_eager_ops(seed: int) -> None:
    """Random chains of ops that write new tensors and old ones, their backward and a step."""
    rows, width = 320, 128
    weights = [Tensor(normal(width, width, seed=i) / 8, requires_grad=True) for i in range(4)]
    x, *kept = [Tensor(normal(rows, width, seed=9 + i)) for i in range(4)]
    first = [tensor.numpy().copy() for tensor in weights + kept]
    plan = np.random.default_rng(seed).integers(0, 1000, (24, 4)).tolist()

    def step() -> tuple[Tensor, ...]:
        for weight in weights:
            weight.zero_grad()
        made = [x]
        for kind, a, b, c in plan:
            left, right = made[a % len(made)], made[b % len(made)]
            if kind % 4 == 0:
                made.append(ops.linear(left, weights[c % 4]))
            elif kind % 4 == 1:
                made.append(left + right)
            elif kind % 4 == 2:
                made.append(ops.softmax(left))
            else:  # reads what is written again behind it
                made.append(ops.activation(left + kept[b % 3]))
                k.axpy(made[-1].data, kept[c % 3].data, 0.25, 0.5)
        loss = (made[-1] * made[-1]).mean()
        for tensor in made[-6:-1]:
            loss = loss + (tensor * tensor).mean()
        loss.backward()
        for weight in weights:
            if weight.slot.array is not None:
                k.axpy(weight.slot.array, weight.data, -0.1, 1.0)
        return (loss, *made[-3:])

    def run(call: Callable[[], tuple[Tensor, ...]]) -> list[bytes]:
        for tensor, values in zip(weights + kept, first, strict=True):
            tensor.data.copy_from(values)
        for seed in range(3):
            x.data.copy_from(normal(rows, width, seed=seed))
            outputs = call()
        return [tensor.numpy().tobytes() for tensor in (*outputs, *weights, *kept)]

    expected = run(step)
    program = Program(step)
    assert run(program) == expected
    assert "beside=" in program.dump()


def test_gradients_of_a_product_are_one_after_the_other_where_they_meet() -> None:
    x = Tensor(normal(320, 128), requires_grad=True)
    weight = Tensor(normal(128, 128, seed=1), requires_grad=True)

    def step() -> None:
        for tensor in (x, weight):
            tensor.zero_grad()
        ops.linear(x, weight).sum().backward()
        k.axpy(weight.slot.array, weight.data, -0.1, 1.0)

    program = Program(step)
    for _ in range(2):
        program()
    lines = program.dump().splitlines()
    kernels = [line.split()[1] for line in lines]
    update = len(kernels) - 1
    gradients = [i for i, kernel in enumerate(kernels) if kernel == "gemm"][1:]
    assert kernels[update] == "axpy" and len(gradients) == 2
    # Both read the gradient of the sum and write apart; the update reads and writes what they read and wrote.
    assert lines[gradients[1]].endswith(f" beside={gradients[0]}")
    assert "beside" not in lines[update]

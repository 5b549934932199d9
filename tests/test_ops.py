"""Every op case of tests/opcases: values, gradients, instruction sets, threads, and refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt.ops import OPS
from microgpt.tensors import Tensor, numpy_dtype

from .opcases import CASES, ERRORS, RULES, Case, ErrorCase, assert_close, flat, run
from .opcases.bounds import U16, U32, U64
from .opcases.case import place

ISAS = [name for name, supported in k.isas() if supported]
THREADS = (1, 2, 3, 4, 8)

# Gradients that are one chain started from what is added to, or whose terms are.
CHAINS = {"matmul", "linear", "linear_cross_entropy", "rms_norm", "layer_norm", "embedding", "attention", "ssd",
          "gated_delta", "grouped_linear", "mlp"}  # fmt: skip

cases = pytest.mark.parametrize("case", CASES, ids=str)


def test_every_op_has_cases_errors_bounds_and_a_specification() -> None:
    names = set(OPS)
    assert {case.op for case in CASES} == names
    assert {case.op for case in ERRORS} == names
    assert set(RULES) == names
    # A fused op's specification is its composed twin; a plain op's is NumPy.
    plain = {name for name, op in OPS.items() if op.composed_fn is None}
    assert plain == {name for name, rule in RULES.items() if rule.reference is not None}
    assert all(op.__module__ == "microgpt.ops.basic" for op in (OPS.get(name) for name in plain))


def test_every_op_with_large_inputs_is_tried_on_several_threads() -> None:
    views = {"reshape"}  # no kernel runs
    assert {case.op for case in CASES if case.shares} == set(OPS) - views
    assert len({str(case) for case in CASES}) == len(CASES)


def test_unsupported_isas_are_refused() -> None:
    with pytest.raises(Exception, match="sse9") as caught:
        k.set_isa("sse9")
    assert type(caught.value).__name__ == "IsaError"


def specification(case: Case, inputs: dict[str, Any]) -> np.ndarray:
    reference = RULES[case.op].reference
    if reference is not None:
        return np.asarray(reference(**inputs, **case.options))
    return run(case, inputs, "float64", composed=True, gradients=False)[0]


@cases
def test_float64_against_specification(case: Case) -> None:
    """The reference path equals the composed twin; both round, hence twice the bound."""
    inputs = case.inputs()
    y, gradients = run(case, inputs, "float64")
    rule = RULES[case.op]
    joins = ("attention", "packed_attention", "ssd", "gated_delta", "rwkv7")  # the twin concatenates sequences
    want = y if y.size == 0 and case.op in joins else specification(case, inputs)
    assert_close(str(case), y, want, 2 * rule.forward(inputs, case.options, want, U64))
    if rule.reference is not None or y.size == 0:
        return
    dy = case.gradient(y.shape)
    bounds = rule.gradients(inputs, case.options, y, dy, U64)
    _, wanted = run(case, inputs, "float64", composed=True)
    for name, gradient in gradients.items():
        assert_close(f"{case} d{name}", gradient, wanted[name], 2 * bounds[name])


@pytest.mark.parametrize("case", [case for case in CASES if case.small], ids=str)
def test_float64_gradients_against_central_differences(case: Case) -> None:
    """Five points with h = 1e-3: truncation h^4 / 30 times the fifth derivative (below 1e5 in the range of the inputs),
    rounding 1.5 u |L| / h: together below 1e-8 for |L| < 1e4.
    """
    inputs = case.inputs()
    y, gradients = run(case, inputs, "float64")
    dy = case.gradient(y.shape)
    h = 1e-3
    for name, gradient in gradients.items():
        target = flat(inputs)[name]  # the array itself, so that writing to it moves the input
        numeric = np.zeros_like(target)
        for at in np.ndindex(target.shape):
            kept = target[at]
            for offset, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                target[at] = kept + offset * h
                numeric[at] += weight * float((run(case, inputs, "float64", gradients=False)[0] * dy).sum())
            target[at] = kept
        numeric /= 12 * h
        assert_close(f"{case} d{name}", gradient, numeric, 1e-8 * max(1.0, float(np.abs(numeric).max(initial=0.0))))


@cases
def test_float32_against_float64_on_every_isa(case: Case) -> None:
    inputs = case.inputs()
    want, gradients = run(case, inputs, "float64")
    rule = RULES[case.op]
    bound = rule.forward(inputs, case.options, want, U32)
    bounds = rule.gradients(inputs, case.options, want, case.gradient(want.shape), U32)
    for isa in ISAS:
        k.set_isa(isa)
        y, got = run(case, inputs, "float32")
        assert y.dtype == ("bfloat16" if case.options.get("dtype") == "bfloat16" else "float32")
        assert_close(f"{case} on {isa}", y, want, bound)
        assert got.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert_close(f"{case} d{name} on {isa}", got[name], gradient, bounds[name])


@cases
def test_bfloat16_against_float64_on_every_isa(case: Case) -> None:
    """Inputs are bfloat16 numbers, so nothing is lost before the op; what it rounds is in the bounds, with u = 2^-8.

    These are of first order: 1.05 is for u^2 and beyond, at most 12 roundings deep (1.004^12).
    """
    case = dataclasses.replace(case, stored="bfloat16")
    inputs = case.inputs()
    want, gradients = run(case, inputs, "float64")
    rule = RULES[case.op]
    bound = 1.05 * rule.forward(inputs, case.options, want, U16)
    bounds = rule.gradients(inputs, case.options, want, case.gradient(want.shape), U16)
    wide = case.op.endswith("cross_entropy") or "wide_out" in case.options or case.options.get("dtype") == "float32"
    for isa in ISAS:
        k.set_isa(isa)
        y, got = run(case, inputs, "bfloat16")
        assert y.dtype == ("float32" if wide else "bfloat16")
        assert_close(f"{case} on {isa}", y, want, bound)
        assert got.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert got[name].dtype == np.float32
            assert_close(f"{case} d{name} on {isa}", got[name], gradient, 1.05 * bounds[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [case for case in CASES if case.shares], ids=str)
def test_threads_do_not_change_bits(case: Case, dtype: str) -> None:
    case = dataclasses.replace(case, stored=dtype)
    inputs = case.inputs()
    seen: dict[str, bytes] | None = None
    for threads in THREADS:
        k.set_num_threads(threads)
        for _ in range(2):
            y, gradients = run(case, inputs, dtype)
            bits = {"y": y.tobytes(), **{name: gradient.tobytes() for name, gradient in gradients.items()}}
            seen = seen or bits
            differ = [name for name in bits if bits[name] != seen[name]]
            assert not differ, f"{case}: {differ} differ between {THREADS[0]} and {threads} threads"


@cases
def test_recomputing_gives_the_same_bits(case: Case) -> None:
    """Blocks are reused with other contents in between: nothing undefined is read."""
    inputs = case.inputs()
    first, gradients = run(case, inputs, "float32")
    first, gradients = first.copy(), {name: gradient.copy() for name, gradient in gradients.items()}
    for size in {first.nbytes, *(gradient.nbytes for gradient in gradients.values())}:
        poison = [k.empty((size // 4 + 1,), "float32") for _ in range(6)]
        for array in poison:
            k.fill(array, float("nan"))
    del poison, array
    again, others = run(case, inputs, "float32")
    assert again.tobytes() == first.tobytes()
    assert {name: gradient.tobytes() for name, gradient in others.items()} == {
        n: g.tobytes() for n, g in gradients.items()
    }


def smallest(op: str) -> Case:
    """The op's first case with differentiable inputs that are not empty."""
    return next(c for c in CASES if c.op == op and all(a.size for a in flat(c.inputs()).values()))


@pytest.mark.parametrize("op", list(OPS))
def test_gradients_only_for_those_asked(op: str) -> None:
    """Each input alone gets the bits that it gets among the others, and nobody else gets any."""
    case = smallest(op)
    inputs = case.inputs()
    _, everything = run(case, inputs, "float32")
    for name, gradient in everything.items():
        _, alone = run(case, inputs, "float32", wanted={name})
        assert alone.keys() == {name}
        assert alone[name].tobytes() == gradient.tobytes()
    y, nothing = run(case, inputs, "float32", wanted=set())
    assert not nothing
    assert y.tobytes() == run(case, inputs, "float32")[0].tobytes()


@pytest.mark.parametrize("op", list(OPS))
def test_gradients_accumulate(op: str) -> None:
    """A second use of the same tensors adds: g + g = 2 g, exactly, however the op writes."""
    case = smallest(op)
    inputs = case.inputs()
    _, once = run(case, inputs, "float32")
    placed, leaves = place(case, inputs, "float32")
    for _ in range(2):
        y = OPS.get(op)(**placed, **case.options)
        y.backward(case.gradient(y.shape).astype(numpy_dtype(y.dtype)))
    for name, gradient in once.items():
        # One chain per element starts from the first sum where a product accumulates: n roundings of its size, not one.
        if op in CHAINS:
            want = run(case, inputs, "float64")[1][name] * 2
            dy = case.gradient(y.shape)
            bound = RULES[op].gradients(inputs, case.options, y.numpy().astype(np.float64), dy, U32)[name]
            assert_close(f"{case} d{name}", leaves[name].grad, want, 3 * bound + 2 * U32 * np.abs(want))
        else:
            np.testing.assert_array_equal(leaves[name].grad, 2 * gradient)
    for tensor in leaves.values():
        tensor.zero_grad()
        assert tensor.grad is None


def test_one_tensor_as_both_inputs_gets_the_sum() -> None:
    values = np.array([1.5, -2.0, 3.0], np.float32)
    for op, want in (("add", 2 + 0 * values), ("sub", 0 * values), ("mul", 2 * values), ("maximum", 1 + 0 * values)):
        x = Tensor(values, requires_grad=True)
        OPS.get(op)(x, x).backward(np.ones(3, np.float32))
        np.testing.assert_array_equal(x.grad, want, err_msg=op)
    x = Tensor(np.arange(4, dtype=np.float32).reshape(2, 2), requires_grad=True)
    y = OPS.get("linear")(x, x, None, x)  # x x^T + x
    y.backward(np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(x.grad, 2 * np.array([[2, 4], [2, 4]]) + 1)


@pytest.mark.parametrize("case", ERRORS, ids=str)
def test_errors(case: ErrorCase) -> None:
    with pytest.raises(case.error, match=case.pattern):
        case.call()

"""What the ops promise as mathematics, and what their kernels may touch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
from microgpt import _kernels as k
from microgpt import ops
from microgpt.ops import loss, raw
from microgpt.tensors import Tensor, numpy_dtype, wide

from .opcases import assert_close
from .opcases.bounds import U32, gamma, softmax_relative
from .opcases.case import int32_array

Numbers = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- softmax, norms ----------------------------------------
@given(shift=st.floats(-1e4, 1e4, width=32), cols=st.sampled_from([1, 2, 15, 16, 17, 33, 100]))
def test_softmax_does_not_see_a_shift(shift: float, cols: int) -> None:
    x = normal(3, cols).astype(np.float64)
    shifted = (x.astype(np.float32) + np.float32(shift)).astype(np.float64)
    want = np.exp(x - x.max(-1, keepdims=True))
    want /= want.sum(-1, keepdims=True)
    y = ops.softmax(shifted.astype(np.float32)).numpy()
    # x + shift was rounded before the op saw it: an error of u |x + shift| in each score.
    assert_close("softmax", y, want, want * softmax_relative(x, U32 * np.abs(shifted), U32))
    assert_close("sum", y.sum(-1, dtype=np.float64), np.ones(3), gamma(cols + 2, U32) + 2 * U32)


def test_softmax_of_masked_scores() -> None:
    x = np.full((3, 20), -np.inf, np.float32)
    x[0, 7] = x[1, 3] = x[1, 19] = 0.0
    x[2] = 1e30
    y = ops.softmax(x).numpy()
    assert y[0].tolist() == [1.0 if i == 7 else 0.0 for i in range(20)]
    assert y[1].tolist() == [0.5 if i in (3, 19) else 0.0 for i in range(20)]
    np.testing.assert_array_equal(y[2], np.full(20, np.float32(0.05)))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e4, 1e-20])
@pytest.mark.parametrize("cols", [1, 16, 33, 100])
def test_layer_norm_of_a_constant_row_is_its_bias(value: float, cols: int) -> None:
    """x - mean is the mean's own rounding, at most u |value|, times rstd = 1 / sqrt(eps)."""
    bias = normal(cols)
    y = ops.layer_norm(np.full((2, cols), value, np.float32), np.ones(cols, np.float32), bias, eps=1e-5).numpy()
    off = (np.float64(np.float32(value)) * U32) / np.sqrt(1e-5)
    assert_close("layer_norm", y, np.stack([bias, bias]).astype(np.float64), abs(off) + U32 * np.abs(bias))
    assert np.all(ops.layer_norm(np.zeros((2, cols), np.float32)).numpy() == 0)


def test_norms_do_not_see_scale() -> None:
    """Multiplying by a power of two changes no bit where eps is 0."""
    x = normal(5, 65)
    for op in (ops.layer_norm, ops.rms_norm):
        assert op(x, eps=0.0).numpy().tobytes() == op(x * 1024, eps=0.0).numpy().tobytes()


# -- rotary positions ----------------------------------------
@given(m=st.integers(0, 900), n=st.integers(0, 900), shift=st.integers(0, 100), interleaved=st.booleans())
def test_rope_scores_depend_on_the_distance_only(m: int, n: int, shift: int, interleaved: bool) -> None:
    half = 8
    angles = np.arange(1001)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = (k.from_numpy(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    q, key = normal(1, 1, 2 * half, seed=1), normal(1, 1, 2 * half, seed=2)

    def score(a: int, b: int) -> float:
        rotated = [
            ops.rope(x, int32_array(at), cos, sin, interleaved).numpy().astype(np.float64)
            for x, at in ((q, a), (key, b))
        ]
        return float((rotated[0] * rotated[1]).sum())

    # The tables are rounded (u each), a component takes 3 roundings of |pair|, and pairs are as long after as before.
    norms = float(np.linalg.norm(q.astype(np.float64)) * np.linalg.norm(key.astype(np.float64)))
    assert abs(score(m, n) - score(m + shift, n + shift)) <= 2 * 2 * 6 * U32 * norms


def test_rope_backward_is_the_inverse() -> None:
    angles = np.arange(50)[:, None] * np.ones(3)
    cos, sin = (k.from_numpy(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    x = Tensor(normal(50, 2, 7), requires_grad=True)
    y = ops.rope(x, int32_array(*range(50)), cos, sin)
    y.backward(y.numpy())
    size = np.abs(x.numpy()[..., :3]) + np.abs(x.numpy()[..., 3:6])
    assert_close("rope", x.grad[..., :3], x.numpy()[..., :3].astype(np.float64), 12 * U32 * size)
    assert x.grad[..., 6].tobytes() == x.numpy()[..., 6].tobytes()


# -- attention ----------------------------------------
def attend(q: Numbers, key: Numbers, value: Numbers, rows: list[int], lengths: list[int], **options: Any) -> Numbers:
    starts = np.cumsum([0, *rows]), np.cumsum([0, *lengths])[:-1]
    layout = (int32_array(*starts[0]), int32_array(*starts[1]), int32_array(*lengths))
    return ops.attention(q, key, value, *layout, **options).numpy()


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 20}, {"soft_cap": 3.0}], ids=str)
def test_packed_sequences_are_the_separate_ones(options: dict[str, Any]) -> None:
    rows, lengths = [1, 70, 0, 33, 5], [65, 70, 3, 129, 64]
    q, key, value = normal(sum(rows), 4, 16), normal(sum(lengths), 2, 16), normal(sum(lengths), 2, 16, seed=1)
    together = attend(q, key, value, rows, lengths, **options)
    at, key_at = 0, 0
    for n, length in zip(rows, lengths, strict=True):
        part, keys = slice(at, at + n), slice(key_at, key_at + length)
        alone = attend(q[part], key[keys], value[keys], [n], [length], **options)
        assert together[part].tobytes() == alone.tobytes()
        at, key_at = at + n, key_at + length


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_row_by_row_is_the_whole(dtype: str) -> None:
    """Prefill in pieces of any size and token by token: the same bits."""
    length = 131
    made = normal(length, 2, 24), normal(length, 1, 24), normal(length, 1, 24, seed=1)
    q, key, value = (x.astype(numpy_dtype(dtype)) for x in made)
    whole = attend(q, key, value, [length], [length])
    for step in (1, 7, 33, 64):
        for begin in range(0, length, step):
            end = min(length, begin + step)
            piece = attend(q[begin:end], key[:end], value[:end], [end - begin], [end])
            assert piece.tobytes() == whole[begin:end].tobytes()


@pytest.mark.parametrize("at", [1, 15, 63, 64, 100])
def test_attention_is_causal(at: int) -> None:
    """A later token changes no bit of an earlier row, forwards; and gets no gradient from it, backwards."""
    q, key, value = normal(101, 2, 16), normal(101, 2, 16), normal(101, 2, 16, seed=1)
    before = attend(q, key, value, [101], [101])
    for changed in (q, key, value):
        changed[at:] = np.float32("nan")
    after = attend(q, key, value, [101], [101])
    assert after[:at].tobytes() == before[:at].tobytes()
    assert np.isnan(after[at:]).all()


def test_attention_backward_is_causal() -> None:
    q, key, value = (Tensor(normal(101, 2, 16, seed=s), requires_grad=True) for s in range(3))
    layout = (int32_array(0, 101), int32_array(0), int32_array(101))
    dy = np.zeros((101, 2, 16), np.float32)
    dy[:40] = 1.0
    ops.attention(q, key, value, *layout).backward(dy)
    for tensor in (q, key, value):
        assert np.all(tensor.grad[40:] == 0)
        assert np.abs(tensor.grad[:40]).max() > 0


@pytest.mark.parametrize("isa", [name for name, supported in k.isas() if supported])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("width", [4, 16])
@pytest.mark.parametrize(
    ("starts", "lengths", "rows"),
    [
        ([3, 9, 20], [4, 5, 6], [4, 2, 6]),  # before, between, behind
        ([20, 0, 9], [6, 4, 5], [6, 0, 5]),  # in another order, one without queries
        ([4, 4, 11, 11], [0, 7, 0, 3], [0, 7, 0, 1]),  # some of nothing, at both ends of others
        ([7, 2], [0, 0], [0, 0]),
        ([2, 7], [0, 0], [0, 0]),
        ([], [], []),
    ],
)
def test_keys_outside_all_sequences_have_gradient_zero(
    starts: list[int], lengths: list[int], rows: list[int], width: int, dtype: str, isa: str
) -> None:
    k.set_isa(isa)
    real = numpy_dtype(dtype)
    q, key, value, dout = (k.from_numpy(normal(n, 2, width).astype(real)) for n in (sum(rows), 30, 30, sum(rows)))
    layout = (int32_array(*np.cumsum([0, *rows])), int32_array(*starts), int32_array(*lengths))
    shape: dict[str, Any] = {"heads": 2, "kv_heads": 2, "k_dim": width, "v_dim": width, "scale": 0.5}
    out, lse = k.empty_like(q), k.empty((2, sum(rows)), wide(dtype))
    dq, dk, dv = k.empty_like(q), *(k.from_numpy(np.full((30, 2, width), np.nan, real)) for _ in range(2))
    k.attention(q, key, value, out, *layout, lse=lse, **shape)
    k.attention_backward(q, key, value, out, lse, dout, dq, dk, dv, *layout, **shape)
    inside = np.zeros(30, bool)
    for start, length in zip(starts, lengths, strict=True):
        inside[start : start + length] = True
    for grad in (dk.numpy(), dv.numpy()):
        assert np.isfinite(grad.astype(np.float64)).all()
        assert not grad[~inside].any()


# -- products: a row has the same bits alone or in a batch ----------------------------------------
@pytest.mark.parametrize("isa", [name for name, supported in k.isas() if supported])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("inner", [1, 17, 64, 300])
def test_a_row_of_linear_is_the_same_alone_and_in_a_batch(inner: int, dtype: str, isa: str) -> None:
    k.set_isa(isa)
    weight, bias = (x.astype(numpy_dtype(dtype)) for x in (normal(129, inner), normal(129, seed=1)))
    x = normal(130, inner, seed=2).astype(numpy_dtype(dtype))
    whole = ops.linear(x, weight, bias, act="gelu").numpy()
    for rows in (1, 2, 3, 5, 8, 16, 17, 33):
        for begin in (0, 7, 130 - rows):
            part = ops.linear(x[begin : begin + rows], weight, bias, act="gelu").numpy()
            assert part.tobytes() == whole[begin : begin + rows].tobytes()


# -- dropout ----------------------------------------
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_draws_the_mask_again(p: float) -> None:
    n, step = 200_000, k.from_numpy(np.array([5], np.int64))
    x = Tensor(np.ones(n, np.float32), requires_grad=True)
    y = ops.dropout(x, p, step, 42, 3)
    kept = int((y.numpy() != 0).sum())
    # Binomial: six standard deviations are passed once in 10^9 seeds.
    assert abs(kept - n * (1 - p)) <= 6 * np.sqrt(n * p * (1 - p))
    assert set(np.unique(y.numpy())) == {0.0, np.float32(1 / (1 - p))}
    y.backward(np.ones(n, np.float32))
    assert x.grad.tobytes() == y.numpy().tobytes()


def test_dropout_masks_are_told_apart_by_seed_stream_and_step() -> None:
    masks = set()
    for seed, stream, at in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (2**64 - 1, 2**64 - 1, 2**62)):
        step = k.from_numpy(np.array([at], np.int64))
        y = ops.dropout(np.ones(64, np.float32), 0.5, step, seed, stream).numpy()
        assert y.tobytes() == ops.dropout(np.ones(64, np.float32), 0.5, step, seed, stream).numpy().tobytes()
        masks.add(y.tobytes())
    assert len(masks) == 5


# -- linear_cross_entropy in chunks ----------------------------------------
def projected(rows: int, vocab: int, width: int) -> tuple[Tensor, Tensor, k.Array]:
    targets = np.random.default_rng(7).integers(-1, vocab, rows).astype(np.int32)
    return (
        Tensor(normal(rows, width), requires_grad=True),
        Tensor(normal(vocab, width, seed=1) / np.float32(np.sqrt(width)), requires_grad=True),
        k.from_numpy(targets),
    )


def test_chunks_of_linear_cross_entropy_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for at_once in (2**23, 1):  # one chunk, and chunks of 64 rows
        monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
        x, weight, targets = projected(300, 97, 33)
        y = ops.linear_cross_entropy(x, weight, targets)
        y.backward()
        results.append((y.item(), x.grad, weight.grad))
    whole, chunked = results
    # Rows are independent, and a product started from the chunks before is the same chain over the rows.
    assert whole[0] == chunked[0]
    assert whole[1].tobytes() == chunked[1].tobytes()
    assert whole[2].tobytes() == chunked[2].tobytes()


def test_linear_cross_entropy_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocab, width = 2048, 4096, 16
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 64 * vocab)
    x, weight, targets = projected(rows, vocab, width)
    asked: list[int] = []
    empty = k.empty

    def counted(shape: Any, dtype: str = "float32") -> k.Array:
        made = empty(shape, dtype)
        asked.append(made.size)
        return made

    monkeypatch.setattr(k, "empty", counted)
    ops.linear_cross_entropy(x, weight, targets).backward()
    assert max(asked) == 64 * vocab
    assert max(asked) * 32 == rows * vocab


def test_cross_entropy_survives_extreme_logits() -> None:
    logits = np.array([[1e30, -1e30, 0], [-np.inf, 0, 0], [88, 88, 88]], np.float32)
    y = ops.cross_entropy(logits, int32_array(0, 1, 2), reduction="none").numpy()
    assert y[0] == 0
    assert_close("losses", y, np.array([0, np.log(2), np.log(3)]), 2 * 12 * U32 * np.array([1, 1, 88]))


# -- what kernels may touch ----------------------------------------
SENTINEL = np.float32(-7.5e33)


class Guarded:
    """An array in the middle of a larger one that is full of sentinels."""

    def __init__(self, shape: tuple[int, ...], dtype: str, offset: int = 37) -> None:
        size = int(np.prod(shape))
        self.sentinel = SENTINEL.astype(numpy_dtype(dtype))
        self.whole = k.from_numpy(np.full(size + 2 * offset, self.sentinel))
        self.array = self.whole.view(shape, offset)
        self.inside = slice(offset, offset + size)

    def check(self, what: str) -> None:
        """Everything around is untouched, everything inside is written."""
        values = self.whole.numpy()
        outside = np.ones(values.shape, bool)
        outside[self.inside] = False
        assert np.all(values[outside] == self.sentinel), f"{what}: wrote outside its output"
        assert np.all(values[self.inside] != self.sentinel), f"{what}: left a part of its output unwritten"


@pytest.mark.parametrize("isa", [name for name, supported in k.isas() if supported])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129])
def test_kernels_write_their_outputs_and_nothing_else(n: int, dtype: str, isa: str) -> None:
    k.set_isa(isa)
    rows, inner = 5, 9

    def made(*shape: int) -> k.Array:
        return k.from_numpy(normal(*shape).astype(numpy_dtype(dtype)))

    x, w = made(rows, n), made(n, inner)
    layout = (int32_array(0, rows), int32_array(0), int32_array(rows))
    heads = made(rows, 1, n)
    targets, ids = int32_array(*[0] * rows), int32_array(0, rows - 1)
    step = k.from_numpy(np.array([1], np.int64))

    def outputs(*shapes: tuple[int, ...]) -> list[Guarded]:
        return [Guarded(shape, dtype) for shape in shapes]

    def sums(*shapes: tuple[int, ...]) -> list[Guarded]:  # statistics, losses, gradients of parameters
        return [Guarded(shape, wide(dtype)) for shape in shapes]

    calls: dict[str, tuple[list[Guarded], Any]] = {
        "gemm": (outputs((rows, inner)), lambda y: k.gemm(x, w, y, rows, inner, n)),
        "gemm wide": (
            outputs((rows, n)),
            lambda y: k.gemm(made(rows, inner), w, y, rows, n, inner, trans_b=True),
        ),
        "gemm sums": (sums((n, n)), lambda y: k.gemm(x, x, y, n, n, rows, trans_a=True)),
        "gemm deep": (outputs((n, n)), lambda y: k.gemm(x, x, y, n, n, rows, trans_a=True)),
        "norm": ([*outputs((rows, n)), *sums((rows,), (rows,))], lambda y, r, m: k.norm(x, y, r, n, 1e-5, mean=m)),
        "softmax": (outputs((rows, n)), lambda y: k.softmax(x, y, n)),
        "act": (outputs((rows, n)), lambda y: k.act(x, y, raw.ACT_CODE["gelu"])),
        "glu": (outputs((rows, n)), lambda y: k.glu(x, x, y, raw.ACT_CODE["silu"])),
        "unary": (outputs((rows, n)), lambda y: k.unary(x, y, raw.UNARY_CODE["exp"])),
        "binary": (outputs((rows, n)), lambda y: k.binary(x, x.view((n,)), y, raw.BINARY_CODE["add"])),
        "reduce rows": (outputs((rows,)), lambda y: k.reduce(x, y, rows, n, 1, 0)),
        "reduce sums": (sums((n,)), lambda y: k.reduce(x, y, 1, rows, n, 0)),
        "reduce columns": (outputs((n,)), lambda y: k.reduce(x, y, 1, rows, n, 0)),
        "copy": (outputs((n, rows)), lambda y: k.copy(x, y, [n, rows], [1, n])),
        "fill": (outputs((n,)), lambda y: k.fill(y, 1.0)),
        "axpy": (outputs((rows, n)), lambda y: k.axpy(x, y, 2.0)),
        "dropout": (outputs((rows, n)), lambda y: k.dropout(x, y, step, 0.5, 1)),
        "embedding": (outputs((2, n)), lambda y: k.embedding(x, ids, y, n)),
        "embedding back": (sums((rows, n)), lambda y: k.embedding_backward(made(2, n), ids, y, n)),
        "attention": (
            [*outputs((rows, 1, n)), *sums((1, rows))],
            lambda o, e: k.attention(heads, heads, heads, o, *layout, 1, 1, n, n, 1.0, lse=e),
        ),
        "cross_entropy": (
            [*sums((rows,)), *outputs((rows, n))],
            lambda y, d: k.cross_entropy(x, targets, y, n, dlogits=d),
        ),
    }
    for name, (guarded, call) in calls.items():
        call(*(each.array for each in guarded))
        for each in guarded:
            each.check(f"{name} n={n} on {isa}")


GUARD_BUILD = os.environ.get("MICROGPT_GUARD_BUILD", "")
WALK = """
import gc
from microgpt import _kernels as k
from tests.opcases import CASES, run
for isa, supported in k.isas():
    if supported:
        k.set_isa(isa)
        for case in CASES:
            run(case, case.inputs(), "float32")
for case in CASES:
    run(case, case.inputs(), "float64")
gc.collect(); k.trim_pool(); print("walked", len(CASES))
"""
STRAY = """
import numpy as np
from microgpt import _kernels as k
a = k.empty((5,), "float32")
np.lib.stride_tricks.as_strided(a.numpy(), (6,))[5] = 1.0
del a
"""


@pytest.mark.skipif(
    not GUARD_BUILD,
    reason="MICROGPT_GUARD_BUILD does not point to a _kernels extension built with -DMICROGPT_GUARD=ON",
)
def test_guard_bytes_hold_in_a_guard_build(tmp_path: Path) -> None:
    """The whole table with guards around every array; and a stray write is caught, so the guards are there."""
    package = tmp_path / "microgpt"
    package.mkdir()
    for path in Path(microgpt.__file__).parent.iterdir():
        if not path.name.startswith(("_kernels", "__pycache__")):
            (package / path.name).symlink_to(path)
    extension = Path(GUARD_BUILD).resolve()
    (package / extension.name).symlink_to(extension)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])}

    def python(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=250
        )

    walked = python(WALK)
    assert walked.returncode == 0, walked.stderr
    assert walked.stdout.startswith("walked")
    stray = python(STRAY)
    assert stray.returncode == -6
    assert "overwritten past the end of a block of 20 bytes" in stray.stderr

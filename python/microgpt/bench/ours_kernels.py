"""The child of `bench kernels` that runs our kernels, and the machine's limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import Tensor, ops
from .. import _kernels as k
from ..ops import raw
from . import roofline
from .peers.inputs import COLD_BYTES, ids, in_turn, make, rope_tables, sample, uniform
from .peers.serve import Server, Step

Output = Callable[[], k.Array]


def array(values: Any, dtype: str = "float32") -> k.Array:
    """In our own memory, which has huge pages where the system gives them."""
    if values.dtype == np.float32 and dtype == "bfloat16":
        import ml_dtypes

        values = values.astype(ml_dtypes.bfloat16)
    made = k.empty(values.shape, values.dtype.name)
    made.copy_from(values)
    return made


def copies(first: k.Array, nbytes: int) -> list[k.Array]:
    """`first` and enough copies of it to make up `nbytes`."""
    made = [first]
    for _ in range(max(1, -(-nbytes // first.nbytes)) - 1):
        made.append(k.empty_like(first))
        k.axpy(first, made[-1])
    return made


def gemm(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    m, n, inner, trans_a, trans_b = (sizes[name] for name in ("m", "n", "k", "trans_a", "trans_b"))
    x = array(uniform(1, *((inner, m) if trans_a else (m, inner))), dtype)
    w = array(uniform(2, *((n, inner) if trans_b else (inner, n))), dtype)
    y = k.empty((m, n), "float32" if sizes["wide"] else dtype)
    weights = itertools.cycle(copies(w, COLD_BYTES if sizes["cold"] else 0))

    def step() -> None:
        k.gemm(x, next(weights), y, m, n, inner, trans_a, trans_b)

    return step, lambda: y


def attention(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    tokens, heads, kv_heads, width = (sizes[name] for name in ("tokens", "heads", "kv_heads", "width"))
    q, key, value, dy = (
        array(uniform(i, tokens, each, width), dtype) for i, each in enumerate((heads, kv_heads, kv_heads, heads), 1)
    )
    starts, zero, length = (array(np.array(x, np.int32)) for x in ([0, tokens], [0], [tokens]))
    layout = (starts, zero, length, heads, kv_heads, width, width, width**-0.5)
    y, dq, dk, dv = (k.empty_like(each) for each in (q, q, key, value))
    lse = k.empty((heads, tokens), "float32")

    def forward() -> None:
        k.attention(q, key, value, y, *layout)

    def both() -> None:
        k.attention(q, key, value, y, *layout, lse=lse)
        k.fill(dk, 0.0)
        k.fill(dv, 0.0)
        k.attention_backward(q, key, value, y, lse, dy, dq, dk, dv, *layout)

    return (both, lambda: dk) if sizes["backward"] else (forward, lambda: y)


def decode(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    keys, heads, width = sizes["keys"], sizes["heads"], sizes["width"]
    q = array(uniform(1, 1, heads, width), dtype)
    key, value = (array(uniform(i, keys, heads, width), dtype) for i in (2, 3))
    starts, zero, length = (array(np.array(x, np.int32)) for x in ([0, 1], [0], [keys]))
    caches = itertools.cycle(zip(copies(key, COLD_BYTES // 2), copies(value, COLD_BYTES // 2), strict=True))
    y = k.empty_like(q)

    def step() -> None:
        k.attention(q, *next(caches), y, starts, zero, length, heads, heads, width, width, width**-0.5)

    return step, lambda: y


def norm(sizes: dict[str, Any], dtype: str, center: bool, backward: bool) -> tuple[Step, Output]:
    rows, cols = sizes["rows"], sizes["cols"]
    x, dy = (array(uniform(i, rows, cols), dtype) for i in (1, 2))
    weight, bias = array(uniform(3, cols), dtype), array(uniform(4, cols), dtype) if center else None
    y, rstd, mean = k.empty_like(x), k.empty((rows,)), k.empty((rows,)) if center else None
    dweight, dbias = k.empty((cols,)), k.empty((cols,)) if center else None

    def forward() -> None:
        k.norm(x, y, rstd, cols, 1e-5, weight, bias, mean)

    def back() -> None:
        k.norm_backward(dy, x, rstd, cols, weight=weight, mean=mean, dx=y, dweight=dweight, dbias=dbias)

    forward()
    return (back if backward else forward), lambda: y


def gelu(sizes: dict[str, Any], dtype: str, backward: bool) -> tuple[Step, Output]:
    x, dy = (array(uniform(i, sizes["rows"], sizes["cols"]), dtype) for i in (1, 2))
    y, code = k.empty_like(x), raw.ACT_CODE["gelu_tanh"]
    return (lambda: k.act_backward(x, dy, y, code)) if backward else (lambda: k.act(x, y, code)), lambda: y


def silu_glu(sizes: dict[str, Any], dtype: str, backward: bool) -> tuple[Step, Output]:
    gate, up, dy = (array(uniform(i, sizes["rows"], sizes["cols"]), dtype) for i in (1, 2, 3))
    y, dup, code = k.empty_like(gate), k.empty_like(gate), raw.ACT_CODE["silu"]
    if backward:
        return lambda: k.glu_backward(gate, up, dy, code, dgate=y, dup=dup), lambda: y
    return lambda: k.glu(gate, up, y, code), lambda: y


def rope(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    rows, head = sizes["rows"], sizes["head"]
    heads = sizes["cols"] // head
    x = array(uniform(1, rows, heads, head), dtype)
    positions = array(np.arange(rows, dtype=np.int32))
    cos, sin = (array(each) for each in rope_tables(rows, head // 2))
    y = k.empty_like(x)
    return lambda: k.rope(x, positions, cos, sin, y, heads, head, head // 2), lambda: y


def embedding(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    table = array(uniform(1, sizes["vocab"], sizes["cols"]), dtype)
    tokens, y = array(ids(2, sizes["rows"], sizes["vocab"])), k.empty((sizes["rows"], sizes["cols"]), dtype)
    return lambda: k.embedding(table, tokens, y, sizes["cols"]), lambda: y


def dropout(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    x, number = array(uniform(1, sizes["rows"], sizes["cols"]), dtype), array(np.ones(1, np.int64))
    y = k.empty_like(x)
    return lambda: k.dropout(x, y, number, 0.1, 1), lambda: y


def adamw(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    """float32 masters and moments whatever the model's type is; beside bfloat16 the rounded copy too."""
    param, grad, m, v = (array(uniform(i, sizes["rows"] * sizes["cols"])) for i in range(1, 5))
    k.fill(m, 0.0)
    k.fill(v, 0.0)
    hyper, number = array(np.full(1, 1e-3, np.float32)), array(np.ones(1, np.int64))
    rounded = k.empty_like(param) if dtype == "float32" else k.empty(param.shape, dtype)
    copy = None if dtype == "float32" else rounded
    return lambda: k.adamw(param, grad, m, v, hyper, number, 0.9, 0.95, 1e-8, 0.1, rounded=copy), lambda: param


def gradient_norm(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    """Of float32 gradients, which is what our models have in either type."""
    grad = array(uniform(1, sizes["rows"] * sizes["cols"]))
    partial, control = k.empty((-(-grad.size // k.NORM_CHUNK),), "float64"), k.empty((3,))

    def step() -> None:
        k.sum_squares(grad, partial)
        k.clip(partial, control, 0.0)

    return step, lambda: control.view((1,))


def projection_loss(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    tokens, width, vocab = sizes["tokens"], sizes["width"], sizes["vocab"]
    x = Tensor(array(uniform(1, tokens, width), dtype), requires_grad=True)
    weight = Tensor(array(uniform(2, vocab, width) * np.float32(0.05), dtype), requires_grad=True)
    targets = array(ids(3, tokens, vocab))

    def step() -> None:
        x.zero_grad()
        weight.zero_grad()
        ops.linear_cross_entropy(x, weight, targets).backward()

    return step, lambda: array(np.asarray(x.grad))


FUNCTIONS = (
    gemm,
    attention,
    decode,
    norm,
    gelu,
    silu_glu,
    rope,
    embedding,
    dropout,
    adamw,
    gradient_norm,
    projection_loss,
)


def main() -> None:
    """Serve."""
    probes = roofline.Probes()

    def case(request: dict[str, Any]) -> dict[str, Any]:
        server.step = None
        k.trim_pool()
        uniform.cache_clear()
        made = make(FUNCTIONS, request)
        uniform.cache_clear()
        for step, _ in made:
            step()
        found = sample(made[0][1]().numpy().astype(np.float32))
        server.prepare(in_turn([step for step, _ in made]))
        return {"sample": found}

    server = Server(roofline.hello(), {"case": case, **probes.handlers()})
    server.serve()


if __name__ == "__main__":
    main()

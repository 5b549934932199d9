"""PyTorch in `bench kernels`: for each case the fastest public function, no gradients where none are asked for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import torch  # type: ignore[import-not-found,unused-ignore]
from torch.nn import functional  # type: ignore[import-not-found,unused-ignore]

from .inputs import COLD_BYTES, ids, in_turn, make, rope_tables, sample, uniform
from .serve import Server, Step

Output = Callable[[], Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def tensor(values: Any, dtype: str = "float32") -> Any:
    """A tensor of `dtype` with memory of its own."""
    return torch.from_numpy(values).to(DTYPES[dtype], copy=True)


def copies(first: Any, nbytes: int) -> list[Any]:
    """`first` and enough copies of it to make up `nbytes`."""
    count = max(1, -(-nbytes // (first.numel() * first.element_size())))
    return [first, *(first.clone() for _ in range(count - 1))]


class Held:
    """The newest result of a step, which allocates it anew as torch does."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self.build = build
        self.value: Any = None

    def step(self) -> None:
        self.value = self.build()

    def output(self) -> Any:
        return self.value


def held(build: Callable[[], Any]) -> tuple[Step, Output]:
    """The step that calls `build`, and a look at its result."""
    both = Held(build)
    return both.step, both.output


def gradient(forward: Callable[..., Any], inputs: tuple[Any, ...], dy: Any) -> tuple[Step, Output]:
    """The backward of `forward` alone; looks at the first gradient."""
    for each in inputs:
        each.requires_grad_(True)
    y = forward(*inputs)
    return held(lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)[0])


def gemm(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    m, n, inner, trans_a, trans_b = (sizes[name] for name in ("m", "n", "k", "trans_a", "trans_b"))
    x = tensor(uniform(1, *((inner, m) if trans_a else (m, inner))), dtype)
    w = tensor(uniform(2, *((n, inner) if trans_b else (inner, n))), dtype)
    weights = itertools.cycle(copies(w, COLD_BYTES if sizes["cold"] else 0))
    if trans_b and not trans_a:
        return held(lambda: functional.linear(x, next(weights)))
    x = x.t() if trans_a else x
    return held(lambda: torch.mm(x, next(weights).t() if trans_b else next(weights)))


def attention(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    tokens, heads, kv_heads, width = (sizes[name] for name in ("tokens", "heads", "kv_heads", "width"))
    # (1, H, T, D), each head's rows side by side: the layout that suits it best.
    q, key, value, dy = (
        tensor(uniform(i, tokens, each, width), dtype).transpose(0, 1).contiguous()[None]
        for i, each in enumerate((heads, kv_heads, kv_heads, heads), 1)
    )
    options = {"is_causal": True, "enable_gqa": kv_heads < heads}
    if not sizes["backward"]:
        step, look = held(lambda: functional.scaled_dot_product_attention(q, key, value, **options))
        return step, lambda: look()[0].transpose(0, 1)
    inputs = (q, key, value)
    for each in inputs:
        each.requires_grad_(True)

    def both() -> Any:
        with torch.enable_grad():
            y = functional.scaled_dot_product_attention(q, key, value, **options)
            return torch.autograd.grad(y, inputs, dy)[1]

    step, look = held(both)
    return step, lambda: look()[0].transpose(0, 1)


def decode(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    keys, heads, width = sizes["keys"], sizes["heads"], sizes["width"]
    q = tensor(uniform(1, 1, heads, width), dtype).transpose(0, 1).contiguous()[None]
    key, value = (tensor(uniform(i, keys, heads, width), dtype).transpose(0, 1).contiguous()[None] for i in (2, 3))
    caches = itertools.cycle(zip(copies(key, COLD_BYTES // 2), copies(value, COLD_BYTES // 2), strict=True))
    return held(lambda: functional.scaled_dot_product_attention(q, *next(caches)))


def norm(sizes: dict[str, Any], dtype: str, center: bool, backward: bool) -> tuple[Step, Output]:
    rows, cols = sizes["rows"], sizes["cols"]
    x, dy, weight, bias = (tensor(uniform(i, *shape), dtype) for i, shape in
                           enumerate([(rows, cols), (rows, cols), (cols,), (cols,)], 1))  # fmt: skip
    if center:

        def forward(x: Any, weight: Any, bias: Any) -> Any:
            return functional.layer_norm(x, (cols,), weight, bias, 1e-5)

        inputs = (x, weight, bias)
    else:

        def forward(x: Any, weight: Any) -> Any:  # type: ignore[misc]
            return functional.rms_norm(x, (cols,), weight, 1e-5)

        inputs = (x, weight)  # type: ignore[assignment]
    if backward:
        with torch.enable_grad():
            return gradient(forward, inputs, dy)
    return held(lambda: forward(*inputs))


def gelu(sizes: dict[str, Any], dtype: str, backward: bool) -> tuple[Step, Output]:
    x, dy = (tensor(uniform(i, sizes["rows"], sizes["cols"]), dtype) for i in (1, 2))
    if backward:
        with torch.enable_grad():
            return gradient(lambda x: functional.gelu(x, approximate="tanh"), (x,), dy)
    return held(lambda: functional.gelu(x, approximate="tanh"))


def silu_glu(sizes: dict[str, Any], dtype: str, backward: bool) -> tuple[Step, Output]:
    gate, up, dy = (tensor(uniform(i, sizes["rows"], sizes["cols"]), dtype) for i in (1, 2, 3))
    if backward:
        with torch.enable_grad():
            return gradient(lambda gate, up: functional.silu(gate) * up, (gate, up), dy)
    return held(lambda: functional.silu(gate) * up)


def rope(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    """Rotate-half in plain ops, as transformers has it."""
    rows, head = sizes["rows"], sizes["head"]
    x = tensor(uniform(1, rows, sizes["cols"] // head, head), dtype)
    cos, sin = (tensor(each, dtype).repeat(1, 2)[:, None] for each in rope_tables(rows, head // 2))

    def turn() -> Any:
        half = torch.cat((-x[..., head // 2 :], x[..., : head // 2]), -1)
        return x * cos + half * sin

    return held(turn)


def embedding(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    table = tensor(uniform(1, sizes["vocab"], sizes["cols"]), dtype)
    tokens = torch.from_numpy(ids(2, sizes["rows"], sizes["vocab"])).long()
    return held(lambda: functional.embedding(tokens, table))


def dropout(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    x = tensor(uniform(1, sizes["rows"], sizes["cols"]), dtype)
    return held(lambda: functional.dropout(x, 0.1))


def adamw(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    """float32, as under autocast."""
    param = torch.nn.Parameter(tensor(uniform(1, sizes["rows"] * sizes["cols"])))
    param.grad = tensor(uniform(2, param.numel()))
    rule = torch.optim.AdamW([param], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    return lambda: rule.step(), lambda: param


def gradient_norm(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    grad = tensor(uniform(1, sizes["rows"] * sizes["cols"]))
    return held(lambda: torch.linalg.vector_norm(grad))


def projection_loss(sizes: dict[str, Any], dtype: str) -> tuple[Step, Output]:
    tokens, width, vocab = sizes["tokens"], sizes["width"], sizes["vocab"]
    x = tensor(uniform(1, tokens, width), dtype).requires_grad_(True)
    weight = tensor(uniform(2, vocab, width) * 0.05, dtype).requires_grad_(True)
    targets = torch.from_numpy(ids(3, tokens, vocab)).long()

    def both() -> Any:
        with torch.enable_grad():
            loss = functional.cross_entropy(functional.linear(x, weight).float(), targets)
            return torch.autograd.grad(loss, (x, weight))[0]

    return held(both)


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
    torch.set_grad_enabled(False)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))

    def case(request: dict[str, Any]) -> dict[str, Any]:
        server.step = None
        uniform.cache_clear()
        made = make(FUNCTIONS, request)
        uniform.cache_clear()
        for step, _ in made:
            step()
        found = sample(made[0][1]().detach().float().contiguous().numpy())
        server.prepare(in_turn([step for step, _ in made]))
        return {"sample": found}

    server = Server({"version": torch.__version__, "threads": torch.get_num_threads()}, {"case": case})
    server.serve()

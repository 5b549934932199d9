"""The kernels that `bench kernels` compares: shapes, FLOPs, bytes. Each case is set up by name on every side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from .peers.inputs import COLD_BYTES

GROUPS = ("gemm", "attention", "elementwise")
# Rows and columns of the element-wise cases: 31 MiB of float32. From 32 MiB on malloc gives memory back after every
# call, and PyTorch, which allocates its results, would pay for that in page faults.
ROWS, COLS = 7936, 1024
HEAD = 64  # of the rotary case
VOCAB = 32000  # of the embedding
PROJECTION = (256, 768, 16384)  # tokens, width, vocabulary of the fused projection and cross-entropy


@dataclass(frozen=True)
class Case:
    """One comparison. `reads` and `writes` are numbers moved in memory if each array moves once."""

    group: str
    kind: str
    name: str
    flops: int
    reads: int
    writes: int
    quick: bool = False
    memory: bool = False  # limited by memory, because its arrays are not in a cache
    copies: int = 1  # sets of arrays that are worked on in turn
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    sizes: dict[str, Any] = field(default_factory=dict)

    def request(self, dtype: str) -> dict[str, Any]:
        """What a child is told."""
        chosen = {name: value for name, value in asdict(self).items() if name in ("kind", "sizes", "copies")}
        return {"do": "case", "dtype": dtype, **chosen}


def _gemm(m: int, k: int, n: int, stored: str = "x W^T", cold: bool = False, quick: bool = False) -> Case:
    """C (m, n) = op(A) op(B); `stored` says how: x W^T, x W, x^T W, x^T W^T."""
    sizes = {"m": m, "n": n, "k": k, "trans_a": stored.startswith("x^T"), "trans_b": stored.endswith("W^T"),
             "cold": cold, "wide": False}  # fmt: skip
    name = f"{m}x{k}x{n} {stored}" + (" cold" if cold else "")
    return Case("gemm", "gemm", name, 2 * m * n * k, m * k + n * k, m * n, quick, cold, sizes=sizes)


def _weight_gradient(m: int, k: int, n: int, quick: bool = False) -> Case:
    """dW (m, n) = dz^T (m, k) x (k, n) over k tokens; float32 beside bfloat16."""
    sizes = {"m": m, "n": n, "k": k, "trans_a": True, "trans_b": False, "cold": False, "wide": True}
    return Case("gemm", "gemm", f"{m}x{k}x{n} gradient", 2 * m * n * k, m * k + n * k, m * n, quick, sizes=sizes)


def _gemms() -> Iterator[Case]:
    for side in (128, 256, 512, 1024, 2048):
        yield _gemm(side, side, side, quick=side in (128, 512, 1024))
    for k, n in ((576, 1536), (2048, 8192), (768, 3072), (768, 50257)):
        for m in (1, 8, 32, 128, 512):
            for cold in (False, True):
                streaming = (k, n, cold) == (2048, 8192, True) and m in (1, 8)
                quick = streaming or ((k, n, cold) == (768, 3072, False) and m >= 128)
                yield _gemm(m, k, n, cold=cold, quick=quick)
    for m, k, n in ((3, 7, 65), (17, 31, 127), (127, 129, 131), (1000, 64, 64), (64, 1000, 64)):
        yield _gemm(m, k, n, quick=m in (17, 127))
    yield _weight_gradient(768, 256, 3072, quick=True)
    yield _weight_gradient(384, 4096, 1536)
    for side in (1024, 2048):
        for stored in ("x W", "x^T W", "x^T W^T"):
            yield _gemm(side, side, side, stored)


def _attention(tokens: int, heads: int, kv_heads: int, width: int, backward: bool, quick: bool = False) -> Case:
    """Causal; the numbers of queries and outputs, and of keys and values, differ where heads share these."""
    ours, shared = tokens * heads * width, tokens * kv_heads * width
    forward = 4 * heads * width * tokens * (tokens + 1) // 2  # the pairs that are seen
    name = f"{tokens} tokens, {heads} heads of {width}" + (f" on {kv_heads}" if kv_heads < heads else "")
    sizes = {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "width": width, "backward": backward}
    if not backward:
        return Case("attention", "attention", f"{name}, forward", forward, ours + 2 * shared, ours, quick, sizes=sizes)
    # Backward: five products where the forward has two.
    return Case("attention", "attention", f"{name}, both ways", forward * 7 // 2, 3 * ours + 4 * shared,
                2 * ours + 2 * shared, quick, sizes=sizes)  # fmt: skip


def _attentions() -> Iterator[Case]:
    for tokens in (512, 2048, 4096):
        for heads in (8, 16):
            for width in (64, 128):
                for backward in (False, True):
                    quick = (heads, width) == (8, 64) and tokens < 4096
                    yield _attention(tokens, heads, heads, width, backward, quick)
    for backward in (False, True):
        yield _attention(2048, 16, 4, 64, backward)
    for heads in (8, 16):
        for width in (64, 128):
            keys = 4096
            sizes = {"keys": keys, "heads": heads, "width": width}
            name = f"1 query, {keys} keys cold, {heads} heads of {width}"
            numbers = 2 * keys * heads * width
            quick = (heads, width) == (16, 64)
            yield Case("attention", "decode", name, 2 * numbers, numbers, heads * width, quick, True, sizes=sizes)


# kind, name, arrays of ROWS x COLS read and written, FLOPs an element, quick
ELEMENTWISE = (
    ("layer_norm", "layer norm", 1, 1, 8, True),
    ("layer_norm_backward", "layer norm, backward", 2, 1, 14, True),
    ("rms_norm", "RMS norm", 1, 1, 5, False),
    ("rms_norm_backward", "RMS norm, backward", 2, 1, 10, False),
    ("gelu", "GELU (tanh)", 1, 1, 12, True),
    ("gelu_backward", "GELU (tanh), backward", 2, 1, 20, False),
    ("silu_glu", "SiLU GLU", 2, 1, 13, True),
    ("silu_glu_backward", "SiLU GLU, backward", 3, 2, 20, False),
    ("rope", "rotary positions", 1, 1, 3, False),
    ("embedding", "embedding", 1, 1, 0, False),
    ("dropout", "dropout", 1, 1, 2, True),
    ("adamw", "AdamW, fused", 4, 3, 16, True),
    ("gradient_norm", "gradient norm", 1, 0, 2, True),
)


def _elementwise() -> Iterator[Case]:
    sizes = {"rows": ROWS, "cols": COLS, "head": HEAD, "vocab": VOCAB}
    numbers = ROWS * COLS
    for kind, name, reads, writes, flops, quick in ELEMENTWISE:
        copies = -(-COLD_BYTES // ((reads + writes) * numbers * 2)) if kind != "embedding" else 1  # its table is large
        dtypes = ("float32",) if kind == "gradient_norm" else ("float32", "bfloat16")  # gradients are float32 in either
        yield Case("elementwise", kind, name, flops * numbers, reads * numbers, writes * numbers, quick, True, copies,
                   dtypes, sizes)  # fmt: skip
    tokens, width, vocab = PROJECTION
    weights = width * vocab
    yield Case("elementwise", "projection_loss", "projection and cross-entropy, both ways", 6 * tokens * weights,
               2 * weights, weights, True, sizes={"tokens": tokens, "width": width, "vocab": vocab})  # fmt: skip


def cases(groups: tuple[str, ...], quick: bool) -> list[Case]:
    """The cases of these groups."""
    made = {"gemm": _gemms, "attention": _attentions, "elementwise": _elementwise}
    return [case for group in GROUPS if group in groups for case in made[group]() if case.quick or not quick]

"""
Kernels, arrays and the runtime of microgpt. Internal: the public interface is the Python package.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy as _numpy

__all__: list[str] = [
    "NORM_CHUNK",
    "PEAK_GRAIN",
    "READ_GRAIN",
    "VERSION",
    "Array",
    "Program",
    "act",
    "act_backward",
    "adamw",
    "attention",
    "attention_backward",
    "axpy",
    "binary",
    "cast",
    "check_ids",
    "clip",
    "copy",
    "count_targets",
    "cpu_features",
    "cpu_model",
    "cross_entropy",
    "dropout",
    "embedding",
    "embedding_backward",
    "empty",
    "empty_like",
    "fast_bf16",
    "fill",
    "from_numpy",
    "gemm",
    "glu",
    "glu_backward",
    "isa",
    "isas",
    "launch_host",
    "norm",
    "norm_backward",
    "num_threads",
    "openmp_runtime",
    "peak_bf16",
    "peak_fma",
    "pool_stats",
    "read",
    "recording",
    "reduce",
    "rope",
    "set_isa",
    "set_num_threads",
    "sgd",
    "softmax",
    "softmax_backward",
    "stop_team",
    "sum_squares",
    "team_stats",
    "thread_choice",
    "trim_pool",
    "unary",
]

class Array:
    """
    A contiguous block of numbers owned by the pool.
    """
    def __repr__(self) -> str: ...
    def copy_from(self, values: typing.Any) -> None:
        """
        Overwrite with the elements of a NumPy array of the same type.
        """
    def item(self, index: typing.SupportsInt | typing.SupportsIndex = 0) -> float: ...
    def numpy(self) -> _numpy.ndarray:
        """
        A NumPy view of the same memory.
        """
    def view(self, shape: typing.Any, offset: typing.SupportsInt | typing.SupportsIndex = 0) -> Array:
        """
        The same memory with another shape, from element `offset` on.
        """
    @property
    def address(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> tuple[typing.Any, ...]: ...
    @property
    def size(self) -> int: ...

class Program:
    """
    A recorded sequence of kernel calls.
    """
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def abandon(self) -> None: ...
    def begin(self) -> None: ...
    def dump(self) -> str: ...
    def end(self) -> None: ...
    def names(self) -> list[str]: ...
    def profile(self) -> list[float]:
        """
        Run once; seconds of each node.
        """
    def run(self) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def host_nodes(self) -> int: ...

def act(x: Array, y: Array, act: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def act_backward(
    x: Array, dy: Array, dx: Array, act: typing.SupportsInt | typing.SupportsIndex, accumulate: bool = False
) -> None: ...
def adamw(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    hyper: Array,
    step: Array,
    beta1: typing.SupportsFloat | typing.SupportsIndex,
    beta2: typing.SupportsFloat | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    lr_scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    control: Array | None = None,
    rounded: Array | None = None,
) -> None: ...
def attention(
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    q_start: Array,
    k_start: Array,
    k_len: Array,
    heads: typing.SupportsInt | typing.SupportsIndex,
    kv_heads: typing.SupportsInt | typing.SupportsIndex,
    k_dim: typing.SupportsInt | typing.SupportsIndex,
    v_dim: typing.SupportsInt | typing.SupportsIndex,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    causal: bool = True,
    window: typing.SupportsInt | typing.SupportsIndex = -1,
    soft_cap: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    alibi: Array | None = None,
    lse: Array | None = None,
) -> None: ...
def attention_backward(
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    d_o: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    q_start: Array,
    k_start: Array,
    k_len: Array,
    heads: typing.SupportsInt | typing.SupportsIndex,
    kv_heads: typing.SupportsInt | typing.SupportsIndex,
    k_dim: typing.SupportsInt | typing.SupportsIndex,
    v_dim: typing.SupportsInt | typing.SupportsIndex,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    causal: bool = True,
    window: typing.SupportsInt | typing.SupportsIndex = -1,
    soft_cap: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    alibi: Array | None = None,
    accumulate_dq: bool = False,
    accumulate_dk: bool = False,
    accumulate_dv: bool = False,
) -> None: ...
def axpy(
    x: Array,
    y: Array,
    alpha: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    beta: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    alpha_at: Array | None = None,
) -> None:
    """
    y = alpha * alpha_at[0] * x + beta * y
    """

def binary(
    a: Array,
    b: Array,
    y: Array,
    shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    stride_a: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    stride_b: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    op: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cast(x: Array, y: Array, accumulate: bool = False) -> None:
    """
    y (+)= x, between float32 and bfloat16, rounded to nearest even.
    """

def check_ids(
    ids: Array,
    low: typing.SupportsInt | typing.SupportsIndex,
    high: typing.SupportsInt | typing.SupportsIndex,
    op: str,
    name: str,
) -> None:
    """
    Raise ShapeError unless every int32 id is in [low, high).
    """

def clip(
    partial: Array, control: Array, max_norm: typing.SupportsFloat | typing.SupportsIndex, loss: Array | None = None
) -> None: ...
def copy(
    x: Array,
    y: Array,
    shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    stride: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    offset: typing.SupportsInt | typing.SupportsIndex = 0,
    to_x: bool = False,
    accumulate: bool = False,
) -> None: ...
def count_targets(targets: Array, inv_count: Array) -> None: ...
def cpu_features() -> str: ...
def cpu_model() -> str: ...
def cross_entropy(
    logits: Array,
    targets: Array,
    losses: Array,
    vocab: typing.SupportsInt | typing.SupportsIndex,
    dlogits: Array | None = None,
    inv_count: Array | None = None,
    label_smoothing: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    z_loss: typing.SupportsFloat | typing.SupportsIndex = 0.0,
) -> None: ...
def dropout(
    x: Array,
    y: Array,
    step: Array,
    p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex = 0,
    accumulate: bool = False,
) -> None: ...
def embedding(
    table: Array, ids: Array, y: Array, width: typing.SupportsInt | typing.SupportsIndex, accumulate: bool = False
) -> None: ...
def embedding_backward(
    dy: Array, ids: Array, dtable: Array, width: typing.SupportsInt | typing.SupportsIndex, accumulate: bool = False
) -> None: ...
def empty(shape: typing.Any, dtype: str = "float32") -> Array:
    """
    An array with undefined contents.
    """

def empty_like(array: Array) -> Array: ...
def fast_bf16() -> bool:
    """
    Whether the instruction set in use multiplies bfloat16 faster than float32.
    """

def fill(y: Array, value: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
def from_numpy(values: typing.Any) -> Array:
    """
    A copy of a NumPy array (any strides, native byte order).
    """

def gemm(
    a: Array,
    b: Array,
    c: Array,
    m: typing.SupportsInt | typing.SupportsIndex,
    n: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    trans_a: bool = False,
    trans_b: bool = False,
    bias: Array | None = None,
    residual: Array | None = None,
    pre: Array | None = None,
    act: typing.SupportsInt | typing.SupportsIndex = 0,
    accumulate: bool = False,
    batch: typing.SupportsInt | typing.SupportsIndex = 1,
    stride_a: typing.SupportsInt | typing.SupportsIndex = 0,
    stride_b: typing.SupportsInt | typing.SupportsIndex = 0,
    stride_c: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None: ...
def glu(gate: Array, up: Array, y: Array, act: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def glu_backward(
    gate: Array,
    up: Array,
    dy: Array,
    act: typing.SupportsInt | typing.SupportsIndex,
    dgate: Array | None = None,
    accumulate_dgate: bool = False,
    dup: Array | None = None,
    accumulate_dup: bool = False,
) -> None: ...
def isa() -> str: ...
def isas() -> list[tuple[str, bool]]:
    """
    Instruction sets in this build, best first, and whether this machine has each.
    """

def launch_host(name: str, body: typing.Any) -> None: ...
def norm(
    x: Array,
    y: Array,
    rstd: Array,
    cols: typing.SupportsInt | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    weight: Array | None = None,
    bias: Array | None = None,
    mean: Array | None = None,
) -> None:
    """
    LayerNorm where `mean` is given, RMSNorm where it is not.
    """

def norm_backward(
    dy: Array,
    x: Array,
    rstd: Array,
    cols: typing.SupportsInt | typing.SupportsIndex,
    weight: Array | None = None,
    mean: Array | None = None,
    dx: Array | None = None,
    accumulate_dx: bool = False,
    dweight: Array | None = None,
    accumulate_dweight: bool = False,
    dbias: Array | None = None,
    accumulate_dbias: bool = False,
) -> None: ...
def num_threads() -> int: ...
def openmp_runtime() -> str: ...
def peak_bf16(y: Array) -> None:
    """
    The same with the instruction that multiplies bfloat16, or with fma where there is none; y is float32.
    """

def peak_fma(y: Array) -> None:
    """
    PEAK_GRAIN float32 operations for each element of y, in chains of fma; y becomes 1.
    """

def pool_stats() -> dict[str, typing.Any]: ...
def read(x: Array, partial: Array) -> None:
    """
    partial[i] = sum of READ_GRAIN elements of x.
    """

def recording() -> bool: ...
def reduce(
    x: Array,
    y: Array,
    outer: typing.SupportsInt | typing.SupportsIndex,
    axis: typing.SupportsInt | typing.SupportsIndex,
    inner: typing.SupportsInt | typing.SupportsIndex,
    op: typing.SupportsInt | typing.SupportsIndex,
    accumulate: bool = False,
) -> None: ...
def rope(
    x: Array,
    positions: Array,
    cos: Array,
    sin: Array,
    y: Array,
    heads: typing.SupportsInt | typing.SupportsIndex,
    head_dim: typing.SupportsInt | typing.SupportsIndex,
    half: typing.SupportsInt | typing.SupportsIndex,
    interleaved: bool = False,
    inverse: bool = False,
    accumulate: bool = False,
) -> None: ...
def set_isa(name: str) -> None: ...
def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def sgd(
    param: Array,
    grad: Array,
    hyper: Array,
    step: Array,
    momentum: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    lr_scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    nesterov: bool = False,
    buffer: Array | None = None,
    control: Array | None = None,
    rounded: Array | None = None,
) -> None: ...
def softmax(
    x: Array,
    y: Array,
    cols: typing.SupportsInt | typing.SupportsIndex,
    scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
) -> None: ...
def softmax_backward(
    y: Array,
    dy: Array,
    dx: Array,
    cols: typing.SupportsInt | typing.SupportsIndex,
    scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    accumulate: bool = False,
) -> None: ...
def stop_team() -> None: ...
def sum_squares(x: Array, partial: Array) -> None: ...
def team_stats() -> tuple[int, int, int]: ...
def thread_choice() -> tuple[int, str, bool]: ...
def trim_pool() -> None: ...
def unary(x: Array, y: Array, op: typing.SupportsInt | typing.SupportsIndex) -> None: ...

NORM_CHUNK: int = 16384
PEAK_GRAIN: int = 1572864
READ_GRAIN: int = 65536
VERSION: str

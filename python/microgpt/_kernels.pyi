"""
Kernels, arrays and the runtime of microgpt. Internal: the public interface is the Python package.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy as _numpy

__all__: list[str] = [
    "JOINED_ROWS",
    "KV_PAD",
    "MOST_JOINED",
    "NORM_CHUNK",
    "PEAK_GRAIN",
    "Q_COLS",
    "Q_LEAST_GROUP",
    "Q_MOST_GROUP",
    "Q_MOST_K",
    "READ_GRAIN",
    "SAMPLE_ROW",
    "SCAN_STRIDE",
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
    "broadcast_shape",
    "call_op",
    "cast",
    "causal_conv1d",
    "causal_conv1d_backward",
    "check_float",
    "check_int32",
    "check_wide",
    "clip",
    "combine_dot",
    "combine_rows",
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
    "gated_delta",
    "gated_delta_backward",
    "gather_rows",
    "gemm",
    "glu",
    "glu_backward",
    "grouped_linear",
    "grouped_q_gemm",
    "grouped_q_matmul",
    "grouped_q_rows",
    "grouped_weight",
    "isa",
    "isas",
    "joined",
    "keep_type",
    "kv_put",
    "launch_host",
    "launch_nothing",
    "linear",
    "linear_joined",
    "linear_recurrence",
    "linear_recurrence_backward",
    "norm",
    "norm_backward",
    "normalize",
    "num_threads",
    "openmp_runtime",
    "peak_bf16",
    "peak_fma",
    "pool_stats",
    "put_rows",
    "q_blocks",
    "q_bytes",
    "q_dequantize",
    "q_fit",
    "q_gather",
    "q_gemm",
    "q_joined",
    "q_linear",
    "q_matmul",
    "q_pack",
    "q_rows",
    "q_table_floats",
    "q_types",
    "q_unblocks",
    "quantize",
    "read",
    "recording",
    "reduce",
    "rg_lru",
    "rg_lru_backward",
    "rope",
    "route",
    "route_weights",
    "rwkv7",
    "rwkv7_backward",
    "sample",
    "sample_uniform",
    "selective_scan",
    "selective_scan_backward",
    "set_isa",
    "set_num_threads",
    "sgd",
    "softmax",
    "softmax_backward",
    "sort_experts",
    "ssd",
    "ssd_backward",
    "stop_team",
    "sum_squares",
    "team_stats",
    "thread_choice",
    "trim_heap",
    "trim_pool",
    "unary",
]

class Array:
    """
    A contiguous block of numbers owned by the pool.
    """
    @property
    def shape(self) -> tuple[int, ...]:
        """
        Sizes of the axes.
        """
    @property
    def dtype(self) -> str:
        """
        NumPy's name of the element type.
        """
    @property
    def size(self) -> int:
        """
        Number of elements.
        """
    @property
    def ndim(self) -> int:
        """
        Number of axes.
        """
    @property
    def nbytes(self) -> int:
        """
        Bytes of the elements.
        """
    @property
    def address(self) -> int:
        """
        Where the first element lies.
        """
    def __repr__(self) -> str:
        """
        Return repr(self).
        """
    def copy_from(self, values: typing.Any) -> None:
        """
        Overwrite with the elements of a NumPy array of the same type.
        """
    def item(self, index: typing.SupportsInt | typing.SupportsIndex = 0) -> float: ...
    def numpy(self) -> _numpy.ndarray:
        """
        A NumPy view of the same memory.
        """
    def view(self, shape: typing.Any, offset: int = 0) -> Array:
        """
        The same memory with another shape, from element `offset` on.
        """

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
    @property
    def live_bytes(self) -> int: ...

def act(x: Array, y: Array, act: int) -> None: ...
def act_backward(x: Array, dy: Array, dx: Array, act: int, accumulate: bool = False) -> None: ...
def adamw(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    hyper: Array,
    step: Array,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    lr_scale: float = 1.0,
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
    heads: int,
    kv_heads: int,
    k_dim: int,
    v_dim: int,
    scale: float,
    causal: bool = True,
    window: int = -1,
    soft_cap: float = 0.0,
    alibi: Array | None = None,
    lse: Array | None = None,
    k_scales: Array | None = None,
    v_scales: Array | None = None,
    packed: bool = False,
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
    heads: int,
    kv_heads: int,
    k_dim: int,
    v_dim: int,
    scale: float,
    causal: bool = True,
    window: int = -1,
    soft_cap: float = 0.0,
    alibi: Array | None = None,
    accumulate_dq: bool = False,
    accumulate_dk: bool = False,
    accumulate_dv: bool = False,
    packed: bool = False,
) -> None: ...
def axpy(x: Array, y: Array, alpha: float = 1.0, beta: float = 0.0, alpha_at: Array | None = None) -> None:
    """
    y = alpha * alpha_at[0] * x + beta * y
    """

def binary(a: Array, b: Array, y: Array, op: int) -> None:
    """
    y = f(a, b), each broadcast to y's shape.
    """

def broadcast_shape(name: str, a: typing.Any, b: typing.Any) -> tuple[int, ...]:
    """
    NumPy's broadcasting rule for two shapes. Raises ShapeError naming the op.
    """

def call_op(
    tensor: type,
    forward: collections.abc.Callable[..., typing.Any] | None,
    args: tuple[typing.Any, ...],
    count: int,
    required: int,
    taping: bool,
) -> typing.Any:
    """
    Calls forward with the arrays of `args`, of which the first `count` are tensors; those from `required` on may be
    None or missing. Gives a tensor, or (tensors, None) where there are several outputs. If a tensor has a slot and
    `taping`: (output, saved, slots), forward having been told which need a gradient. Without forward: (arrays, slots,
    whether each has one). None, and nothing is called, if one of the first is neither a tensor, None, nor of a type
    that was given to keep_type().
    """

def cast(x: Array, y: Array, accumulate: bool = False) -> None:
    """
    y (+)= x, between float32 and bfloat16, rounded to nearest even.
    """

def causal_conv1d(
    x: Array,
    weight: Array,
    y: Array,
    q_start: Array,
    taps: int,
    bias: Array | None = None,
    act: int = 0,
    state: Array | None = None,
) -> None: ...
def causal_conv1d_backward(
    x: Array,
    weight: Array,
    dy: Array,
    q_start: Array,
    taps: int,
    bias: Array | None = None,
    act: int = 0,
    dx: Array | None = None,
    accumulate_dx: bool = False,
    dweight: Array | None = None,
    accumulate_dweight: bool = False,
    dbias: Array | None = None,
    accumulate_dbias: bool = False,
) -> None: ...
def check_float(name: str, **arrays: Array | None) -> None:
    """
    Raise DTypeError unless all given arrays are of one floating-point type.
    """

def check_int32(name: str, **arrays: Array | None) -> None:
    """
    Raise DTypeError unless all given arrays are int32.
    """

def check_wide(name: str, like: Array, **arrays: Array | None) -> None:
    """
    Raise DTypeError unless all given arrays are of the type that goes with `like`:
    float32 beside bfloat16, else the same.
    """

def clip(partial: Array, control: Array, max_norm: float, loss: Array | None = None) -> None: ...
def combine_dot(
    x: Array, place: Array, dy: Array, dweights: Array, chosen: int, width: int, accumulate: bool = False
) -> None: ...
def combine_rows(
    x: Array,
    place: Array,
    y: Array,
    chosen: int,
    width: int,
    accumulate: bool = False,
    weights: Array | None = None,
    residual: Array | None = None,
) -> None: ...
def copy(
    x: Array,
    y: Array,
    shape: collections.abc.Sequence[int],
    stride: collections.abc.Sequence[int],
    offset: int = 0,
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
    vocab: int,
    dlogits: Array | None = None,
    inv_count: Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> None: ...
def dropout(
    x: Array, y: Array, step: Array, p: float, seed: int, stream: int = 0, accumulate: bool = False
) -> None: ...
def embedding(table: Array, ids: Array, y: Array, width: int, accumulate: bool = False) -> None: ...
def embedding_backward(dy: Array, ids: Array, dtable: Array, width: int, accumulate: bool = False) -> None: ...
def empty(shape: typing.Any, dtype: typing.Any = "float32") -> Array:
    """
    An array with undefined contents.
    """

def empty_like(array: Array) -> Array: ...
def fast_bf16() -> bool:
    """
    Whether the instruction set in use multiplies bfloat16 faster than float32.
    """

def fill(y: Array, value: float) -> None: ...
def from_numpy(values: typing.Any) -> Array:
    """
    A copy of a NumPy array (any strides, native byte order).
    """

def gated_delta(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    o: Array,
    q_start: Array,
    heads: int,
    key_heads: int,
    k_dim: int,
    v_dim: int,
    scale: float,
    normalize: bool = False,
    state: Array | None = None,
    chunks: Array | None = None,
) -> None: ...
def gated_delta_backward(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    d_o: Array,
    chunks: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    dg: Array,
    dbeta: Array,
    q_start: Array,
    heads: int,
    key_heads: int,
    k_dim: int,
    v_dim: int,
    scale: float,
    normalize: bool = False,
    accumulate_dq: bool = False,
    accumulate_dk: bool = False,
    accumulate_dv: bool = False,
    accumulate_dg: bool = False,
    accumulate_dbeta: bool = False,
) -> None: ...
def gather_rows(
    x: Array, order: Array, y: Array, chosen: int, width: int, accumulate: bool = False, weights: Array | None = None
) -> None: ...
def gemm(
    a: Array,
    b: Array,
    c: Array,
    m: int,
    n: int,
    k: int,
    trans_a: bool = False,
    trans_b: bool = False,
    bias: Array | None = None,
    residual: Array | None = None,
    factor: Array | None = None,
    slope: Array | None = None,
    act: int = 0,
    accumulate: bool = False,
    batch: int = 1,
    stride_a: int = 0,
    stride_b: int = 0,
    stride_c: int = 0,
) -> None: ...
def glu(gate: Array, up: Array, y: Array, act: int) -> None: ...
def glu_backward(
    gate: Array,
    up: Array,
    dy: Array,
    act: int,
    dgate: Array | None = None,
    accumulate_dgate: bool = False,
    dup: Array | None = None,
    accumulate_dup: bool = False,
) -> None: ...
def grouped_linear(
    a: Array,
    b: Array,
    c: Array,
    offsets: Array,
    n: int,
    k: int,
    trans_b: bool = False,
    accumulate: bool = False,
    bias: Array | None = None,
) -> None: ...
def grouped_q_gemm(
    codes: Array,
    scales: Array,
    starts: Array,
    data: Array,
    c: Array,
    offsets: Array,
    type: int,
    n: int,
    k: int,
    group: int,
    bias: Array | None = None,
) -> None:
    """
    q_gemm of each expert's rows with its weight.
    """

def grouped_q_matmul(
    x: Array,
    data: Array,
    y: Array,
    offsets: Array,
    type: int,
    n: int,
    k: int,
    group: int,
    bias: Array | None = None,
    to_inputs: bool = False,
    accumulate: bool = False,
) -> None:
    """
    q_matmul of each expert's rows with its weight.
    """

def grouped_q_rows(
    x: Array,
    codes: Array,
    scales: Array,
    starts: Array,
    data: Array,
    offsets: Array,
    type: int,
    n: int,
    k: int,
    group: int,
) -> None:
    """
    q_rows of each expert's rows, for products with its weight.
    """

def grouped_weight(
    a: Array, b: Array | None, c: Array, offsets: Array, m: int, n: int, accumulate: bool = False
) -> None:
    """
    A sum of rows where `b` is None.
    """

def isa() -> str: ...
def isas() -> list[tuple[str, bool]]:
    """
    Instruction sets in this build, best first, and whether this machine has each.
    """

def joined(arrays: typing.Any) -> typing.Any:
    """
    One array over several that follow each other in one block, their first axes as one; None where they do not.
    """

def keep_type(type: typing.Any) -> None:
    """
    Objects of this type are given to ops where tensors are expected.
    """

def kv_put(x: Array, ids: Array, cache: Array, heads: int, width: int, scales: Array | None = None) -> None:
    """
    Rows x (T, heads, width) into rows ids of a cache of another type; uint8 holds int8 codes.
    """

def launch_host(name: str, body: typing.Any) -> None: ...
def launch_nothing(shares: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    A node of empty shares, to measure what a node costs.
    """

def linear(
    x: Array, weight: Array, bias: Array | None, residual: Array | None, act: int, wide_out: bool, keep: bool
) -> tuple[typing.Any, ...]:
    """
    (y, slope of act or None) of residual + act(x weight^T + bias)
    """

def linear_joined(x: Array, weights: typing.Any, biases: typing.Any) -> tuple[typing.Any, ...]:
    """
    (x W^T + bias, ...) of one to four weights, for few rows
    """

def linear_recurrence(
    x: Array, a: Array, h: Array, q_start: Array, channels: int, state: Array | None = None
) -> None: ...
def linear_recurrence_backward(
    a: Array,
    h: Array,
    dh: Array,
    q_start: Array,
    channels: int,
    dx: Array | None = None,
    accumulate_dx: bool = False,
    da: Array | None = None,
    accumulate_da: bool = False,
) -> None: ...
def norm(
    x: Array,
    y: Array,
    rstd: Array,
    cols: int,
    eps: float,
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
    cols: int,
    weight: Array | None = None,
    mean: Array | None = None,
    dx: Array | None = None,
    accumulate_dx: bool = False,
    dweight: Array | None = None,
    accumulate_dweight: bool = False,
    dbias: Array | None = None,
    accumulate_dbias: bool = False,
) -> None: ...
def normalize(x: Array, weight: Array | None, bias: Array | None, eps: float, center: bool) -> tuple[typing.Any, ...]:
    """
    (y, mean or None, rstd) of layer_norm if `center`, else of rms_norm
    """

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
def put_rows(x: Array, ids: Array, table: Array) -> None:
    """
    table[ids[t]] = x[t]
    """

def q_blocks(blocks: Array, data: Array, type: int, n: int, k: int, group: int, first: int = 0) -> Array:
    """
    Rows of GGUF blocks (rows, bytes) into `data`; by panel, 1 where all scales are finite.
    """

def q_bytes(
    type: typing.SupportsInt | typing.SupportsIndex,
    n: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Bytes of a quantized weight (n, k), tables at their end included; an order of its columns would follow.
    """

def q_dequantize(
    data: Array, y: Array, type: int, n: int, k: int, group: int, ids: Array | None = None, first: int = 0
) -> None:
    """
    Rows `ids`, or those from `first` on, as numbers.
    """

def q_fit(
    x: Array,
    scale: Array,
    steps: Array,
    length: int,
    low: int,
    high: int,
    sides: int = 1,
    rounds: int = 1,
    weights: Array | None = None,
    least: Array | None = None,
    bounded: bool = False,
    book: int = 0,
) -> None:
    """
    Scales (and minima) of groups of x, searched for.
    """

def q_gather(
    codes: Array,
    scales: Array,
    starts: Array,
    order: Array,
    offsets: Array,
    to_codes: Array,
    to_scales: Array,
    to_starts: Array,
    type: int,
    rows: int,
    sources: int,
    chosen: int,
    k: int,
    group: int,
) -> None:
    """
    Activations of q_rows, of `sources` rows, to the tiles of each expert's own rows.
    """

def q_gemm(
    codes: Array,
    scales: Array,
    starts: Array,
    data: Array,
    c: Array,
    type: int,
    m: int,
    n: int,
    k: int,
    group: int,
    bias: Array | None = None,
    residual: Array | None = None,
    slope: Array | None = None,
    act: int = 0,
) -> None: ...
def q_joined(x: Array, weights: typing.Any, biases: typing.Any) -> tuple[typing.Any, ...] | None:
    """
    (x W^T + bias, ...) of QTensors that take the same activations, or None
    """

def q_linear(
    x: Array, weight: typing.Any, bias: Array | None, residual: Array | None, act: int, wide_out: bool
) -> Array:
    """
    residual + act(x W^T + bias) of a QTensor, x rounded to int8
    """

def q_matmul(
    x: Array,
    data: Array,
    y: Array,
    type: int,
    m: int,
    n: int,
    k: int,
    group: int,
    bias: Array | None = None,
    residual: Array | None = None,
    slope: Array | None = None,
    act: int = 0,
    to_inputs: bool = False,
    accumulate: bool = False,
) -> None:
    """
    y = residual + act(x W^T + bias) with the numbers of W; to_inputs: y (+)= x W.
    """

def q_pack(
    codes: Array,
    data: Array,
    type: int,
    n: int,
    k: int,
    group: int,
    scales: Array | None = None,
    leasts: Array | None = None,
    bytes: Array | None = None,
    first: int = 0,
) -> None:
    """
    Codes (rows, k) and scales, minima, zeros (rows, groups) of others into `data`.
    """

def q_rows(
    x: Array, codes: Array, scales: Array, starts: Array, data: Array, type: int, m: int, n: int, k: int, group: int
) -> None:
    """
    Activations x (m, k) to int8, for products with such a weight.
    """

def q_table_floats(
    type: typing.SupportsInt | typing.SupportsIndex,
    n: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    float32 of the tables.
    """

def q_types() -> list[tuple[str, int, int, bool, int, int, int, bool, bool, int, int]]:
    """
    The table of types by number; QType of qtensor.py names the columns.
    """

def q_unblocks(data: Array, blocks: Array, type: int, n: int, k: int, group: int, first: int = 0) -> None:
    """
    Rows of a weight, from row `first` on, as GGUF blocks (rows, bytes).
    """

def quantize(x: Array, data: Array, type: int, n: int, k: int, group: int, first: int = 0) -> None:
    """
    Rows x of a weight, from row `first` on, to codes and scales in `data`.
    """

def read(x: Array, partial: Array) -> None:
    """
    partial[i] = sum of READ_GRAIN elements of x.
    """

def recording() -> bool: ...
def reduce(x: Array, y: Array, outer: int, axis: int, inner: int, op: int, accumulate: bool = False) -> None: ...
def rg_lru(
    x: Array,
    input_gate: Array,
    recurrent_gate: Array,
    param: Array,
    positions: Array,
    h: Array,
    q_start: Array,
    state: Array | None = None,
) -> None: ...
def rg_lru_backward(
    x: Array,
    input_gate: Array,
    recurrent_gate: Array,
    param: Array,
    positions: Array,
    h: Array,
    q_start: Array,
    dh: Array,
    dx: Array | None = None,
    dinput: Array | None = None,
    drecurrent: Array | None = None,
    dparam: Array | None = None,
    accumulate: int = 0,
) -> None:
    """
    Bit i of `accumulate` says that the i-th of dx .. dparam is added to.
    """

def rope(
    x: Array,
    positions: Array,
    cos: Array,
    sin: Array,
    y: Array,
    heads: int,
    head_dim: int,
    half: int,
    interleaved: bool = False,
    inverse: bool = False,
    accumulate: bool = False,
) -> None: ...
def route(logits: Array, ids: Array, experts: int, chosen: int, score: int, bias: Array | None = None) -> None: ...
def route_weights(
    logits: Array,
    ids: Array,
    experts: int,
    chosen: int,
    score: int,
    renormalize: bool,
    scale: float,
    eps: float,
    y: Array | None = None,
    dy: Array | None = None,
    dx: Array | None = None,
    accumulate: bool = False,
) -> None:
    """
    Weights y; where `dx` is given, the gradient of the logits from dy instead.
    """

def rwkv7(
    r: Array,
    w: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    y: Array,
    q_start: Array,
    heads: int,
    k_dim: int,
    v_dim: int,
    state: Array | None = None,
    kept: Array | None = None,
) -> None: ...
def rwkv7_backward(
    r: Array,
    w: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    dy: Array,
    kept: Array,
    dr: Array,
    dw: Array,
    dk: Array,
    dv: Array,
    da: Array,
    db: Array,
    q_start: Array,
    heads: int,
    k_dim: int,
    v_dim: int,
    accumulate_dr: bool = False,
    accumulate_dw: bool = False,
    accumulate_dk: bool = False,
    accumulate_dv: bool = False,
    accumulate_da: bool = False,
    accumulate_db: bool = False,
) -> None: ...
def sample(
    logits: Array,
    where: Array,
    tokens: Array | None,
    history: Array | None,
    probabilities: Array | None,
    vocab: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition: float,
    presence: float,
    frequency: float,
    seed: int,
) -> None:
    """
    tokens (R) from logits (R, V); where (R, 5) int64: number, step, row of history, ids of the prompt, all ids.
    A token is -1 where none can be drawn.
    """

def sample_uniform(
    seed: typing.SupportsInt | typing.SupportsIndex,
    row: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
) -> float:
    """
    The number in [0, 1) that token `step` of sequence `row` is drawn with.
    """

def selective_scan(
    u: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    y: Array,
    q_start: Array,
    states: int,
    skip: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    softplus: bool = False,
    state: Array | None = None,
    saved: Array | None = None,
) -> None: ...
def selective_scan_backward(
    u: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    y: Array,
    q_start: Array,
    states: int,
    skip: Array | None,
    z: Array | None,
    delta_bias: Array | None,
    softplus: bool,
    saved: Array,
    dy: Array,
    du: Array | None = None,
    ddelta: Array | None = None,
    da: Array | None = None,
    db: Array | None = None,
    dc: Array | None = None,
    dskip: Array | None = None,
    dz: Array | None = None,
    ddelta_bias: Array | None = None,
    accumulate: int = 0,
) -> None:
    """
    Bit i of `accumulate` says that the i-th of du .. ddelta_bias is added to.
    """

def set_isa(name: str) -> None: ...
def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def sgd(
    param: Array,
    grad: Array,
    hyper: Array,
    step: Array,
    momentum: float,
    weight_decay: float,
    lr_scale: float = 1.0,
    nesterov: bool = False,
    buffer: Array | None = None,
    control: Array | None = None,
    rounded: Array | None = None,
) -> None: ...
def softmax(x: Array, y: Array, cols: int, scale: float = 1.0) -> None: ...
def softmax_backward(
    y: Array, dy: Array, dx: Array, cols: int, scale: float = 1.0, accumulate: bool = False
) -> None: ...
def sort_experts(ids: Array, order: Array, place: Array, offsets: Array, load: Array) -> None: ...
def ssd(
    x: Array,
    dt: Array,
    a: Array,
    b: Array,
    c: Array,
    y: Array,
    q_start: Array,
    heads: int,
    groups: int,
    state_dim: int,
    skip: Array | None,
    dt_bias: Array | None,
    softplus: bool,
    dt_min: float,
    dt_max: float,
    state: Array | None = None,
    chunks: Array | None = None,
) -> None: ...
def ssd_backward(
    x: Array,
    dt: Array,
    a: Array,
    b: Array,
    c: Array,
    dy: Array,
    chunks: Array,
    dx: Array,
    ddt: Array,
    part_db: Array,
    part_dc: Array,
    part_da: Array,
    q_start: Array,
    heads: int,
    groups: int,
    state_dim: int,
    skip: Array | None,
    dt_bias: Array | None,
    softplus: bool,
    dt_min: float,
    dt_max: float,
    part_dskip: Array | None = None,
    part_dbias: Array | None = None,
    accumulate_dx: bool = False,
    accumulate_ddt: bool = False,
) -> None: ...
def stop_team() -> None: ...
def sum_squares(x: Array, partial: Array) -> None: ...
def team_stats() -> tuple[int, int, int]: ...
def thread_choice() -> tuple[int, str, bool]: ...
def trim_heap() -> None:
    """
    Give back to the system what the C library holds and nobody uses.
    """

def trim_pool() -> None: ...
def unary(x: Array, y: Array, op: int) -> None: ...

JOINED_ROWS: int = 8
KV_PAD: int = 64
MOST_JOINED: int = 4
NORM_CHUNK: int = 16384
PEAK_GRAIN: int = 25165824
Q_COLS: int = 32
Q_LEAST_GROUP: int = 16
Q_MOST_GROUP: int = 256
Q_MOST_K: int = 131072
READ_GRAIN: int = 65536
SAMPLE_ROW: int = 5
SCAN_STRIDE: int = 32
VERSION: str

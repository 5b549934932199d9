"""Cross-entropy: on logits, and fused with the output projection so that (T, V) logits are never whole in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _kernels as k
from ..tensors import Tensor, wide
from . import basic, raw
from .op import Cost, check_float, check_int32, elements_bytes, op, refuse

Array = k.Array
Needs = list[bool] | None

# Logits held at a time by linear_cross_entropy: 64 MiB of float32; at least 64 rows, so that products stay efficient.
LOGITS_AT_ONCE = 2**24


def _check_targets(name: str, targets: Array, rows: int) -> None:
    check_int32(name, targets=targets)
    if targets.size != rows:
        refuse(name, "targets", f"{rows} rows", targets.size)


def _check_terms(name: str, label_smoothing: float, z_loss: float) -> None:
    if not 0.0 <= label_smoothing <= 1.0:
        refuse(name, "label_smoothing", "a number from 0 to 1", label_smoothing)
    if not 0.0 <= z_loss < math.inf:
        refuse(name, "z_loss", "a finite number, 0 or more", z_loss)


def _mean(losses: Array, inv_count: Array) -> Array:
    total = k.empty((), losses.dtype)
    k.reduce(losses, total, 1, losses.size, 1, 0)
    k.axpy(total, total, alpha_at=inv_count)
    return total


@op("logits")
def cross_entropy(
    logits: Array,
    targets: Array,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    needs: Needs = None,
) -> Any:
    """-log softmax(logits)[target]; logits (T, V), targets (T) int32, negative targets are ignored.

    `reduction`: mean over the targets that count, or none -> (T). In nats. `label_smoothing` e in [0, 1] makes the
    target (1 - e) onehot + e / V (Szegedy et al. 2016, arXiv:1512.00567). `z_loss` >= 0 adds z_loss * lse^2 for each
    target, which keeps logits near 0 (PaLM, arXiv:2204.02311, section 5; usually 1e-4).
    """
    check_float("cross_entropy", logits=logits)
    if logits.ndim != 2 or logits.shape[1] < 1:
        refuse("cross_entropy", "logits", "two axes (tokens, vocabulary)", logits.shape)
    if reduction not in ("mean", "none"):
        refuse("cross_entropy", "reduction", "mean or none", reduction)
    rows, vocab = logits.shape
    _check_targets("cross_entropy", targets, rows)
    _check_terms("cross_entropy", label_smoothing, z_loss)
    losses, inv_count = k.empty((rows,), wide(logits.dtype)), None
    if reduction == "mean":
        inv_count = k.empty((1,), wide(logits.dtype))
        k.count_targets(targets, inv_count)
    dlogits = k.empty_like(logits) if needs else None
    k.cross_entropy(logits, targets, losses, vocab, dlogits=dlogits, inv_count=inv_count,
                    label_smoothing=label_smoothing, z_loss=z_loss)  # fmt: skip
    y = losses if inv_count is None else _mean(losses, inv_count)
    return y, (dlogits, reduction)


@cross_entropy.backward
def _(saved: Any, dy: Array, dlogits: Any) -> None:
    unit, reduction = saved
    if reduction == "mean":
        k.axpy(unit, unit, alpha_at=dy)
        dlogits.take(unit)
    else:
        if dy.dtype != unit.dtype:
            unit = raw.cast(unit, dy.dtype)
        dlogits.take(raw.binary("mul", unit, dy.view((dy.size, 1))))


@cross_entropy.cost
def _(logits: Any, targets: Any, reduction: str = "mean", label_smoothing: float = 0.0, z_loss: float = 0.0) -> Cost:
    return Cost(12 * logits.size, elements_bytes(logits, targets))


@cross_entropy.composed
def _(logits: Tensor, targets: Any, reduction: str = "mean", label_smoothing: float = 0.0,
      z_loss: float = 0.0) -> Tensor:  # fmt: skip
    numbers = (targets.data if isinstance(targets, Tensor) else targets).numpy()
    rows, vocab = logits.shape
    top = logits.detach().max(-1, keepdims=True)
    log_sum = (logits - top).exp().sum(-1, keepdims=True).log()
    wanted = np.zeros((rows, vocab), logits.dtype)
    for row, target in enumerate(numbers):
        if target >= 0:
            wanted[row] = label_smoothing / vocab
            wanted[row, target] += 1.0 - label_smoothing
    losses = ((log_sum - (logits - top)) * Tensor(wanted)).sum(-1)
    if z_loss:
        counted = Tensor((numbers >= 0).astype(logits.dtype))
        losses = losses + basic.square(log_sum + top).reshape(rows) * counted * z_loss
    return losses.sum() * (1.0 / max(1, int((numbers >= 0).sum()))) if reduction == "mean" else losses


@op("x", "weight")
def linear_cross_entropy(
    x: Array,
    weight: Array,
    targets: Array,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    needs: Needs = None,
) -> Any:
    """cross_entropy(x @ weight.T, targets), a chunk of rows at a time; x (T, D), weight (V, D), targets (T) int32.

    `reduction`: mean over the targets that are not negative, or none -> (T), which has no gradient. `label_smoothing`
    and `z_loss` as in cross_entropy. The gradients are computed while a chunk's logits are at hand, so no product is
    done twice (as Hsu et al. 2024, arXiv:2410.10989). Where one chunk holds all rows, its logits become their gradient
    and wait for the backward, whose products then write where the optimizer reads.
    """
    check_float("linear_cross_entropy", x=x, weight=weight)
    if x.ndim != 2:
        refuse("linear_cross_entropy", "x", "two axes (tokens, width)", x.shape)
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        refuse("linear_cross_entropy", "weight", ("vocabulary", x.shape[1]), weight.shape)
    if reduction not in ("mean", "none"):
        refuse("linear_cross_entropy", "reduction", "mean or none", reduction)
    if needs and reduction == "none":
        refuse("linear_cross_entropy", "reduction", "mean where gradients are asked for", reduction)
    rows, width = x.shape
    vocab = weight.shape[0]
    _check_targets("linear_cross_entropy", targets, rows)
    _check_terms("linear_cross_entropy", label_smoothing, z_loss)
    losses = k.empty((rows,), wide(x.dtype))
    inv_count = k.empty((1,), wide(x.dtype))
    k.count_targets(targets, inv_count)
    chunk = max(64, min(rows, LOGITS_AT_ONCE // max(1, vocab)))
    # Several chunks: gradients for dy = 1 are summed up here. One chunk: dlogits is kept instead.
    need_x, need_weight = needs if needs and rows > chunk else (False, False)
    dx = k.empty_like(x) if need_x else None
    dweight = k.empty(weight.shape, wide(weight.dtype)) if need_weight else None
    dlogits = None if rows > chunk else k.empty((0, vocab), x.dtype)
    for start in range(0, rows, chunk):
        count = min(chunk, rows - start)
        xs = x.view((count, width), start * width)
        logits = k.empty((count, vocab), wide(x.dtype))
        k.gemm(xs, weight, logits, count, vocab, width, trans_b=True)
        k.cross_entropy(logits, targets.view((count,), start), losses.view((count,), start), vocab,
                        dlogits=logits if needs else None, inv_count=inv_count, label_smoothing=label_smoothing,
                        z_loss=z_loss)  # fmt: skip
        if needs and logits.dtype != x.dtype:
            logits = raw.cast(logits, x.dtype)
        if dlogits is not None:
            dlogits = logits
        if dx is not None:
            k.gemm(logits, weight, dx.view((count, width), start * width), count, width, vocab)
        if dweight is not None:
            k.gemm(logits, xs, dweight, vocab, width, count, trans_a=True, accumulate=start > 0)
    y = losses if reduction == "none" else _mean(losses, inv_count)
    return y, (x, weight, dlogits, dx, dweight)


@linear_cross_entropy.backward
def _(saved: Any, dy: Array, dx: Any, dweight: Any) -> None:
    x, weight, dlogits, *units = saved
    if dlogits is None:
        for unit, slot in zip(units, (dx, dweight), strict=True):
            if slot is not None:
                slot.add(unit, scale_at=dy)
        return
    rows, vocab = dlogits.shape
    k.axpy(dlogits, dlogits, alpha_at=dy)
    if dx is not None:
        array, add_to = dx.target()
        k.gemm(dlogits, weight, array, rows, x.shape[1], vocab, accumulate=add_to)
    if dweight is not None:
        array, add_to = dweight.target()
        k.gemm(dlogits, x, array, vocab, x.shape[1], rows, trans_a=True, accumulate=add_to)


@linear_cross_entropy.cost
def _(x: Any, weight: Any, targets: Any, reduction: str = "mean", label_smoothing: float = 0.0,
      z_loss: float = 0.0) -> Cost:  # fmt: skip
    rows, vocab = x.shape[0], weight.shape[0]
    return Cost(2 * rows * vocab * x.shape[1] + 12 * rows * vocab, elements_bytes(x, weight, targets))


@linear_cross_entropy.composed
def _(x: Tensor, weight: Tensor, targets: Any, reduction: str = "mean", label_smoothing: float = 0.0,
      z_loss: float = 0.0) -> Tensor:  # fmt: skip
    assert cross_entropy.composed_fn is not None
    logits = basic.matmul(x, weight.permute(1, 0))
    composed: Tensor = cross_entropy.composed_fn(logits, targets, reduction, label_smoothing, z_loss)
    return composed

"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns are rounded one by one, and those still to come take up the
error that each leaves in the layer's output.

With H = X^T X of the inputs and U the upper factor of its inverse (H^-1 = U^T U), column i leaves the error
e = (w_i - q_i) / U_ii, and each later column j becomes w_j - e U_ij; the output's squared error then grows by e^2 only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..qtensor import QType
from .rounding import DAMPING, Floats, integers, search

AT_ONCE = 64  # columns between products with all that are left
ROWS = 1 << 22  # numbers of the weight worked on at a time: rows do not know of each other


def factor(hessian: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """U (K, K) of H + 1 % of its mean diagonal, and the columns that no input reached, which do nothing."""
    h = hessian.astype(np.float64)
    dead = np.diagonal(h) <= 0
    h[dead, dead] = 1.0
    h[np.diag_indices_from(h)] += DAMPING * float(np.diagonal(h).mean())
    # H = R R^T with R upper is a Cholesky factor read from the last row and column; then U = R^-1.
    lower = np.linalg.cholesky(h[::-1, ::-1])
    return np.linalg.inv(lower)[::-1, ::-1], dead


def gptq(
    values: Floats, hessian: Floats, kind: QType, group: int, act_order: bool = True
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """Codes (N, K) and scales (N, groups) of a weight (N, K); `hessian` (K, K) is the sum of x x^T over inputs x.

    `act_order` takes the columns with the largest inputs first; scales are then chosen before, so that groups stay
    neighbours. Otherwise a group's scale is chosen when its first column's turn comes, for what it has become.
    """
    n, inner = values.shape
    groups = -(-inner // group)
    order = np.argsort(-np.diagonal(hessian), kind="stable") if act_order else np.arange(inner)
    upper, dead = factor(hessian[np.ix_(order, order)])
    pivots = np.diagonal(upper)
    importance = np.empty(inner)
    importance[order] = (
        1.0 / pivots**2
    )  # what an error of 1 in this column costs once the later ones have made up for it
    block = next(size for size in range(min(AT_ONCE, group), 0, -1) if group % size == 0)
    codes, scales = np.empty((n, inner), np.uint8), np.empty((n, groups))
    step = max(1, ROWS // inner)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        left = values[rows].astype(np.float64).T[order]  # (K, rows): a column is a stretch of memory
        left[dead] = 0.0
        chosen = np.empty((groups, left.shape[1]))
        if act_order:
            whole = np.empty_like(left)
            whole[order] = left
            for g in range(groups):
                columns = slice(g * group, (g + 1) * group)
                chosen[g] = search(whole[columns].T, importance[columns], kind)
        for first in range(0, inner, block):
            last = min(first + block, inner)
            if not act_order and first % group == 0:
                columns = slice(first, first + group)
                chosen[first // group] = search(left[columns].T, importance[columns], kind)
            errors = np.empty((last - first, left.shape[1]))
            for i in range(first, last):
                scale = chosen[order[i] // group]
                q = integers(left[i], scale, kind)
                codes[rows, order[i]] = (q + kind.offset).astype(np.uint8)
                error = (left[i] - q * scale) / pivots[i]
                left[i + 1 : last] -= upper[i, i + 1 : last, None] * error
                errors[i - first] = error
            left[last:] -= upper[first:last, last:].T @ errors
        scales[rows] = chosen.T
    return codes, scales

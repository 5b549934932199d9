"""AWQ (Lin et al. 2023, arXiv:2306.00978): columns of a weight that meet large inputs are scaled up before rounding,
and what makes these inputs is scaled down, so that the model's function stays.

What may be scaled is found by trying: powers of two leave every bit of a block's output as it was where the two changes
undo each other, and nowhere else. So no architecture has to say how its layers hang together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..models.quantized import rounded, rows_of
from ..nn.linear import Linear
from ..nn.module import Module
from ..nn.norm import Norm
from .calibrate import ExpertsObserver, Observer
from .rounding import Floats

GRID = 20  # exponents from 0 on, 1 left out


@dataclass
class Fold:
    """Linear layers that are given the same x, and what makes that x: a norm, or another linear layer."""

    names: list[str]
    linears: list[Linear]
    source: Norm | Linear
    source_name: str

    @property
    def plus_one(self) -> bool:
        """Whether the source multiplies by 1 + weight."""
        return isinstance(self.source, Norm) and self.source.spec.plus_one

    def apply(self, scale: Floats) -> Floats:
        """Divide the source's channels by `scale` (K) and multiply the layers' columns; returns the scale that the
        source's rounded weights really have."""
        weight: Any = self.source.weight
        old = weight.numpy().astype(np.float64)
        one = 1.0 if self.plus_one else 0.0
        across = scale if isinstance(self.source, Norm) else scale[:, None]
        _put(weight, (old + one) / across - one)
        if isinstance(self.source, Norm):
            new = weight.numpy().astype(np.float64) + one
            scale = np.divide(old + one, new, out=scale.astype(np.float64), where=new != 0)
        bias: Any = self.source.bias
        if bias is not None:
            _put(bias, bias.numpy().astype(np.float64) / scale)
        for linear in self.linears:
            _put(linear.weight, linear.weight.numpy().astype(np.float64) * scale)
        return scale

    def parameters(self) -> list[Any]:
        """All that apply() changes."""
        found = [self.source.weight, self.source.bias, *(linear.weight for linear in self.linears)]
        return [each for each in found if each is not None]


def _put(parameter: Any, values: Floats) -> None:
    parameter.data.copy_from(np.ascontiguousarray(values.astype(parameter.numpy().dtype)))


def plain(given: dict[str, Observer | ExpertsObserver]) -> dict[str, Observer]:
    """Those of layers that are no experts'."""
    return {name: each for name, each in given.items() if isinstance(each, Observer)}


def folds_of(
    block: Module, given: dict[str, Observer | ExpertsObserver], run: Callable[[], npt.NDArray[Any]]
) -> Iterator[Fold]:
    """The folds that a block allows. `given`: what its linear layers were given, of which layers of experts are left
    alone; `run` gives its output."""
    observers = plain(given)
    modules = dict(block.named_modules())
    names = {name: name.split(".", 2)[2].removesuffix(".weight") for name in observers}  # within the block
    linears: dict[str, Any] = {name: modules[inner] for name, inner in names.items()}
    groups: list[list[str]] = []
    for name in observers:
        like = next((g for g in groups if observers[g[0]].seen is observers[name].seen), None)
        groups.append([name]) if like is None else like.append(name)
    for group in groups:
        width = linears[group[0]].weight.shape[1]
        norms = [(inner, m) for inner, m in modules.items() if isinstance(m, Norm) and m.weight is not None]
        # Where keys and values go to other blocks, this block's output does not show all that changes.
        crosses = any(getattr(m, "crosses", False) for m in modules.values())
        before = [] if crosses else [(names[n], m) for n, m in linears.items() if n not in group]
        for inner, source in [*norms, *before]:
            if source.weight.shape[0] != width:
                continue
            fold = Fold(group, [linears[name] for name in group], source, inner)
            if _keeps_every_bit(fold, run):
                yield fold
                break


def _keeps_every_bit(fold: Fold, run: Callable[[], npt.NDArray[Any]]) -> bool:
    """Whether the block's output stays as it is, bit by bit, under powers of two."""
    saved = [each.numpy().copy() for each in fold.parameters()]
    width = fold.linears[0].weight.shape[1]
    scale = np.exp2(np.random.default_rng(0).integers(0, 2, width) * 2.0 - 1.0)  # a half or two
    try:
        if fold.plus_one:  # 1 + 0 divided by a power of two is exact
            _put(fold.source.weight, np.zeros(width))
        before = run()
        fold.apply(scale)
        return before.tobytes() == run().tobytes()
    finally:
        for parameter, values in zip(fold.parameters(), saved, strict=True):
            parameter.data.copy_from(values)


def best_scale(
    weights: list[Floats], inputs: Floats, quantize: Callable[[int, Floats], Floats]
) -> tuple[npt.NDArray[np.float64], float]:
    """s = (mean |x|)^a over its own spread, of the a in [0, 1) for which the layers' outputs are nearest, and that a.

    `weights` (N, K) of the layers, `inputs` (rows, K) that all are given; quantize(i, w) gives the numbers that layer i
    would have for w.
    """
    mean = np.abs(inputs).mean(axis=0, dtype=np.float64)
    mean = np.maximum(mean, max(1e-4 * mean.max(), 1e-30))
    right = [inputs @ w.T for w in weights]
    found: tuple[float, npt.NDArray[np.float64], float] | None = None
    for step in range(GRID):
        power = step / GRID
        scale = mean**power
        scale /= np.sqrt(scale.max() * scale.min())
        error = 0.0
        for i, w in enumerate(weights):
            rounded = quantize(i, (w * scale).astype(np.float32)) / scale
            difference = inputs @ rounded.astype(np.float32).T - right[i]
            error += float(np.vdot(difference, difference))
        if found is None or error < found[0]:
            found = error, scale, power
    assert found is not None
    return found[1], found[2]


def fold_block(
    block: Module,
    given: dict[str, Observer | ExpertsObserver],
    run: Callable[[], npt.NDArray[Any]],
    types: dict[str, tuple[str, int]],
) -> list[str]:
    """Scale what a block allows to be scaled; `types`: type and group of the layers to be rounded, by name. What the
    observers have seen is scaled along. Returns a line for each fold."""
    lines, observers = [], plain(given)
    for fold in list(folds_of(block, given, run)):
        chosen = [(name, linear) for name, linear in zip(fold.names, fold.linears, strict=True) if name in types]
        if not chosen:
            continue
        weights = [linear.weight.numpy().astype(np.float32) for _, linear in chosen]

        def quantize(i: int, w: Floats, chosen: Any = chosen) -> Floats:
            name = chosen[i][0]
            return rounded(rows_of(w), w.shape, *types[name], "float32", name).dequantize()

        scale, power = best_scale(weights, observers[fold.names[0]].inputs(), quantize)
        if power > 0:
            scale = fold.apply(scale)
            for name in fold.names:
                observers[name].squares /= scale**2
        lines.append(f"{fold.source_name} -> {', '.join(fold.names)}: exponent {power:.2f}")
    return lines

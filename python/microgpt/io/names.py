"""Weight-name rules: how a model's parameters are called and laid out in a file, described once for both directions.

A rule maps one of our names to one or several names in the file. Patterns hold at most one "{i}", the layer number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Rule:
    """`ours` (several are joined along their first axis) <-> `theirs`; `transpose` swaps the two axes in the file.

    `sizes` are the first-axis sizes of `ours`, needed where several are joined.
    """

    ours: str | tuple[str, ...]
    theirs: str
    transpose: bool = False
    sizes: tuple[int, ...] = ()

    def parts(self) -> tuple[str, ...]:
        """Our names, always as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


def to_file(rules: Sequence[Rule], arrays: Arrays) -> Arrays:
    """Our parameters under the file's names and layout. Every parameter must be covered by a rule."""
    left = dict(arrays)
    result: Arrays = {}
    for rule in rules:
        parts = [left.pop(name) for name in rule.parts()]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0)
        result[rule.theirs] = np.ascontiguousarray(value.T) if rule.transpose else np.ascontiguousarray(value)
    if left:
        raise CheckpointError(f"no rule says how to save {sorted(left)}")
    return result


def from_file(rules: Sequence[Rule], arrays: Arrays, where: str, optional: Sequence[str] = ()) -> Arrays:
    """The file's arrays under our names. Raises CheckpointError listing all missing and unexpected names.

    `optional` names may be in the file and are not needed (buffers, a copy of tied weights).
    """
    missing = [rule.theirs for rule in rules if rule.theirs not in arrays]
    known = {rule.theirs for rule in rules} | set(optional)
    extra = sorted(name for name in arrays if name not in known)
    if missing or extra:
        parts = [f"missing {missing}"] * bool(missing) + [f"unexpected {extra}"] * bool(extra)
        raise CheckpointError(f"{where}: weights do not fit the configuration: {'; '.join(parts)}")
    result: Arrays = {}
    for rule in rules:
        value = arrays[rule.theirs]
        if rule.transpose:
            value = value.T
        names = rule.parts()
        if len(names) == 1:
            result[names[0]] = value
            continue
        if value.shape[0] != sum(rule.sizes):
            raise CheckpointError(
                f"{where}: {rule.theirs} expected {sum(rule.sizes)} for {' + '.join(names)}, got {value.shape[0]}"
            )
        start = 0
        for name, size in zip(names, rule.sizes, strict=True):
            result[name] = value[start : start + size]
            start += size
    return result

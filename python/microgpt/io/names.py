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

    `sizes` are the first-axis sizes of `ours`, needed where several are joined. `groups` > 1 joins them group by group:
    the first part of each, then the second of each (q, k, v of one head after another). `constant`: a number that the
    file holds and that is none of ours; `ours` is then empty. `stack`: the rows of ours are so many arrays in the file,
    whose numbers stand for the "{}" in `theirs`.
    """

    ours: str | tuple[str, ...]
    theirs: str
    transpose: bool = False
    sizes: tuple[int, ...] = ()
    groups: int = 1
    shape: tuple[int, ...] | None = None  # in the file; None: not known
    constant: float | None = None
    stack: int = 0

    def names(self) -> tuple[str, ...]:
        """The file's names."""
        return tuple(self.theirs.format(i) for i in range(self.stack)) if self.stack else (self.theirs,)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the file's array has this shape."""
        return self.shape is None or shape == self.shape

    def parts(self) -> tuple[str, ...]:
        """Our names, always as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def join(self, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The file's array of our parts."""
        if self.constant is not None:
            return np.array(self.constant, np.float32)
        if len(parts) == 1:
            value = parts[0]
        else:
            split = [each.reshape(self.groups, -1, *each.shape[1:]) for each in parts]
            value = np.concatenate(split, axis=1).reshape(-1, *parts[0].shape[1:])
        return np.ascontiguousarray(value.T if self.transpose else value)

    def split(self, value: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Our parts of the file's array; views where that can be."""
        value = value.T if self.transpose else value
        if len(self.parts()) == 1:
            return [value]
        grouped = value.reshape(self.groups, -1, *value.shape[1:])
        ends = np.cumsum(self.sizes)[:-1] // self.groups
        return [each.reshape(-1, *value.shape[1:]) for each in np.split(grouped, ends, axis=1)]


def to_file(rules: Sequence[Rule], arrays: Arrays) -> Arrays:
    """Our parameters under the file's names and layout. Every parameter must be covered by a rule."""
    left = dict(arrays)
    result: Arrays = {}
    for rule in rules:
        value = rule.join([left.pop(name) for name in rule.parts()])
        result.update(zip(rule.names(), value if rule.stack else [value], strict=True))
    if left:
        raise CheckpointError(f"no rule says how to save {sorted(left)}")
    return result


def from_file(rules: Sequence[Rule], arrays: Arrays, where: str, optional: Sequence[str] = ()) -> Arrays:
    """The file's arrays under our names. Raises CheckpointError listing all missing, unexpected and mis-shaped names.

    `optional` names may be in the file and are not needed (buffers, a copy of tied weights). The file of a model
    without its head lacks the first part of all names ("transformer.", "model."); it is put back.
    """
    known = {name for rule in rules for name in rule.names()} | set(optional)
    first = rules[0].names()[0]
    prefix = first[: first.find(".") + 1]
    if first not in arrays and first[len(prefix) :] in arrays:
        arrays = {prefix + name if prefix + name in known else name: value for name, value in arrays.items()}
    places = [(rule, name) for rule in rules for name in rule.names() if rule.constant is None]
    missing = [name for _, name in places if name not in arrays]
    extra = sorted(name for name in arrays if name not in known)
    wrong = [f"{name} expected {rule.shape}, got {arrays[name].shape}"
             for rule, name in places if name in arrays and not rule.fits(arrays[name].shape)]  # fmt: skip
    if missing or extra or wrong:
        parts = [f"missing {missing}"] * bool(missing) + [f"unexpected {extra}"] * bool(extra)
        parts += [f"wrong shapes: {'; '.join(wrong)}"] * bool(wrong)
        raise CheckpointError(f"{where}: weights do not fit the configuration: {'; '.join(parts)}")
    result: Arrays = {}
    for rule in rules:
        if rule.constant is None:
            found = [arrays[name] for name in rule.names()]
            result.update(zip(rule.parts(), rule.split(np.stack(found) if rule.stack else found[0]), strict=True))
    return result

"""Weight-name rules: how a model's parameters are called and laid out in a file, described once for both directions.

A rule maps one of our names to one or several names in the file. Patterns hold at most one "{i}", the layer number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

Arrays = dict[str, npt.NDArray[Any]]


class Shaped(Protocol):
    """An array, or a tensor of a file that is not read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


S = TypeVar("S", bound=Shaped)


@dataclass(frozen=True)
class Packing:
    """How several arrays of ours lie in one of the file, where rows are not just joined: the two directions, and the
    shape of what `join` gives, from the shapes of what it takes.

    `picks`: which rows of each expert's matrix (out, in) are each of ours, where the file's have (experts, in, out)."""

    join: Callable[[Sequence[npt.NDArray[Any]]], npt.NDArray[Any]]
    split: Callable[[npt.NDArray[Any]], list[npt.NDArray[Any]]]
    shape: Callable[[Sequence[tuple[int, ...]]], tuple[int, ...]]
    picks: Sequence[slice] | None = None


@dataclass(frozen=True)
class Rule:
    """`ours` (several are joined along their first axis) <-> `theirs`; `transpose` swaps the two axes in the file.

    `sizes` are the first-axis sizes of `ours`, needed where several are joined. `groups` > 1 joins them group by group:
    the first part of each, then the second of each (q, k, v of one head after another). `constant`: a number that the
    file holds and that is none of ours; `ours` is then empty. `stack`: the rows of ours are so many arrays in the file,
    whose numbers stand for the "{}" in `theirs`. `packing` replaces joining and transposing.
    """

    ours: str | tuple[str, ...]
    theirs: str
    transpose: bool = False
    sizes: tuple[int, ...] = ()
    groups: int = 1
    shape: tuple[int, ...] | None = None  # in the file; None: not known
    constant: float | None = None
    stack: int = 0
    packing: Packing | None = None

    def names(self) -> tuple[str, ...]:
        """The file's names."""
        return tuple(self.theirs.format(i) for i in range(self.stack)) if self.stack else (self.theirs,)

    def ours_of(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Our arrays out of the file's."""
        found = [arrays[name] for name in self.names()]
        try:
            split = self.split(np.stack(found) if self.stack else found[0])
        except ValueError as error:  # the file's sizes of heads and its arrays disagree
            shapes = ", ".join(str(each.shape) for each in found)
            raise CheckpointError(
                f"{self.theirs}: {shapes} is not what the configuration makes of it: {error}"
            ) from error
        return dict(zip(self.parts(), split, strict=True))

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
        if self.packing is not None:
            return np.ascontiguousarray(self.packing.join(parts))
        if len(parts) == 1:
            value = parts[0]
        else:
            split = [each.reshape(self.groups, -1, *each.shape[1:]) for each in parts]
            value = np.concatenate(split, axis=1).reshape(-1, *parts[0].shape[1:])
        return np.ascontiguousarray(value.T if self.transpose else value)

    def split(self, value: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Our parts of the file's array; views where that can be."""
        if self.packing is not None:
            return self.packing.split(value)
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


def matched(rules: Sequence[Rule], found: Mapping[str, S], where: str, optional: Sequence[str] = ()) -> Mapping[str, S]:
    """What a file holds (anything with a shape), under the full names, once it is known to be what the rules need.

    `optional` names may be there and are not needed (buffers, a copy of tied weights). The file of a model without its
    head lacks the first part ("transformer.", "model.") of all names but the head's; it is put back. Raises
    CheckpointError listing all missing, unexpected and mis-shaped names.
    """
    places = {name: rule for rule in rules for name in rule.names()}
    for prefix in {name.split(".")[0] + "." for name in places if name.count(".") > 1}:
        if not any(name.startswith(prefix) for name in found) and any(prefix + name in places for name in found):
            found = {prefix + name if prefix + name in places or name.startswith(("h.", "layers.")) else name: each
                     for name, each in found.items()}  # fmt: skip
    missing = [name for name, rule in places.items() if rule.constant is None and name not in found]
    extra = sorted(found.keys() - places.keys() - set(optional))
    wrong = [(name, f" expected {rule.shape}, got {found[name].shape}") for name, rule in places.items()
             if rule.constant is None and name in found and not rule.fits(found[name].shape)]  # fmt: skip
    if missing or extra or wrong:
        stacks = {rule.theirs for rule in rules if rule.stack}
        parts = [f"{what} {_listed(_gathered([(name, '') for name in names], stacks))}"
                 for what, names in (("missing", missing), ("unexpected", extra)) if names]  # fmt: skip
        if wrong:
            shapes = _gathered(wrong, stacks)
            parts.append(f"wrong shapes: {'; '.join(shapes[:100])}{_more(shapes)}")
        raise CheckpointError(f"{where}: weights do not fit the configuration: {'; '.join(parts)}")
    return found


def _gathered(found: Sequence[tuple[str, str]], stacks: Collection[str]) -> list[str]:
    """Names and what is said of them; experts of which the same is said are one, with a "*" and how many they are."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, said in found:
        stack = re.sub(r"\.\d+(\.\D*)$", r".{}\1", name)
        groups.setdefault((stack if stack in stacks else name, said), []).append(name)
    return [names[0] + said if len(names) == 1 else f"{stack.format('*')} ({len(names):,} of them){said}"
            for (stack, said), names in groups.items()]  # fmt: skip


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 100:,} more" if len(names) > 100 else ""


def _listed(names: Sequence[str]) -> str:
    """All names; of a thousand (a configuration of other layers) the first ones and how many there are."""
    return f"{list(names[:100])}{_more(names)}"


def from_file(rules: Sequence[Rule], arrays: Arrays, where: str, optional: Sequence[str] = ()) -> Arrays:
    """The file's arrays under our names. Raises CheckpointError as :func:`matched` does."""
    found = matched(rules, arrays, where, optional)
    result: Arrays = {}
    for rule in rules:
        if rule.constant is None:
            result |= rule.ours_of(found)
    return result

"""Rotary positions, windows and layer types in config.json, both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ...nn.rope import RopeSpec
from ..config import ModelConfig
from .common import Reader, read_rope, write_rope
from .declare import FULL, SLIDING, Draft, Part


@dataclass(frozen=True)
class Rope(Part):
    """rope_parameters (transformers 5), or rope_theta and rope_scaling. `share` of a head turns by default."""

    theta: float = 10000.0
    share: float = 1.0
    interleaved: bool = False
    reverse: bool = False
    known: tuple[str, ...] = ()  # keys of rope_parameters that another part reads
    old_theta: str = "rope_theta"  # older names of two keys
    old_share: str = "partial_rotary_factor"

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        theta = get.get(self.old_theta, (float, int), self.theta)
        share = get.get(self.old_share, (float, int), self.share)
        rope = read_rope(get, draft.get("mixer.head_dim"), draft.get("max_positions"), theta, share, self.known)
        draft.set("mixer.rope", replace(rope, interleaved=self.interleaved, reverse=self.reverse))

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out.update(write_rope(next(iter(ropes(config).values())), head_dim_of(config)))
        if self.share != 1.0:
            out["rope_parameters"].setdefault("partial_rotary_factor", 1.0)


@dataclass(frozen=True)
class LayeredRope(Part):
    """rope_parameters with one entry for each layer type; `local` is the older dialect's key of the local theta."""

    theta: float
    local_theta: float
    local: str = "rope_local_base_freq"

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        head_dim, positions = draft.get("mixer.head_dim"), draft.get("max_positions")
        found = get.get("rope_parameters", (dict, type(None)), None)
        if found is not None and (FULL in found or SLIDING in found):
            thetas = {FULL: self.theta, SLIDING: self.local_theta}
            entries = {name: Reader({"rope_parameters": found.get(name) or {}}) for name in thetas}
            made = {name: read_rope(entries[name], head_dim, positions, thetas[name]) for name in thetas}
        else:
            full = read_rope(get, head_dim, positions, self.theta)
            theta = get.get(self.local, (float, int), self.local_theta)
            if self.local == "rope_theta":  # one theta for both
                theta = full.theta
            made = {FULL: full, SLIDING: RopeSpec(theta, full.dims)}
        for block, kind in zip(draft.blocks, draft.types, strict=True):
            block["mixer.rope"] = made[kind]

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        head_dim, found = head_dim_of(config), ropes(config)
        missing = {FULL: RopeSpec(self.theta), SLIDING: RopeSpec(self.local_theta)}
        out["rope_parameters"] = {
            name: write_rope(found.get(name, missing[name]), head_dim)["rope_parameters"] for name in missing
        }


def turning(config: ModelConfig) -> list[Any]:
    """The mixers, and parts of mixers, that have rotary positions."""
    mixers = [block.mixer for block in config.blocks if block.mixer is not None]
    both = [each for mixer in mixers for each in (mixer, *mixer.parts.values())]
    return [each for each in both if getattr(each, "rope", None) is not None]


def ropes(config: ModelConfig) -> dict[str, RopeSpec]:
    """The rotary positions of each layer type that has some."""
    found: dict[str, RopeSpec] = {}
    for mixer in turning(config):
        found.setdefault(FULL if mixer.window is None else SLIDING, mixer.rope)
    if not found:
        raise TypeError("no rotary positions")
    return found


def head_dim_of(config: ModelConfig) -> int:
    """The width of a head of the layers that have rotary positions."""
    found = [mixer.head_dim for mixer in turning(config)]
    if not found:
        raise TypeError("no rotary positions")
    return int(found[0])


@dataclass(frozen=True)
class Window(Part):
    """sliding_window of all layers."""

    default: int | None = None

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        given = "sliding_window" in get.config
        window = get.get("sliding_window", (int, type(None)), None)
        draft.set("mixer.window", window if given else self.default)

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        out["sliding_window"] = config.blocks[0].mixer.window


@dataclass(frozen=True)
class LayerTypes(Part):
    """layer_types and sliding_window: which layers see a window only.

    `slides(i, get)` tells them where layer_types is missing; `switch` is a key that turns windows off when false. With
    `nope`, full layers have no rotary positions (Cohere 2, EXAONE 4).
    """

    slides: Callable[[int, Reader], bool]
    default: int | None = 4096
    switch: str | None = None

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        given = "sliding_window" in get.config
        window = get.get("sliding_window", (int, type(None)), None) if given else self.default
        if self.switch is not None and not get.get(self.switch, bool, False):
            window = None
        types = get.get("layer_types", (list, type(None)), None)
        if types is None:
            slides = [window is not None and self.slides(i, get) for i in range(len(draft.blocks))]
            types = [SLIDING if each else FULL for each in slides]
        draft.types = types
        draft.check_types(get)
        for block, kind in zip(draft.blocks, types, strict=True):
            block["mixer.window"] = window if kind == SLIDING else None

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        windows = [block.mixer.window for block in config.blocks]
        out["layer_types"] = [FULL if window is None else SLIDING for window in windows]
        out["sliding_window"] = next((w for w in windows if w is not None), self.default)
        if self.switch is not None:
            out[self.switch] = any(windows)
            out["sliding_window"] = next((w for w in windows if w is not None), None)


def every(period: str | int, default: int = 4) -> Callable[[int, Reader], bool]:
    """All layers but each `period`-th slide; a name is a key of config.json that holds the period."""

    def slides(i: int, get: Reader) -> bool:
        length = get.get(period, int, default) if isinstance(period, str) else period
        return length > 0 and (i + 1) % length != 0

    return slides


def full_layers_without_positions(draft: Draft) -> None:
    """Layers without a window have no rotary positions, where any has a window (EXAONE 4) ..."""
    for block in draft.blocks:
        if block["mixer.window"] is None:
            block["mixer.rope"] = None

"""Place: what a layer is told about where it stands, when it is built."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Block `index` of `layers`, on a stream of `width`. `std` spreads initial weights, `out_std` those of projections
    back into the stream; tables of positions serve `max_positions`."""

    width: int
    index: int = 0
    layers: int = 1
    std: float = 0.02
    out_std: float = 0.02
    dtype: str = "float32"
    max_positions: int = 1

"""Initial values: drawn in pieces, the same numbers as at once."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from microgpt.nn import module
from microgpt.nn.module import normal


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 8, 9, 64, 1001, 1024])
@pytest.mark.parametrize("piece", [1, 5, 64])
def test_initial_numbers_do_not_depend_on_the_pieces(count: int, piece: int, monkeypatch: pytest.MonkeyPatch):
    """Against Box and Muller's formula on the whole stream at once; cos and sin of NumPy's vector loops and of their
    remainders may differ in the last place, and a radius is below 9."""
    key = int.from_bytes(hashlib.sha256(b"3/some.name").digest()[:16], "little")
    half = (count + 1) // 2
    uniform = [((int(bits) >> 11) + 0.5) * 2.0**-53 for bits in np.random.Philox(key=key).random_raw(2 * half)]
    pairs = list(zip(uniform[:half], uniform[half:], strict=True))
    turns = [(math.sqrt(-2.0 * math.log(a)), 2.0 * math.pi * b) for a, b in pairs]
    want = [r * math.cos(t) for r, t in turns] + [r * math.sin(t) for r, t in turns]
    monkeypatch.setattr(module, "PIECE", piece)
    assert np.abs(normal(count, 3, "some.name") - want[:count]).max() <= 9 * 8 * 2.0**-53

"""The merges of a BPE vocabulary that states only how early each token is made (tiktoken, SentencePiece)."""

from __future__ import annotations

import itertools
from typing import TypeVar

T = TypeVar("T", str, bytes)


def merges_of(ranks: dict[T, float]) -> list[tuple[T, T]]:
    """The pairs that make the tokens of `ranks`, in the order in which they apply (the lowest rank first).

    Both libraries join the neighbours whose union has the lowest rank, the leftmost of equals. Whatever stands around a
    token's characters, they are joined in the order in which they would be alone, so one pair makes each token: the
    last two parts when its own characters are joined. Tokens that are made of nothing else have no pair.
    """
    found: list[tuple[float, T, T]] = []
    for token, rank in ranks.items():
        splits = [at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
        # A pair that never meets harms nothing, so where only one is possible it need not be proved.
        at = splits[0] if len(splits) == 1 else last_pair(token, ranks) if splits else 0
        if at:
            found.append((rank, token[:at], token[at:]))
    # Of equal ranks the leftmost pair goes first; so does a token that grows to the right if longer unions go first.
    found.sort(key=lambda each: (each[0], -len(each[1]) - len(each[2])))
    return [(left, right) for _, left, right in found]


def last_pair(token: T, ranks: dict[T, float]) -> int:
    """Where the last join lies when the characters of `token` are joined; 0 if they never become it."""
    parts = [token[at : at + 1] for at in range(len(token))]
    unions: list[float | None] = [ranks.get(a + b) for a, b in itertools.pairwise(parts)]
    while len(parts) > 2:
        best, at = None, -1
        for place, rank in enumerate(unions):
            if rank is not None and (best is None or rank < best):
                best, at = rank, place
        if best is None:
            return 0
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del unions[at]
        if at < len(unions):
            unions[at] = ranks.get(parts[at] + parts[at + 1])
        if at > 0:
            unions[at - 1] = ranks.get(parts[at - 1] + parts[at])
    return len(parts[0])

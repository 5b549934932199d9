"""SentencePiece's compiled normalization: a trie of byte strings (Darts' double array) and what replaces each.

The `tokenizers` library has it too, but looks up a base character with its marks as one and then loses the marks.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from microgpt.errors import TokenizerError

_Units = npt.NDArray[Any]


class CharsMap:
    """Replaces, from left to right, the longest known string. Raises TokenizerError naming `where` for broken bytes.

    The trie shares subtrees, so what it knows is not listed: that may be more than memory holds.
    """

    def __init__(self, data: bytes, where: str) -> None:
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 or size % 4 or not 4 <= size <= len(data) - 4:
            raise TokenizerError(f"{where}: broken normalization: a trie of {size} bytes in {len(data)}")
        units = np.frombuffer(data, "<u4", size // 4, 4)
        self._units: list[int] = units.tolist()
        self._texts = _texts(data[4 + size :], _leaves(units, where), where)
        self._start = _starts(units, where)

    def __call__(self, text: str) -> str:
        done, at = [], 0
        while found := self._start.search(text, at):
            start = found.start()
            known, end = self._longest(text, start)
            done += [text[at:start], known]
            at = end
        return "".join([*done, text[at:]]) if done else text

    def _longest(self, text: str, start: int) -> tuple[str, int]:
        """What replaces the longest known string at `start`, and where that ends; of none, the character itself."""
        units, found, end = self._units, text[start], start + 1
        node = _offset(units[0])
        for place in range(start, len(text)):
            for byte in text[place].encode("utf-8", "surrogatepass"):
                node ^= byte
                if node >= len(units) or units[node] & 0x800000FF != byte:
                    return found, end
                leaf = units[node] >> 8 & 1
                node ^= _offset(units[node])
            if leaf:
                found, end = self._texts[units[node] & 0x7FFFFFFF], place + 1
        return found, end


def _offset(unit: int) -> int:
    return unit >> 10 << (unit >> 6 & 8)


def _children(units: _Units, nodes: _Units) -> tuple[_Units, _Units, _Units]:
    """Of several nodes: which has a child, by which byte, and where that child's own children are counted from."""
    places = nodes[:, None] ^ np.arange(1, 256, dtype=np.int64)
    inside = places < len(units)
    row, byte = np.nonzero(inside & ((units[np.where(inside, places, 0)] & 0x800000FF) == np.arange(1, 256)))
    return row, byte + 1, places[row, byte]


def _targets(units: _Units, places: _Units) -> _Units:
    found = units[places]
    return np.asarray(places ^ ((found >> 10) << ((found & 0x200) >> 6)).astype(np.int64))


def _leaves(units: _Units, where: str) -> list[int]:
    """The values of all leaves, each node visited once however many ways lead there."""
    seen = np.zeros(len(units), bool)
    nodes, values = np.array([_offset(int(units[0]))], np.int64), []
    while len(nodes):
        _, _, places = _children(units, nodes)
        places = np.unique(places[~seen[places]])
        seen[places] = True
        nodes = _targets(units, places)
        ends = nodes[(units[places] >> 8 & 1).astype(bool)]
        if len(ends) and int(ends.max()) >= len(units):
            raise TokenizerError(f"{where}: broken normalization: its trie leads out of itself")
        values.append(units[ends] & 0x7FFFFFFF)
    return np.unique(np.concatenate(values)).tolist() if values else []


def _texts(values: bytes, places: list[int], where: str) -> dict[int, str]:
    found = {}
    for at in places:
        end = values.find(b"\0", at, at + 4096) if at < len(values) else -1
        try:
            if end < 0:
                raise ValueError(f"text {at} of {len(values)} bytes does not end")
            found[at] = values[at:end].decode()
        except ValueError as error:
            raise TokenizerError(f"{where}: broken normalization: {error}") from error
    return found


def _starts(units: _Units, where: str) -> re.Pattern[str]:
    """Matches where a known string may begin: characters that are known, and those with which a longer one begins,
    before one with which it may go on.
    """
    single, first, second = [], [], set()
    nodes, paths = np.array([_offset(int(units[0]))], np.int64), [b""]
    for _ in range(4):
        row, bytes_, places = _children(units, nodes)
        if len(row) > 0x110000:
            raise TokenizerError(f"{where}: broken normalization: more characters than there are")
        grown = [paths[a] + bytes([b]) for a, b in zip(row.tolist(), bytes_.tolist(), strict=True)]
        targets = _targets(units, places)
        leaf = (units[places] >> 8 & 1).tolist()
        goes_on: list[list[int]] = [[] for _ in grown]
        after, follows, _ = _children(units, targets)
        for a, b in zip(after.tolist(), follows.tolist(), strict=True):
            goes_on[a].append(b)
        keep = []
        for number, path in enumerate(grown):
            try:
                character = path.decode()
            except UnicodeDecodeError:
                keep.append(number)
                continue
            if leaf[number]:
                single.append(character)
            if goes_on[number]:
                first.append(character)
                second.update(goes_on[number])
        nodes, paths = targets[keep], [grown[number] for number in keep]
        if not keep:
            break
    parts = [f"[{''.join(map(re.escape, single))}]"] if single else []
    spans = "".join(map(_led_by, sorted(second)))
    if first and spans:
        parts.append(f"[{''.join(map(re.escape, first))}](?=[{spans}])")
    return re.compile("|".join(parts) or "(?!)")


def _led_by(byte: int) -> str:
    """The characters whose UTF-8 begins with `byte`, as a range for a regular expression."""
    if byte < 0x80:
        return re.escape(chr(byte))
    for lead, mask, shift, least in ((0xC0, 0x1F, 6, 0x80), (0xE0, 0x0F, 12, 0x800), (0xF0, 0x07, 18, 0x10000)):
        if byte & ~mask & 0xFF == lead:
            low, high = (byte & mask) << shift, ((byte & mask) + 1 << shift) - 1
            low, high = max(low, least), min(high, 0x10FFFF)
            return f"{chr(low)}-{chr(high)}" if low <= high else ""
    return ""

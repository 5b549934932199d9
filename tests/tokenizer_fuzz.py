"""Texts for tokenizers: the same ones on every machine and Python, so that golden ids can be kept for them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable

import numpy as np

# The first article of the Universal Declaration of Human Rights (public domain), a proverb where that is missing, code.
SENTENCES = """\
All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.
Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience.
Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.
Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia.
Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.
すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。
人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।
يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.
def tokens(text: str) -> list[int]:\n    return [ord(c) for c in text if c != "\\n"]  # 0x7f == 127
I'll say it's what we've got; they're sure you'd DON'T, he'S 3rd of 1,234,567.89 in 2024-11-25T10:00:00Z!
<p class="x">a &amp; b</p> {"key": [1, 2.5e-3, null]} https://example.org/a?b=c#d user@example.org C:\\Windows\\
""".splitlines()
RANGES = [
    (0x20, 0x7E), (0xA1, 0x17F), (0x300, 0x33F), (0x391, 0x3A1), (0x410, 0x44F), (0x5D0, 0x5EA), (0x627, 0x64A),
    (0x905, 0x939), (0xE01, 0xE3A), (0x1E00, 0x1EFF), (0x2010, 0x2027), (0x2190, 0x21FF), (0x2460, 0x24FF),
    (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFB00, 0xFB06), (0xFF01, 0xFF5E),
    (0x10330, 0x1034A), (0x1D400, 0x1D454), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x20000, 0x200FF),
]  # fmt: skip
RUNS = [
    " ",
    "\n",
    "\t",
    "\r\n",
    "a",
    "=",
    "-",
    "0",
    "é",
    "e\u0301",
    "\u2581",
    "!",
    "\u00a0",
    "\u3000",
    "👨\u200d👩\u200d👧",
    "\u0301",
]
SPECIALS = [
    "<s>",
    "</s>",
    "<unk>",
    "<|endoftext|>",
    "<0x41>",
    "<pad>",
    "[CLS]",
    "<user>",
    "a<b>b",
    "'ſ",
    "  x  ",
    "\ufeff",
]


def make(seed: int, count: int) -> list[str]:
    """`count` texts, the same for the same seed."""
    draw = random.Random(seed)
    return [_text(draw) for _ in range(count)]


def _text(draw: random.Random) -> str:
    parts = []
    for _ in range(1 + int(draw.random() * 4)):
        kind = draw.random()
        if kind < 0.5:
            sentence = _one(draw, SENTENCES)
            start = int(draw.random() * len(sentence))
            parts.append(sentence[start : start + 1 + int(draw.random() * 80)])
        elif kind < 0.7:
            for _ in range(1 + int(draw.random() * 12)):
                low, high = _one(draw, RANGES)
                parts.append(chr(low + int(draw.random() * (high - low + 1))))
        elif kind < 0.85:
            parts.append(_one(draw, RUNS) * (1 + int(draw.random() * 30)))
        else:
            parts.append(_one(draw, SPECIALS))
    return "".join(parts)


def _one(draw: random.Random, choices: list) -> object:  # only random() draws the same in every version of Python
    return choices[int(draw.random() * len(choices))]


def sums(rows: Iterable[Iterable[int]]) -> np.ndarray:
    """A CRC-32 for each row of ids."""
    return np.array([zlib.crc32(np.asarray(list(row), "<i4").tobytes()) for row in rows], np.uint32)

"""Vocabularies for tests: the golden ones in other files' forms, and a way to damage them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microgpt.errors import MicrogptError
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.pieces import SPACE
from microgpt.tokenizers.sentencepiece import read_pieces

FOLDER = Path(__file__).parent / "golden" / "tokenizers"


def gguf_llama(name: str = "bpe.model") -> dict[str, Any]:
    """The metadata that a GGUF file has for a SentencePiece model."""
    pieces = read_pieces((FOLDER / name).read_bytes())
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama" if pieces.model == "bpe" else "t5",
        "tokenizer.ggml.tokens": list(pieces.texts),
        "tokenizer.ggml.scores": list(pieces.scores),
        "tokenizer.ggml.token_type": list(pieces.kinds),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": pieces.add_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": pieces.squeeze,
        **({"tokenizer.ggml.precompiled_charsmap": list(pieces.charsmap)} if pieces.charsmap else {}),
    }


def llama2c(name: str = "bpe.model") -> bytes:
    """The same vocabulary in llama2.c's form, for models whose first pieces are unknown, begin, end and the bytes."""
    pieces = read_pieces((FOLDER / name).read_bytes())
    normal = [(t, s) for t, s, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True) if kind == 1]
    first = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0), *((f"<0x{value:02X}>", 0.0) for value in range(256))]
    data = struct.pack("<i", 64)
    for text, score in [*first, *normal]:
        raw = text.replace(SPACE, " ").encode()
        data += struct.pack("<fi", score, len(raw)) + raw
    return data


def survives(make: Callable[[], Tokenizer], texts: list[str]) -> bool:
    """Whether a damaged vocabulary loads; if so it is used. Anything but a typed error while loading is a failure."""
    try:
        made = make()
    except MicrogptError:
        return False
    for text in texts:
        try:
            made.decode(made.encode(text))
        except MicrogptError as error:
            # Characters that a vocabulary without bytes does not have.
            assert "cannot encode" in str(error) or "cannot decode" in str(error), error
    return True


def damaged(data: bytes, draw: random.Random) -> bytes:
    """`data` with a few bits, bytes or stretches changed, or cut off."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        if not changed:
            break
        kind, at = draw.randrange(6), draw.randrange(len(changed))
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[at : at + draw.randrange(1, 40)]
        elif kind == 3:
            changed[at:at] = changed[at : at + draw.randrange(1, 40)]
        elif kind == 4:
            changed[at:at] = draw.choice(
                (b"\xff" * 10, b"\x80\x80\x80\x80\x10", b"\n\xff\xff\xff\xff\x0f", b"\x0a\x00")
            )
        else:
            del changed[max(1, at) :]
    return bytes(changed)

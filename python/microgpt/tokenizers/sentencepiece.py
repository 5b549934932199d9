"""SentencePiece models (``tokenizer.model``): the few fields of the protobuf that say how text is cut.

The file is untrusted: every length is compared with what remains before it is used. Kudo & Richardson 2018.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from microgpt.errors import TokenizerError
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.pieces import VOCAB_LIMIT, Pieces, tokenizer_of

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODELS = {1: "unigram", 2: "bpe"}


def fields(data: memoryview, where: str) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message: an int, or the bytes of what has a length or 4 or 8 bytes.

    Raises TokenizerError naming the offset where the message breaks off.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise TokenizerError(f"{where}: broken or truncated at byte {at}: a number does not end")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if number and wire == _VARINT:
            yield number, varint()
            continue
        size = 4 if wire == _FIXED32 else 8 if wire == _FIXED64 else varint() if wire == _BYTES else None
        if size is None or number == 0:
            raise TokenizerError(f"{where}: broken at byte {at}: no protobuf field has key {key}")
        if size > len(data) - at:
            raise TokenizerError(f"{where}: truncated at byte {at}: {size} bytes expected, {len(data) - at} there")
        yield number, data[at : at + size]
        at += size


def read_pieces(data: bytes, where: str = "tokenizer.model") -> Pieces:
    """The vocabulary of a SentencePiece model. Raises TokenizerError for broken bytes and for models that cannot be
    written as a tokenizer.json (types word and char, whitespace as a suffix).
    """
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, Any] = {}
    normal: dict[int, Any] = {}
    for number, value in fields(memoryview(data), where):
        if number == 1:
            if len(texts) >= VOCAB_LIMIT:
                raise TokenizerError(f"{where}: expected at most {VOCAB_LIMIT} pieces")
            what = f"{where}: piece {len(texts)}"
            piece: dict[int, Any] = {1: b"", 2: bytes(4), 3: 1}
            piece.update(_message(value, what))
            texts.append(_text(piece[1], what))
            scores.append(_float(piece[2], what))
            kinds.append(_int(piece[3], what))
        elif number in (2, 3):
            (trainer if number == 2 else normal).update(_message(value, f"{where}: field {number}"))
    kind = _int(trainer.get(3, 1), where)
    if kind not in _MODELS:
        raise TokenizerError(f"{where}: model type {kind}: expected 1 (unigram) or 2 (BPE)")
    if _int(trainer.get(24, 0), where):
        raise TokenizerError(f"{where}: whitespace as a suffix is not supported")
    ends = [_id(trainer.get(number, default), where) for number, default in ((41, 1), (42, 2))]
    return Pieces(
        texts,
        scores,
        kinds,
        _MODELS[kind],
        byte_fallback=bool(_int(trainer.get(35, 0), where)),
        add_prefix=bool(_int(normal.get(3, 1), where)),
        squeeze=bool(_int(normal.get(4, 1), where)),
        escape=bool(_int(normal.get(5, 1), where)),
        charsmap=bytes(_bytes(normal.get(2, b""), where)),
        ends=(ends[0], ends[1]),
    )


def from_bytes(data: bytes, config: dict[str, Any] | None = None, where: str = "tokenizer.model") -> HubTokenizer:
    """The tokenizer of a SentencePiece model; `config` is a tokenizer_config.json. Raises TokenizerError."""
    return tokenizer_of(read_pieces(data, where), config or {}, where)


def _message(value: int | memoryview, where: str) -> Iterator[tuple[int, int | memoryview]]:
    if isinstance(value, int):
        raise TokenizerError(f"{where}: broken: expected a message, found a number")
    return fields(value, where)


def _bytes(value: Any, where: str) -> Any:
    if isinstance(value, int):
        raise TokenizerError(f"{where}: broken: expected bytes, found a number")
    return value


def _text(value: Any, where: str) -> str:
    try:
        return bytes(_bytes(value, where)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{where}: not UTF-8 at byte {error.start}") from error


def _float(value: Any, where: str) -> float:
    if len(_bytes(value, where)) != 4:
        raise TokenizerError(f"{where}: broken: expected 4 bytes for a score, found {len(value)}")
    return float(struct.unpack("<f", value)[0])


def _int(value: Any, where: str) -> int:
    if not isinstance(value, int):
        raise TokenizerError(f"{where}: broken: expected a number, found bytes")
    return value


def _id(value: Any, where: str) -> int | None:
    """An id of the trainer's; what is negative (two's complement of 64 bits) is not there."""
    number = _int(value, where) & (2**64 - 1)
    return None if number >= 2**31 else number

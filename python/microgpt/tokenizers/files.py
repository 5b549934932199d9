"""Which tokenizer the files of a model folder hold."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from microgpt.errors import TokenizerError
from microgpt.tokenizers.base import Tokenizer, parse_json, read_bytes, read_text
from microgpt.tokenizers.ids import CLASS, IdsTokenizer

# In the order in which they are looked for.
NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json", "encoder.json", "vocab.txt")
_TEMPLATE_LIMIT = 1 << 20  # bytes; the longest public templates have 20,000


def open_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer of a model folder or of one file. Raises TokenizerError, MissingExtraError."""
    path = place if place.is_file() else _find(place)
    folder = path.parent
    config_path = folder / "tokenizer_config.json"
    config = parse_json(config_path, read_text(config_path)) if config_path.exists() else {}
    if config.get("tokenizer_class") == CLASS and not path.exists():  # a model that came without a vocabulary
        return IdsTokenizer.from_config(config, str(config_path))
    made = _open(path, config)
    made.chat_templates.update(_templates(folder, config))
    generation = folder / "generation_config.json"
    if generation.exists():
        ends = parse_json(generation, read_text(generation)).get("eos_token_id")
        ids = ends if isinstance(ends, list) else [ends]
        made.more_stop_ids |= {each for each in ids if type(each) is int and 0 <= each < made.vocab_size}
    return made


def _find(folder: Path) -> Path:
    for name in NAMES:
        if (folder / name).exists():
            return folder / name
    ranks = sorted(folder.glob("*.tiktoken"))
    return ranks[0] if ranks else folder / NAMES[0]  # whose absence is then told


def _open(path: Path, config: dict[str, Any]) -> Tokenizer:
    from microgpt.tokenizers import bytebpe, gguf, sentencepiece
    from microgpt.tokenizers.char import CharTokenizer
    from microgpt.tokenizers.hub import HubTokenizer

    where = str(path)
    if path.suffix == ".model":
        return sentencepiece.from_bytes(read_bytes(path), config, where)
    if path.suffix == ".tiktoken":
        return bytebpe.from_ranks(read_bytes(path), path.stem, config, where)
    if path.suffix == ".bin":
        return from_llama2c(read_bytes(path), config, where)
    if path.suffix == ".txt":
        lines = read_text(path).splitlines()
        vocab = {line: number for number, line in enumerate(lines)}
        if not all(vocab) or len(vocab) != len(lines):
            raise TokenizerError(f"{where}: expected one token a line, none empty or twice")
        return gguf.word_piece(vocab, config, where)
    text = read_text(path)
    content = parse_json(path, text)
    if path.name in ("vocab.json", "encoder.json"):
        merges = path.with_name("merges.txt")
        if not merges.exists():
            merges = path.with_name("vocab.bpe")
        return bytebpe.from_merges(content, read_text(merges), config, where)
    if CharTokenizer.describes(content):
        return CharTokenizer.from_files(content, config, where)
    return HubTokenizer(text, config, where, content)


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; files precede what tokenizer_config.json says."""
    found: dict[str, str] = {}
    stated = config.get("chat_template")
    if isinstance(stated, str):
        found["default"] = stated
    for each in stated if isinstance(stated, list) else ():
        name, text = (each.get("name"), each.get("template")) if isinstance(each, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise TokenizerError(f"{folder / 'tokenizer_config.json'}: chat_template: expected names and templates")
        found[name] = text
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in files.items():
        if path.exists():
            found[name] = read_text(path)
    for name, text in found.items():
        if len(text) > _TEMPLATE_LIMIT:
            raise TokenizerError(f"{folder}: chat template {name}: expected at most {_TEMPLATE_LIMIT} characters")
    return found


def from_llama2c(data: bytes, config: dict[str, Any], where: str = "tokenizer.bin") -> Tokenizer:
    """The vocabulary of llama2.c: the longest length, then score, length and text of each token, little-endian.

    Ids 0 to 2 are unknown, begin and end, the next 256 the bytes. Raises TokenizerError.
    """
    from microgpt.tokenizers.pieces import SPACE, Kind, Pieces, tokenizer_of

    texts: list[bytes] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        if len(data) - at < 8:
            raise TokenizerError(f"{where}: truncated at byte {at}, in token {len(texts)}")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= length <= len(data) - at:
            raise TokenizerError(f"{where}: token {len(texts)} at byte {at}: {length} bytes, {len(data) - at} remain")
        texts.append(data[at : at + length])
        scores.append(score)
        at += length
    if len(texts) < 259:
        raise TokenizerError(f"{where}: expected at least 259 tokens, found {len(texts)}")
    names = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    try:
        names += [text.decode().replace(" ", SPACE) for text in texts[259:]]
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{where}: a token is not UTF-8") from error
    kinds = [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, *[Kind.BYTE] * 256, *[Kind.NORMAL] * (len(texts) - 259)]
    pieces = Pieces(names, scores, kinds, "bpe", byte_fallback=True, ends=(1, 2))
    return tokenizer_of(pieces, config, where)

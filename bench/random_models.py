"""Models of known shapes with random weights, for `microgpt bench MODEL`: what a forward costs does not depend on them.

For each shape FOLDER/NAME (bfloat16, Hugging Face layout), NAME-int4 and NAME-int8 (quantized, our own layout), and
NAME-q4_0.gguf, NAME-q8_0.gguf and NAME-bf16.gguf for llama.cpp. Embeddings and head have 8 bits in the quantized ones,
whichever library reads them; with --tables q6_k those of int4 and q4_0 are Q6_K, as llama.cpp's own quantizer has it
(NAME-int4-q6_k, NAME-q4_0-q6_k.gguf). Vocabularies are random joins of bytes, as many as the shape's own.

moe-0.7b has 32 experts in each layer, of which a token goes to 8; routers stay numbers everywhere.

    python bench/random_models.py models smollm2-135m qwen3-0.6b llama-3.2-1b moe-0.7b
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from microgpt.api import LanguageModel
from microgpt.io import ggml
from microgpt.models import gguf
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import open_checkpoint, save_decoder, take
from microgpt.models.quantized import Scheme
from microgpt.tokenizers.base import Tokenizer

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": ("llama", {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
    }),
    "qwen3-0.6b": ("qwen3", {
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 8192, "rope_theta": 1000000.0,
    }),
    "llama-3.2-1b": ("llama", {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }),
    "moe-0.7b": ("qwen3_moe", {
        "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 64, "moe_intermediate_size": 512, "num_experts": 32, "num_experts_per_tok": 8,
        "intermediate_size": 3072, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
        "rope_theta": 1000000.0, "norm_topk_prob": True,
    }),
}  # fmt: skip


def _tables_of(tables: str, tensor_type: Any) -> Any:
    def chosen(name: str, shape: tuple[int, ...], kind: str, config: Any) -> Any:
        table = name in ("token_embd.weight", "output.weight") and kind == "q4_0"
        return ggml.NAMED[tables.upper()] if table else tensor_type(name, shape, kind, config)

    return chosen


def write_vocabulary(folder: Path, count: int) -> None:
    """tokenizer.json with byte-level BPE of so many tokens: bytes, and joins of two that were there before."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens, merges = [names[byte] for byte in range(256)], []
    known, rng = set(tokens), np.random.default_rng(0)
    while len(tokens) < count:
        for left, right in (rng.random((1 << 14, 2)) ** 3 * min(len(tokens), 20000)).astype(int).tolist():
            made = tokens[left] + tokens[right]
            if made not in known and len(made) <= 12 and len(tokens) < count:
                known.add(made)
                merges.append(f"{tokens[left]} {tokens[right]}")
                tokens.append(made)
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    made = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": plain, "post_processor": None,
            "decoder": plain, "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")


def make(folder: Path, name: str, kinds: list[str], tables: str) -> None:
    """Write a shape's folders and files; those that are there stay."""
    family, values = SHAPES[name]
    place = folder / name
    if not (place / "config.json").exists():
        config = dataclasses.replace(FAMILIES.get(family).read(values), init_std=0.02)
        place.mkdir(parents=True, exist_ok=True)
        write_vocabulary(place, config.vocab_size)
        save_decoder(Decoder(config, "bfloat16", seed=0), place)
    for kind in kinds:
        six = tables == "q6_k" and kind in ("int4", "q4_0")
        own = folder / f"{name}-{kind}{'-q6_k' if six else ''}"
        if kind in ("int4", "int8") and not (own / "config.json").exists():
            own.mkdir(exist_ok=True)
            shutil.copyfile(place / "tokenizer.json", own / "tokenizer.json")
            scheme = dataclasses.replace(Scheme.named(kind), **({"tables": tables} if six else {}))
            save_decoder(take(open_checkpoint(place), None, scheme), own)
        file = folder / f"{own.name}.gguf"
        if kind not in ("int4", "int8") and not file.exists():
            model = take(open_checkpoint(place))
            LanguageModel(model, Tokenizer.load(place)).export(file, type=kind)
        print(own if own.exists() else file, flush=True)


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--kinds", default="int4,int8,q4_0,q8_0,bf16")
    parser.add_argument("--tables", default="q8_0", choices=["q8_0", "q6_k"], help="of embeddings and head")
    arguments = parser.parse_args()
    gguf.tensor_type = _tables_of(arguments.tables, gguf.tensor_type)
    for shape in arguments.shapes:
        make(arguments.folder, shape, arguments.kinds.split(","), arguments.tables)


if __name__ == "__main__":
    main()

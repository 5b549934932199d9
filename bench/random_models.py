"""Models of known shapes with random weights, for `microgpt bench MODEL`: what a forward costs does not depend on them.

For each shape FOLDER/NAME (bfloat16, Hugging Face layout), NAME-int4 and NAME-int8 (quantized, our own layout), and
NAME-q4_0.gguf, NAME-q8_0.gguf and NAME-bf16.gguf for llama.cpp. Embeddings and head have 8 bits in the quantized ones,
whichever library reads them.

    python bench/random_models.py models smollm2-135m qwen3-0.6b llama-3.2-1b
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from microgpt.api import LanguageModel
from microgpt.io import ggml
from microgpt.models import gguf
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import open_checkpoint, save_decoder, take
from microgpt.models.quantized import Scheme
from microgpt.tokenizers.ids import IdsTokenizer

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
}  # fmt: skip


def _eight_bits_in_tables(tensor_type: Any) -> Any:
    def chosen(name: str, shape: tuple[int, ...], kind: str, config: Any) -> Any:
        table = name in ("token_embd.weight", "output.weight") and kind == "q4_0"
        return ggml.NAMED["Q8_0"] if table else tensor_type(name, shape, kind, config)

    return chosen


def make(folder: Path, name: str, kinds: list[str]) -> None:
    """Write a shape's folders and files; those that are there stay."""
    family, values = SHAPES[name]
    place = folder / name
    if not (place / "config.json").exists():
        config = dataclasses.replace(FAMILIES.get(family).read(values), init_std=0.02)
        place.mkdir(parents=True, exist_ok=True)
        save_decoder(Decoder(config, "bfloat16", seed=0), place)
    for kind in kinds:
        own = folder / f"{name}-{kind}"
        if kind in ("int4", "int8") and not (own / "config.json").exists():
            own.mkdir(exist_ok=True)
            save_decoder(take(open_checkpoint(place), None, Scheme.named(kind)), own)
        file = folder / f"{name}-{kind}.gguf"
        if kind not in ("int4", "int8") and not file.exists():
            model = take(open_checkpoint(place))
            LanguageModel(model, IdsTokenizer(model.config.vocab_size)).export(file, type=kind)
        print(own if own.exists() else file, flush=True)


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--kinds", default="int4,int8,q4_0,q8_0,bf16")
    arguments = parser.parse_args()
    gguf._tensor_type = _eight_bits_in_tables(gguf._tensor_type)
    for shape in arguments.shapes:
        make(arguments.folder, shape, arguments.kinds.split(","))


if __name__ == "__main__":
    main()

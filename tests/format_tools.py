"""Small models in every format that is read, for tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from microgpt.io import safetensors
from microgpt.io.names import to_file
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import save_decoder

LLAMA = {
    "vocab_size": 61, "max_position_embeddings": 24, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0}  # fmt: skip


def a_model(family: str = "llama", dtype: str = "float32", **settings: Any) -> Decoder:
    """A tiny model in which every parameter differs from every other, biases and norms too."""
    config = FAMILIES.get(family).read({**(GPT2 if family == "gpt2" else LLAMA), **settings})
    model = Decoder(config, dtype, seed=1)
    rng = np.random.default_rng(2)
    for parameter in model.parameters():
        values = parameter.numpy()
        values += (0.1 * rng.standard_normal(parameter.shape)).astype(values.dtype)
    return model


def same(one: Decoder, two: Decoder) -> bool:
    """Whether all parameters have the same bits."""
    a, b = one.arrays(), two.arrays()
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def theirs(model: Decoder) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters under the names of transformers."""
    rules = FAMILIES.get(model.config.family).rules
    assert rules is not None
    return to_file(rules(model.config), model.arrays())


def sharded(model: Decoder, folder: Path, parts: int = 3) -> None:
    """A model folder whose weights are in several files, as transformers cuts large ones."""
    folder.mkdir()
    save_decoder(model, folder)
    (folder / "model.safetensors").unlink()
    weights = theirs(model)
    places = {}
    for i in range(parts):
        name = f"model-{i + 1:05}-of-{parts:05}.safetensors"
        chosen = {key: weights[key] for key in sorted(weights)[i::parts]}
        safetensors.save(folder / name, chosen)
        places |= dict.fromkeys(chosen, name)
    index = {"metadata": {"total_size": sum(each.nbytes for each in weights.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def mlx(model: Decoder, folder: Path, bits: int = 4, group: int = 32, float_type: str = "float16") -> None:
    """A folder as MLX quantizes one; the model's matrices become what the folder means."""
    folder.mkdir()
    save_decoder(model, folder)
    (folder / "model.safetensors").unlink()
    own = {rule.theirs: rule.parts()[0] for rule in FAMILIES.get("llama").rules(model.config)}  # type: ignore[misc]
    arrays = model.arrays()
    stored: dict[str, np.ndarray[Any, Any]] = {}
    rng = np.random.default_rng(3)
    for name, value in theirs(model).items():
        if value.ndim < 2:
            stored[name] = value
            continue
        rows, columns = value.shape
        q = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
        # One bit after another, lowest first, as 32-bit words.
        stream = np.unpackbits(q[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(rows, -1)
        base = name.removesuffix(".weight")
        stored[f"{base}.weight"] = np.packbits(stream, axis=1, bitorder="little").view(np.uint32)
        scale = rng.uniform(0.01, 0.02, (rows, columns // group)).astype(float_type)
        bias = rng.uniform(-0.1, 0.0, (rows, columns // group)).astype(float_type)
        stored[f"{base}.scales"], stored[f"{base}.biases"] = scale, bias
        product = q.reshape(rows, -1, group).astype(scale.dtype) * scale[:, :, None]  # rounded, as MLX does
        arrays[own[name]][...] = (product + bias[:, :, None]).astype(np.float32).reshape(rows, columns)
    safetensors.save(folder / "model.safetensors", stored)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"group_size": group, "bits": bits}
    (folder / "config.json").write_text(json.dumps(config))


def llama2c(model: Decoder, path: Path) -> None:
    """A version-0 .bin of llama2.c."""
    config, a = model.config, model.arrays()
    mixer, hidden = config.blocks[0].mixer, config.blocks[0].ffn.width
    layers = range(len(config.blocks))
    vocab = config.vocab_size if config.tie_embeddings else -config.vocab_size
    head = struct.pack(
        "<7i", config.width, hidden, len(layers), mixer.heads, mixer.kv_heads, vocab, config.max_positions
    )

    def paired(value: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
        half = value.shape[0] // heads // 2
        order = [h * 2 * half + i + half * odd for h in range(heads) for i in range(half) for odd in (0, 1)]
        return value[order]

    parts = [a["embed.weight"]]
    for name in (
        "mixer_norm",
        "mixer.q",
        "mixer.k",
        "mixer.v",
        "mixer.o",
        "ffn_norm",
        "ffn.gate",
        "ffn.down",
        "ffn.up",
    ):
        for i in layers:
            value = a[f"blocks.{i}.{name}.weight"]
            heads = {"mixer.q": mixer.heads, "mixer.k": mixer.kv_heads}.get(name)
            parts.append(value if heads is None else paired(value, heads))
    parts.append(a["norm.weight"])
    parts.append(np.full(config.max_positions * mixer.head_dim, np.nan, np.float32))  # nobody reads these
    if not config.tie_embeddings:
        parts.append(a["head"])
    path.write_bytes(head + b"".join(np.ascontiguousarray(part).tobytes() for part in parts))

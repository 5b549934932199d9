"""Matrices as GPTQ, AWQ, bitsandbytes and compressed-tensors store them, packed by NumPy from their published layouts,
and what they mean in plain loops' terms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from microgpt.io import safetensors
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import save_decoder
from microgpt.tensors import numpy_dtype
from microgpt.tokenizers.char import CharTokenizer
from tests.format_tools import theirs
from tests.tiny_families import BASE

Tensors = dict[str, np.ndarray[Any, Any]]
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)  # fmt: skip


def bit_stream(values: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """(rows, n) -> int32 words (rows, n * bits / 32, rounded up): number i from bit i * bits of its row on."""
    single = np.unpackbits(values.astype(np.uint8)[:, :, None], axis=2, bitorder="little")[:, :, :bits]
    single = single.reshape(len(values), -1)
    single = np.pad(single, ((0, 0), (0, -single.shape[1] % 32)))
    return np.packbits(single, axis=1, bitorder="little").view(np.int32)


def word_fields(values: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """(rows, n) -> int32 words, 32 // bits numbers in each, as compressed-tensors packed before its version 0.15."""
    each = 32 // bits
    padded = np.pad(values.astype(np.uint32), ((0, 0), (0, -values.shape[1] % each))).reshape(len(values), -1, each)
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    return np.bitwise_or.reduce(padded << shifts, axis=2).view(np.int32)


def gptq(
    shape: tuple[int, int], bits: int, group: int, rng: np.random.Generator, version: str = "gptq",
    order: str = "", symmetric: bool = False, floats: str = "float16",
) -> tuple[Tensors, np.ndarray[Any, Any]]:  # fmt: skip
    """The tensors, and the matrix (N, K) that they mean. `order`: "" no g_idx, "plain", or "act" (act-order's)."""
    n, inner = shape
    groups = -(-inner // group)
    q = rng.integers(0, 1 << bits, (inner, n))
    zeros = np.full((groups, n), 1 << (bits - 1)) if symmetric else rng.integers(1, 1 << bits, (groups, n))
    scales = rng.uniform(0.01, 0.02, (groups, n)).astype(numpy_dtype(floats))
    places = np.arange(inner) // group
    if order == "act":
        places = places[rng.permutation(inner)]
    stored = {
        "qweight": np.ascontiguousarray(bit_stream(q.T, bits).T),
        "qzeros": bit_stream(zeros - (version == "gptq"), bits),
        "scales": scales,
    }
    if order:
        stored["g_idx"] = places.astype(np.int32)
    meaning = scales.astype(np.float32)[places] * (q - zeros[places]).astype(np.float32)
    return stored, np.ascontiguousarray(meaning.T)


def awq(shape: tuple[int, int], group: int, rng: np.random.Generator) -> tuple[Tensors, np.ndarray[Any, Any]]:
    """The tensors, and the matrix (N, K) that they mean."""
    n, inner = shape
    q, zeros = rng.integers(0, 16, (inner, n)), rng.integers(0, 16, (inner // group, n))
    scales = rng.uniform(0.01, 0.02, (inner // group, n)).astype(np.float16)

    def packed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        words = np.zeros((len(values), n // 8), np.uint32)
        for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * place)
        return words.view(np.int32)

    meaning = scales.astype(np.float32).repeat(group, 0) * (q - zeros.repeat(group, 0)).astype(np.float32)
    return {"qweight": packed(q), "qzeros": packed(zeros), "scales": scales}, np.ascontiguousarray(meaning.T)


def bitsandbytes(
    name: str, shape: tuple[int, int], block: int, double: bool, rng: np.random.Generator, dtype: str = "bfloat16"
) -> tuple[Tensors, np.ndarray[Any, Any]]:
    """The tensors of NAME, and the matrix that they mean."""
    count = shape[0] * shape[1]
    q = rng.integers(0, 16, count + count % 2).astype(np.uint8)
    blocks = -(-count // block)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": dtype, "shape": list(shape)}
    stored: Tensors = {name: ((q[::2] << 4) | q[1::2])[:, None], f"{name}.quant_map": NF4}
    if double:
        table = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        codes, spread = rng.integers(0, 256, blocks).astype(np.uint8), -(-blocks // 256)
        outer = rng.uniform(0.01, 0.02, spread).astype(np.float32)
        offset = float(np.float32(0.0301))
        absmax = table[codes] * outer[np.arange(blocks) // 256] + np.float32(offset)
        stored |= {f"{name}.absmax": codes, f"{name}.nested_absmax": outer, f"{name}.nested_quant_map": table}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    else:
        absmax = rng.uniform(0.01, 0.02, blocks).astype(np.float32)
        stored[f"{name}.absmax"] = absmax
    stored[f"{name}.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    meaning = NF4[q[:count]] * absmax[np.arange(count) // block]
    return stored, meaning.reshape(shape)


def compressed(
    shape: tuple[int, int], bits: int, group: int, rng: np.random.Generator, zeros: bool = False, dense: bool = True,
    floats: str = "bfloat16", order: bool = False,
) -> tuple[Tensors, np.ndarray[Any, Any]]:  # fmt: skip
    """The tensors of pack-quantized, and the matrix that they mean."""
    n, inner = shape
    groups = -(-inner // group)
    pack = bit_stream if dense else word_fields
    q = rng.integers(0, 1 << bits, shape)
    scales = rng.uniform(0.01, 0.02, (n, groups)).astype(numpy_dtype(floats))
    points = rng.integers(0, 1 << bits, (n, groups)) if zeros else np.full((n, groups), 1 << (bits - 1))
    places = np.arange(inner) // group
    stored: Tensors = {"weight_packed": pack(q, bits), "weight_scale": scales, "weight_shape": np.array(shape)}
    if order:
        places = places[rng.permutation(inner)]
        stored["weight_g_idx"] = places.astype(np.int32)
    if zeros:
        stored["weight_zero_point"] = np.ascontiguousarray(pack(points.T, bits).T)
    return stored, scales.astype(np.float32)[:, places] * (q - points[:, places]).astype(np.float32)


def int_quantized(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray[Any, Any]]:
    """The tensors of int-quantized with a scale a row, and the matrix that they mean."""
    q = rng.integers(-128, 128, shape).astype(np.int8)
    scales = rng.uniform(0.001, 0.002, (shape[0], 1)).astype(numpy_dtype("bfloat16"))
    return {"weight": q, "weight_scale": scales}, scales.astype(np.float32) * q.astype(np.float32)


# -- folders ---------------------------------------------------------------
def _gptq(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray[Any, Any]]:
    tensors, meaning = gptq(shape, 4, 32, rng, order="act")
    return {f"{name}.{part}": value for part, value in tensors.items()}, meaning


def _awq(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray[Any, Any]]:
    tensors, meaning = awq(shape, 32, rng)
    return {f"{name}.{part}": value for part, value in tensors.items()}, meaning


def _bnb(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray[Any, Any]]:
    return bitsandbytes(f"{name}.weight", shape, 64, True, rng)


def _compressed(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray[Any, Any]]:
    tensors, meaning = compressed(shape, 4, 32, rng)
    return {f"{name}.{part}": value for part, value in tensors.items()}, meaning


KINDS: dict[str, tuple[Callable[..., tuple[Tensors, np.ndarray[Any, Any]]], dict[str, Any]]] = {
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}),
    "awq": (_awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "bitsandbytes": (_bnb, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "compressed": (_compressed, {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
    }),
}  # fmt: skip


def folder_of(kind: str, folder: Path) -> Decoder:
    """A Llama whose layers' matrices are quantized, and the model that it means."""
    values = {**BASE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = Decoder(FAMILIES.get("llama").read(values), seed=1)
    folder.mkdir()
    save_decoder(model, folder)
    CharTokenizer("abcdefgh \n").save(folder)
    pack, settings = KINDS[kind]
    own = {rule.theirs: rule.parts()[0] for rule in FAMILIES.get("llama").rules(model.config)}  # type: ignore[misc]
    rng, arrays, stored = np.random.default_rng(3), model.arrays(), {}
    for name, value in theirs(model).items():
        if value.ndim < 2 or "proj" not in name:
            stored[name] = value
            continue
        tensors, meaning = pack(name.removesuffix(".weight"), value.shape, rng)
        stored |= tensors
        arrays[own[name]][...] = meaning
    (folder / "model.safetensors").unlink()
    safetensors.save(folder / "model.safetensors", stored)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return model

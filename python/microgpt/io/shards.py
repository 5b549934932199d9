"""The weights of a Hugging Face folder: one safetensors file, or several named by an index; those that MLX quantized
and gpt-oss's MXFP4 too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microgpt.errors import CheckpointError, ConfigError, FormatError
from microgpt.io import files, safetensors
from microgpt.io.ggml import MXFP4_VALUES
from microgpt.io.stored import Stored

INDEX = "model.safetensors.index.json"
MOST_INDEX = 64 << 20  # bytes
MOST_SHARDS = 10_000
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HOW = "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('IN').save_pretrained('OUT')\""


def open_folder(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model folder, not yet read.

    Raises CheckpointError when there are no safetensors (with the way to convert what is there instead), FormatError
    for a broken file, index or shard name.
    """
    single = folder / "model.safetensors"
    if single.exists():
        return safetensors.open_weights(single)
    if (folder / INDEX).exists():
        return _sharded(folder)
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
    hint = ""
    if pickles:
        hint = (f"; {pickles[0]} is a pickle, which is never opened, being a program: convert it where you trust "
                f"it, {HOW}")  # fmt: skip
    raise CheckpointError(f"{folder}: no model.safetensors{hint}")


def _sharded(folder: Path) -> dict[str, Stored]:
    path = folder / INDEX
    try:
        index = json.loads(files.read_bytes(path, MOST_INDEX, follow=True))
        places = index["weight_map"]
    except OSError as error:
        raise FormatError(f"{path}: cannot read: {error.strerror or error}") from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: expected a JSON object with 'weight_map' ({error})") from error
    if not isinstance(places, dict) or not places or not all(isinstance(each, str) for each in places.values()):
        raise FormatError(f"{path}: weight_map expected an object of file names")
    names = sorted(set(places.values()))
    if len(names) > MOST_SHARDS:
        raise FormatError(f"{path}: expected at most {MOST_SHARDS} files, got {len(names)}")
    shards = {}
    for name in names:
        # A name from a file opens nothing outside the folder.
        if name in ("", ".", "..") or len(name) > 255 or any(bad in name for bad in ("/", "\\", ":", "\0")):
            raise FormatError(f"{path}: {name[:80]!r} is not the plain name of a file in the folder")
        if not (folder / name).exists():
            raise CheckpointError(f"{folder}: {name} is missing, though {INDEX} names it")
        shards[name] = safetensors.open_weights(folder / name)
    found = {}
    for name, shard in shards.items():
        for tensor, stored in shard.items():
            if places.get(tensor) != name:
                raise FormatError(f"{path}: tensor {tensor!r} of {name} stands in {places.get(tensor)!r}")
            found[tensor] = stored
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise FormatError(f"{path}: tensors in none of the files: {', '.join(missing[:8])}")
    return dict(sorted(found.items()))


# --- MLX --------------------------------------------------------------------------------------------------------------


def dequantized(weights: Mapping[str, Stored], config: Mapping[str, Any], where: str) -> dict[str, Stored]:
    """The weights with MLX's affine triples (NAME.weight, NAME.scales, NAME.biases) and the pairs of MXFP4
    (NAME_blocks, NAME_scales) as one float32 tensor each.

    `config` is the folder's config.json, whose `quantization` has group_size and bits, for all or for a NAME.
    Raises ConfigError for another mode or impossible numbers, FormatError for parts that do not fit each other.
    """
    weights = _with_mxfp4(weights, where)
    settings = config.get("quantization", config.get("quantization_config"))
    names = [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]
    if not names:
        return dict(weights)
    if not isinstance(settings, dict):
        raise ConfigError(f"{where}: the weights are quantized, but config.json has no 'quantization'")
    result = dict(weights)
    for name in names:
        own = settings.get(name)
        bits, group = _setting(own if isinstance(own, dict) else settings, f"{where}: quantization")
        parts = [result.pop(f"{name}.{part}", None) for part in ("weight", "scales", "biases")]
        packed, scales, biases = parts
        if packed is None or scales is None or biases is None:
            raise FormatError(f"{where}: {name} expected weight, scales and biases")
        if packed.dtype != "uint32" or len(packed.shape) != 2 or scales.shape != biases.shape or not packed.shape[1]:
            raise FormatError(f"{where}: {name}: weight {packed.dtype} {packed.shape}, scales {scales.shape}, biases "
                              f"{biases.shape} do not make a quantized matrix")  # fmt: skip
        rows, words = packed.shape
        columns = words * 32 // bits
        if columns * bits != words * 32 or columns % group or scales.shape != (rows, columns // group):
            raise FormatError(f"{where}: {name}: {words} words of {bits} bits a row do not fit {scales.shape} scales "
                              f"of {group} numbers each")  # fmt: skip
        result[f"{name}.weight"] = _affine(packed, scales, biases, bits, group)
    return result


def _setting(values: Mapping[str, Any], where: str) -> tuple[int, int]:
    mode = values.get("mode", "affine")
    if mode != "affine":
        raise ConfigError(f"{where}: mode expected 'affine', got {str(mode)[:40]!r}")
    bits, group = values.get("bits"), values.get("group_size")
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ConfigError(f"{where}: bits expected 2 to 8, got {str(bits)[:40]!r}")
    if type(group) is not int or not 1 <= group <= 1 << 16:
        raise ConfigError(f"{where}: group_size expected 1 to 65536, got {str(group)[:40]!r}")
    return bits, group


def _affine(packed: Stored, scales: Stored, biases: Stored, bits: int, group: int) -> Stored:
    """w = scale * q + bias, the q of a row being a stream of bits from the lowest bit of its first word on."""
    rows, columns = packed.shape[0], packed.shape[1] * 32 // bits

    def array() -> npt.NDArray[np.float32]:
        words = packed.array()
        scale, bias = (each.array().astype(np.float32)[:, :, None] for each in (scales, biases))
        out = np.empty((rows, columns // group, group), np.float32)
        step = max(1, (1 << 16) // columns)
        for start in range(0, rows, step):
            part = words[start : start + step]
            if 32 % bits == 0:
                q = (part[:, :, None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32((1 << bits) - 1)
            else:
                single = np.unpackbits(part.view(np.uint8), axis=1, bitorder="little").reshape(len(part), -1, bits)
                q = single @ (1 << np.arange(bits, dtype=np.uint16))
            values = q.reshape(len(part), -1, group).astype(np.float32)
            out[start : start + step] = scale[start : start + step] * values + bias[start : start + step]
        return out.reshape(rows, columns)

    return Stored((rows, columns), "float32", array)


# --- MXFP4 ------------------------------------------------------------------------------------------------------------


def _with_mxfp4(weights: Mapping[str, Stored], where: str) -> Mapping[str, Stored]:
    names = [name.removesuffix("_blocks") for name in weights if name.endswith("_blocks")]
    if not names:
        return weights
    result = dict(weights)
    for name in names:
        blocks, scales = result.pop(f"{name}_blocks"), result.pop(f"{name}_scales", None)
        if scales is None:
            raise FormatError(f"{where}: {name} expected blocks and scales")
        shape = blocks.shape
        whole = len(shape) == 4 and shape[3] == 16 and scales.shape == shape[:3]
        if blocks.dtype != "uint8" or scales.dtype != "uint8" or not whole:
            raise FormatError(f"{where}: {name}: expected blocks (experts, out, groups, 16) and scales (experts, out, "
                              f"groups), uint8, got {blocks.dtype} {shape}, {scales.dtype} {scales.shape}")  # fmt: skip
        result[name] = _mxfp4(blocks, scales)
    return result


def _mxfp4(blocks: Stored, scales: Stored) -> Stored:
    """Groups of 32 numbers 2^(scale - 127) * E2M1, two in a byte, the lower half first (OCP Microscaling, 2023). Stored
    are matrices (experts, out, in); the name stands for (experts, in, out)."""
    experts, rows, groups, _ = blocks.shape

    def array() -> npt.NDArray[np.float32]:
        raw, exponents = blocks.array(), scales.array()
        out = np.empty((experts, rows, groups, 16, 2), np.float32)
        for e in range(experts):
            scale = np.ldexp(np.float32(0.5), exponents[e].astype(np.int32) - 127)[:, :, None]  # the table is doubled
            out[e, ..., 0] = MXFP4_VALUES[raw[e] & 15] * scale
            out[e, ..., 1] = MXFP4_VALUES[raw[e] >> 4] * scale
        return out.reshape(experts, rows, groups * 32).swapaxes(1, 2)

    return Stored((experts, groups * 32, rows), "float32", array)

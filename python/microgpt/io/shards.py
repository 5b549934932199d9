"""The weights of a Hugging Face folder: one safetensors file, or several named by an index."""

from __future__ import annotations

import json
from pathlib import Path

from microgpt.errors import CheckpointError, FormatError
from microgpt.io import files, safetensors
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

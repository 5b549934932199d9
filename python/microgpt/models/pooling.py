"""How a model makes one vector of a text: what the files of sentence-transformers beside the weights say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, FormatError, nearest
from .pretrained import read_json, read_list, write_json

MODULES, LENGTHS, FOLDER = "modules.json", "sentence_bert_config.json", "1_Pooling"
# kind -> its key in the config.json of older versions; newer ones have pooling_mode with the name itself
KINDS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
}
GGUF_TYPES = {"mean": 1, "cls": 2, "lasttoken": 3}  # numbers of ARCH.pooling_type
_OWN = "microgpt.pooling."  # and what GGUF has no key for
_TYPE = "sentence_transformers.models."


@dataclass(frozen=True)
class Pooling:
    """`kind` mean, cls (the first token), lasttoken or max, over all tokens that the model saw, those put around the
    text included; `normalize`: to length 1. A text has at most `max_tokens` (None: the model's context).

    `lower_case`: text is lowered first. `others`: what the files ask for besides and this does not have.
    """

    kind: str = "mean"
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"pooling {self.kind!r}: expected one of {', '.join(KINDS)}{nearest(self.kind, KINDS)}")

    def __call__(self, hidden: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(T, D) of one text, T at least 1 -> (D)."""
        if self.kind == "mean":
            vector = hidden.mean(0, dtype=np.float64)
        elif self.kind == "max":
            vector = hidden.max(0).astype(np.float64)
        else:
            vector = hidden[0 if self.kind == "cls" else -1].astype(np.float64)
        if self.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return vector.astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the files that read_pooling reads into an existing folder. Raises ConfigError, StorageError."""
        if self.others:
            raise ConfigError(f"a model with {', '.join(self.others)} after its encoder cannot be saved whole")
        kinds = {"Transformer": "", "Pooling": FOLDER, **({"Normalize": "2_Normalize"} if self.normalize else {})}
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": _TYPE + kind}
            for i, (kind, path) in enumerate(kinds.items())
        ]
        write_json(folder / MODULES, modules)
        (folder / FOLDER).mkdir(exist_ok=True)
        write_json(folder / FOLDER / "config.json", {key: kind == self.kind for kind, key in KINDS.items()})
        write_json(folder / LENGTHS, {"max_seq_length": self.max_tokens, "do_lower_case": self.lower_case})

    def metadata(self, arch: str) -> dict[str, Any]:
        """Keys of a GGUF file of architecture `arch` (llama.cpp's programs choose themselves whether to normalize).

        Raises ConfigError for what llama.cpp has no form for.
        """
        if self.kind not in GGUF_TYPES or self.others:
            what = ", ".join(self.others or [f"pooling {self.kind}"])
            raise ConfigError(f"GGUF has no form for a model with {what} after its encoder")
        own = {"normalize": self.normalize, "max_tokens": self.max_tokens, "lower_case": self.lower_case}
        made = {f"{_OWN}{key}": value for key, value in own.items() if value}
        return {f"{arch}.pooling_type": GGUF_TYPES[self.kind], **made}


def pooling_of(metadata: Mapping[str, Any], where: str) -> Pooling | None:
    """What the metadata of a GGUF file says of pooling; None without a type. Raises FormatError."""
    number = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    names = {number: kind for kind, number in GGUF_TYPES.items()}
    if type(number) is not int or not 0 <= number <= len(names):
        raise FormatError(f"{where}: pooling_type: expected 0 to {len(names)}, got {number!r}")
    longest = metadata.get(f"{_OWN}max_tokens")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise FormatError(f"{where}: {_OWN}max_tokens: expected a number of tokens, got {longest!r}")
    flags = [metadata.get(f"{_OWN}{key}") is True for key in ("normalize", "lower_case")]
    return Pooling(names[number], flags[0], longest, flags[1]) if number else None


def read_pooling(folder: Path) -> Pooling | None:
    """What a folder says of pooling; None without modules.json. Raises FormatError for broken files."""
    path = folder / MODULES
    if not path.exists():
        return None
    kind, normalize, others = "", False, []
    for module in read_list(path):
        name, place = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(name, str) or not isinstance(place, str) or len(PurePath(place).parts) > 1 or ".." in place:
            raise FormatError(f"{path}: expected modules, each with a type and the name of a folder, got {module!r}")
        last = name.rpartition(".")[2]
        if last == "Pooling" and not kind:
            kind, more = _kind(folder / place / "config.json")
            others += more
        elif last == "Normalize":
            normalize = True
        elif last != "Transformer" or place:
            others.append(f"module {last}")
    lengths = read_json(folder / LENGTHS) if (folder / LENGTHS).exists() else {}
    longest = lengths.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise FormatError(f"{folder / LENGTHS}: max_seq_length: expected a number of tokens, got {longest!r}")
    lower = lengths.get("do_lower_case") is True
    return Pooling(kind or "mean", normalize, longest, lower, tuple(others if kind else [*others, "no pooling"]))


def _kind(path: Path) -> tuple[str, list[str]]:
    """The kind in a config.json of a Pooling module, and what is unknown in it."""
    values = read_json(path)
    stated = values.get("pooling_mode")
    if isinstance(stated, str):
        asked = [stated]
    else:
        names = {key: kind for kind, key in KINDS.items()}
        asked = [names.get(key, key) for key, on in values.items() if key.startswith("pooling_mode_") and on is True]
    unknown = [each for each in asked if each not in KINDS]
    known = [each for each in asked if each in KINDS] or ["mean"]
    more = [f"pooling {each}" for each in (*unknown, *known[1:])]
    return known[0], more if asked else ["no pooling"]

"""RWKV-7 from the files of its authors (.pth of torch.save) to a model in our own layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from ..io.torch_zip import read_torch
from ..nn.ffn.rwkv7 import Rwkv7FfnSpec
from ..nn.mixers.rwkv7 import Rwkv7Spec
from ..nn.spec import BlockSpec, NormSpec
from .config import ModelConfig
from .decoder import Decoder

Arrays = dict[str, npt.NDArray[Any]]
# Names in a block of theirs -> of ours.
MIXER = {"receptance.weight": "r.weight", "key.weight": "k.weight", "value.weight": "v.weight",
         "output.weight": "o.weight", "output.bias": "o.bias", "ln_x.weight": "norm_weight",
         "ln_x.bias": "norm_bias"}  # fmt: skip
FFN = {"x_k": "x_k", "key.weight": "up.weight", "value.weight": "down.weight"}
POSITIONS = 2**20  # it has none: a limit of ours
# The tiny models of the authors' experiments have names of their own, "rwkv1.x_r", "ln1a.weight", "ffn1.key.weight".
EXPERIMENT = [
    (r"e\.weight", "emb.weight"), (r"lno\.(.*)", r"ln_out.\1"), (r"o\.(weight|bias)", r"head.\1"),
    (r"ln(\d+)a\.(.*)", r"blocks.#\1.ln1.\2"), (r"ln(\d+)b\.(.*)", r"blocks.#\1.ln2.\2"),
    (r"rwkv(\d+)\.(.*)", r"blocks.#\1.att.\2"), (r"ffn(\d+)\.(.*)", r"blocks.#\1.ffn.\2"),
    (r"rosa(\d+)\.(.*)", r"blocks.#\1.rosa.\2"), (r"ln(\d+)c\.(.*)", r"blocks.#\1.ln3.\2"),
]  # fmt: skip


def load_rwkv7(path: str | Path, dtype: str = "float32") -> Decoder:
    """The decoder in a file of RWKV-7's authors. Raises CheckpointError for files of another kind."""
    config, arrays = read_rwkv7(read_torch(path), str(path))
    model = Decoder(config, dtype, seed=None)
    model.load_arrays(arrays)
    return model


def read_rwkv7(found: Arrays, where: str) -> tuple[ModelConfig, Arrays]:
    """Configuration and parameters in our layout, of theirs."""
    if "e.weight" in found:
        found = _usual_names(found, where)
    try:
        return _read(found, where)
    except KeyError as error:
        raise CheckpointError(f"{where}: not an RWKV-7 model: missing {error}") from None


def _read(found: Arrays, where: str) -> tuple[ModelConfig, Arrays]:
    vocab, width = found["emb.weight"].shape
    numbers = [int(name.split(".")[1]) for name in found if re.fullmatch(r"blocks\.\d{1,4}\..*", name)]
    layers = max(numbers, default=-1) + 1
    if not layers:
        raise CheckpointError(f"{where}: not an RWKV-7 model: no blocks")
    norm = NormSpec("layer")
    arrays: Arrays = {"embed.weight": found["emb.weight"], "head": found["head.weight"]}
    arrays |= {f"norm.{kind}": found[f"ln_out.{kind}"] for kind in ("weight", "bias")}
    if "head.bias" in found:
        arrays["head_bias"] = found["head.bias"]
    embed_norm = norm if "blocks.0.ln0.weight" in found else None
    if embed_norm is not None:
        arrays |= {f"embed_norm.{kind}": found[f"blocks.0.ln0.{kind}"] for kind in ("weight", "bias")}
    blocks = []
    for i in range(layers):
        theirs, ours = f"blocks.{i}.", f"blocks.{i}."
        for a, b in (("mixer_norm", "ln1"), ("ffn_norm", "ln2")):
            arrays |= {f"{ours}{a}.{kind}": found[f"{theirs}{b}.{kind}"] for kind in ("weight", "bias")}
        att = {name[len(theirs) + 4 :]: each for name, each in found.items() if name.startswith(f"{theirs}att.")}
        blocks.append(_block(i, att, found[f"{theirs}ffn.key.weight"].shape[0], width, norm))
        for name, each in att.items():
            if i == 0 and name in ("v0", "v1", "v2"):  # the first layer's v is mixed with no other
                continue
            if name in MIXER:
                arrays[f"{ours}mixer.{MIXER[name]}"] = each
            elif re.fullmatch(r"[wavg][12]", name):
                arrays[f"{ours}mixer.{name}.weight"] = np.ascontiguousarray(each.T)
            else:
                arrays[f"{ours}mixer.{name}"] = each if name == "r_k" else each.reshape(-1)
        for name, to in FFN.items():
            each = found[f"{theirs}ffn.{name}"]
            arrays[f"{ours}ffn.{to}"] = each.reshape(-1) if name == "x_k" else each
    config = ModelConfig(
        vocab, width, POSITIONS, tuple(blocks), learned_positions=False, tie_embeddings=False, final_norm=norm,
        embed_norm=embed_norm, head_bias="head.bias" in found,
    )  # fmt: skip
    return config, arrays


def _block(i: int, att: Arrays, hidden: int, width: int, norm: NormSpec) -> BlockSpec:
    heads, head_dim = att["r_k"].shape
    ranks = {name: att[f"{name}1"].shape[1] for name in "wag"}
    value = 1 if i == 0 else att["v1"].shape[1]
    mixer = Rwkv7Spec(heads, head_dim, ranks["w"], ranks["a"], value, ranks["g"], i == 0, "output.bias" in att)
    return BlockSpec(mixer, Rwkv7FfnSpec(hidden, width), norm)


def _usual_names(found: Arrays, where: str) -> Arrays:
    """An experiment's names -> the usual ones. Its other kind of layer must be off: what it adds is then a constant."""
    made: Arrays = {}
    for name, each in found.items():
        for pattern, to in EXPERIMENT:
            match = re.fullmatch(pattern, name)
            if match:
                usual = match.expand(to)
                number = re.search(r"#(\d+)", usual)
                made[usual if number is None else usual.replace(number[0], str(int(number[1]) - 1))] = each
    for name in [name for name in made if ".rosa." in name or ".ln3." in name]:
        each = made.pop(name)
        if name.endswith(".rosa_qkv.emb") and np.any(each):
            raise CheckpointError(f"{where}: {name} is not zero: layers of ROSA are not supported")
        if name.endswith(".rosa.o.bias"):
            made[name.replace("rosa.o.bias", "att.output.bias")] = each
    return made

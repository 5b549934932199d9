"""transformers on the tiny families; `python -m tests.parity.tiny [NAME ...]` writes the golden logits, of
all or of these alone."""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from tests.tiny_families import ENCODERS, TINY, rows, weight

logging.set_verbosity_error()
torch.set_num_threads(1)


def make(name: str) -> Any:
    """The model with its weights drawn from their names."""
    kind, settings = {**TINY, **ENCODERS}[name]
    config = AutoConfig.for_model(kind, **settings)
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    if kind == "apertus":
        config.dtype = torch.float32  # or its activation's numbers are bfloat16
    auto = AutoModel if name in ENCODERS else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation=attention(kind)).float().eval()
    if has_experts(model):
        with tempfile.TemporaryDirectory() as folder:
            drawn = {each: weight(each, value.shape) for each, value in on_disk(model, folder).items()}
            save_file(drawn, Path(folder) / "model.safetensors", {"format": "pt"})
            eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
            return auto.from_pretrained(folder, dtype=torch.float32, **eager).eval()
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(stored(model, each), tuple(parameter.shape))))
    return model


def has_experts(model: Any) -> bool:
    """Whether parameters have other names and shapes in memory than in files."""
    return any(".experts." in name for name, _ in model.named_parameters())


def on_disk(model: Any, folder: str) -> dict[str, np.ndarray[Any, Any]]:
    """What save_pretrained makes of the model, by name."""
    model.save_pretrained(folder)
    return load_file(Path(folder) / "model.safetensors")


def attention(kind: str) -> str:
    """The implementation to compare with: Falcon's eager one adds its ALiBi twice."""
    return "sdpa" if kind == "falcon" else "eager"


def weights(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Parameters by name."""
    if has_experts(model):
        with tempfile.TemporaryDirectory() as folder:
            return on_disk(model, folder)
    return {stored(model, name): p.detach().numpy().copy() for name, p in model.named_parameters()}


def stored(model: Any, name: str) -> str:
    """What save_pretrained calls a parameter."""
    kind = model.config.model_type
    if kind == "nemotron_h" and name.startswith("model."):
        return name.replace("model.", "backbone.", 1)
    return "embed_out.weight" if name == "lm_head.weight" and kind == "gpt_neox" else name


def logits(model: Any) -> np.ndarray[Any, Any]:
    """(tokens, vocabulary) of the sequences one after another."""
    with torch.no_grad():
        made = [model(torch.from_numpy(row.astype(np.int64))[None]).logits[0].numpy() for row in rows()]
    return np.concatenate(made)


def hidden(model: Any) -> Any:
    """(tokens, width) of an encoder, with its tape."""
    return torch.cat([model(torch.from_numpy(row.astype(np.int64))[None]).last_hidden_state[0] for row in rows()])


def targets() -> np.ndarray[Any, Any]:
    """The next token of each, none at the end of a sequence."""
    return np.concatenate([np.append(row[1:], -1) for row in rows()]).astype(np.int32)


def gradients(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Of the mean loss."""
    parts = [model(torch.from_numpy(row.astype(np.int64))[None]).logits[0] for row in rows()]
    goal = torch.from_numpy(targets().astype(np.int64))
    torch.nn.functional.cross_entropy(torch.cat(parts), goal, ignore_index=-1).backward()
    if has_experts(model):  # in the layout of files
        other = copy.deepcopy(model)
        with torch.no_grad():
            for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
                mine.copy_(theirs.grad)
        buffers = {stored(model, each) for each, _ in model.named_buffers()}
        return {each: gradient for each, gradient in weights(other).items() if each not in buffers}
    return {stored(model, name): p.grad.numpy().copy() for name, p in model.named_parameters()}


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "golden" / "families.npz"
    names = sys.argv[1:] or [*TINY, *ENCODERS]
    made: dict[str, Any] = dict(np.load(path)) if sys.argv[1:] else {}
    made |= {name: logits(make(name)) for name in names if name in TINY}
    made |= {name: hidden(make(name)).detach().numpy() for name in names if name in ENCODERS}
    np.savez_compressed(path, **made)

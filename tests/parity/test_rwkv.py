"""RWKV-7 beside its authors' package, on random weights, and on the weights of an experiment of theirs."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import microgpt
from microgpt import _kernels as k
from microgpt.autograd import no_grad
from microgpt.models.decoder import Decoder
from microgpt.models.rwkv import load_rwkv7
from microgpt.nn import Ctx, Layout
from microgpt.state.contiguous import ContiguousStates
from tests.cli_tools import run
from tests.parity.test_llamacpp import CHILD, IDS
from tests.parity.test_real_weights import data

HEADS, HEAD_DIM, VOCAB, LAYERS = 2, 16, 40, 3
WIDTH = HEADS * HEAD_DIM


def weights(heads: int = HEADS, head_dim: int = HEAD_DIM, vocab: int = VOCAB) -> dict[str, Any]:
    """A model's file, as the package reads it: vectors are (1, 1, width), low-rank matrices (in, out)."""
    torch.manual_seed(3)
    width = heads * head_dim
    small = 0.3 * (WIDTH / width) ** 0.5  # sums stay of one size

    def spread(*shape: int, size: float = small, middle: float = 0.0) -> Any:
        return torch.randn(*shape) * size + middle

    made = {"emb.weight": spread(vocab, width), "head.weight": spread(vocab, width)}
    made |= {"ln_out.weight": spread(width, middle=1.0), "ln_out.bias": spread(width)}
    for i in range(LAYERS):
        block = f"blocks.{i}."
        for norm in (["ln0"] if i == 0 else []) + ["ln1", "ln2"]:
            made |= {f"{block}{norm}.weight": spread(width, middle=1.0), f"{block}{norm}.bias": spread(width)}
        att = block + "att."
        vectors = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a"]
        made |= {att + name: spread(1, 1, width, middle=0.5) for name in vectors}
        made[att + "r_k"] = spread(heads, head_dim)
        for name, rank in (("w", 5), ("a", 6), ("v", 7), ("g", 8)):
            made |= {f"{att}{name}1": spread(width, rank), f"{att}{name}2": spread(rank, width)}
        made |= {f"{att}{name}.weight": spread(width, width) for name in ("receptance", "key", "value", "output")}
        made |= {att + "ln_x.weight": spread(width, middle=1.0), att + "ln_x.bias": spread(width)}
        made |= {block + "ffn.x_k": spread(1, 1, width, middle=0.5), block + "ffn.key.weight": spread(4 * width, width),
                 block + "ffn.value.weight": spread(width, 4 * width)}  # fmt: skip
    return made


def logits(model: Decoder, ids: list[int], states: ContiguousStates | None = None) -> npt.NDArray[np.float32]:
    with no_grad():
        if states is None:
            layout = Layout.packed([len(ids)])
        else:
            states.begin([len(ids)])
            layout = Layout.cached([len(ids)], states.lengths, states.rows)
        hidden = model.hidden(k.from_numpy(np.array(ids, np.int32)), Ctx(layout, states=states))
        got: npt.NDArray[np.float32] = model.logits(hidden).numpy().copy()
    if states is not None:
        states.commit()
    return got


def reference(monkeypatch: pytest.MonkeyPatch, path: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    """Logits of the package for a file."""
    for name, value in (("RWKV_V7_ON", "1"), ("RWKV_JIT_ON", "0"), ("RWKV_CUDA_ON", "0")):
        monkeypatch.setitem(os.environ, name, value)
    package = importlib.import_module("rwkv.model")  # it looks at the environment
    theirs = package.RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    found: npt.NDArray[np.float32] = theirs.forward(ids, None, full_output=True)[0].numpy()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it is compiled by torch.jit
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    """A forward, and one in pieces, beside the package's; it computes bfloat16 files in float32 here, as we do."""
    torch.save({name: each.to(dtype) for name, each in weights().items()}, tmp_path / "model.pth")
    ids = np.random.default_rng(1).integers(0, VOCAB, 70).tolist()
    want = reference(monkeypatch, tmp_path / "model.pth", ids)
    model = load_rwkv7(tmp_path / "model.pth")
    got = logits(model, ids)
    assert np.abs(want).max() > 1.0
    assert np.abs(got - want).max() <= 1e-4
    states = ContiguousStates(model.state_specs(), 1, len(ids))
    pieces = np.concatenate([logits(model, ids[at : at + 9], states) for at in range(0, len(ids), 9)])
    assert np.array_equal(pieces, got)


def test_the_authors_experiment_reverses_numbers() -> None:
    """Two layers of width 32 that were trained to continue "123," by "321": all digits, for numbers of 1 to 60."""
    model = load_rwkv7(data("models/rwkv7_reverse/260123_reverse_L2_only_rwkv7.pth"))
    letters = "0123456789,#"
    draw = random.Random(7)
    for digits in range(1, 61):
        number = str(draw.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))
        ids = [letters.index(each) for each in f"{number},{number[::-1]}"]
        found = logits(model, ids[:-1]).argmax(1)[digits:]
        assert "".join(letters[each] for each in found) == number[::-1]


def test_a_file_is_converted_to_a_folder(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "model.pth")
    done = run("convert", str(tmp_path / "model.pth"), str(tmp_path / "folder"))
    assert done.exit_code == 0, done.stderr
    ids = [3, 1, 4, 1, 5]
    want = logits(load_rwkv7(tmp_path / "model.pth"), ids)
    assert np.array_equal(microgpt.load(tmp_path / "folder").logits(ids), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_llama_cpp_computes_what_the_package_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their file, made a GGUF file by `microgpt convert`."""
    torch.save(weights(2, 64, 512), tmp_path / "model.pth")
    gguf = tmp_path / "model.gguf"
    done = run("convert", str(tmp_path / "model.pth"), str(gguf), "--type", "f32")
    assert done.exit_code == 0, done.stderr
    np.save(tmp_path / "ids.npy", IDS)
    subprocess.run([sys.executable, "-c", CHILD, "decoder", tmp_path / "ids.npy", gguf], check=True, timeout=120)
    want = reference(monkeypatch, tmp_path / "model.pth", IDS)
    assert np.abs(want).max() > 1.0
    for found in (np.load(f"{gguf}.npy"), microgpt.load(gguf).logits(IDS)):
        assert np.abs(found - want).max() <= 1e-4

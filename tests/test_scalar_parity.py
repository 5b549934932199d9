"""The tensors compute what scalar.py computes: one loss curve, three implementations, in float64."""

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import scalar
from microgpt.models.decoder import Decoder
from microgpt.models.presets import MODELS
from microgpt.nn import Ctx, Layout
from microgpt.optim import AdamW, Group, Optimizer

compiled = pytest.importorskip("microgpt._scalar", reason="the Cython build of scalar.py is missing")

STEPS = 100
DOCS = scalar.load_docs()
# Scalar names of a layer's matrices, and the tensors' names of the same: rows are outputs in both.
NAMES = {
    "attn_wq": "mixer.q.weight",
    "attn_wk": "mixer.k.weight",
    "attn_wv": "mixer.v.weight",
    "attn_wo": "mixer.o.weight",
    "mlp_fc1": "ffn.up.weight",
    "mlp_fc2": "ffn.down.weight",
}


def tensor_losses(docs: list[str], start: scalar.GPT, lr: float = 0.01) -> list[float]:
    """The losses of Decoder and Optimizer from the weights of `start`, one document a step."""
    config = MODELS.get("micro")(start.end + 1, start.width, start.layers, start.heads, start.block_size, 0.0)
    model = Decoder(config, dtype="float64")
    names = {"wte": "embed.weight", "wpe": "positions.weight", "lm_head": "head"}
    for i in range(start.layers):
        names |= {f"layer{i}.{theirs}": f"blocks.{i}.{ours}" for theirs, ours in NAMES.items()}
    parameters = dict(model.named_parameters())
    assert sorted(names.values()) == sorted(parameters)
    for name, rows in start.weights.items():
        parameters[names[name]].data.copy_from(np.array([[p.data for p in row] for row in rows]))
    optimizer = Optimizer(model, AdamW(0.85, 0.99, 1e-8), [Group("*", weight_decay=0.0)], max_norm=0.0)
    losses = []
    for step, doc in enumerate(docs):
        ids = np.array([start.end, *map(start.chars.index, doc), start.end][: start.block_size + 1], np.int32)
        ctx = Ctx(Layout.packed([len(ids) - 1]))
        loss = model.loss(k.from_numpy(ids[:-1]), k.from_numpy(ids[1:]), ctx)
        optimizer.feed(step + 1, lr * (1.0 - step / len(docs)))
        loss.backward()
        optimizer.launch(loss)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("size", [{}, {"layers": 2, "width": 8, "heads": 2, "block_size": 6}], ids=["default", "deep"])
def test_tensors_follow_the_scalar_loss_curve(size: dict[str, int]) -> None:
    order, start = scalar.prepare(DOCS, seed=42, **size)
    _, interpreted = scalar.train(DOCS, STEPS, seed=42, **size)
    _, fast = compiled.train(DOCS, STEPS, seed=42, **size)
    assert fast == interpreted
    tensors = tensor_losses(order[:STEPS], start)
    # Same formulas, another order of summation: gradients differ by about 1e-16, and where Adam divides by little more
    # than its eps that moves a weight by at most lr * 1e-16 / eps = 1e-10. An eps of 2e-8 is seen at 1.4e-5.
    worst = max(abs(a - b) for a, b in zip(tensors, interpreted, strict=True))
    print(f"largest difference of {STEPS} losses: {worst:.1e}")
    assert worst <= 1e-10

"""What balances experts, and MXFP4, beside transformers, live."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from microgpt import _kernels as k
from microgpt.io.names import from_file
from microgpt.io.packed import opened
from microgpt.io.stored import Stored
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.nn import Ctx, Layout
from tests.parity import tiny


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss"])
def test_the_loss_of_balance(name: str):
    """Its value, and the gradient of a router through it and the language model's loss."""
    model = tiny.make(name)
    ids = torch.arange(3, 25)[None]
    out = model(ids, labels=ids, output_router_logits=True)
    out.loss.backward()
    family = FAMILIES.get(model.config.model_type)
    config = family.read(model.config.to_dict())
    ours = Decoder(config)
    ours.load_arrays(from_file(family.rules(config), tiny.weights(model), "reference", family.optional(config)))
    ctx = Ctx(Layout.packed([22]))
    targets = np.append(np.arange(4, 25), -1).astype(np.int32)
    loss = ours.loss(k.from_numpy(np.arange(3, 25, dtype=np.int32)), k.from_numpy(targets), ctx)
    aux = ctx.aux_loss()
    assert aux is not None
    moes = [block.ffn for block in ours.blocks if block.ffn.spec.kind == "moe"]
    coefficient = moes[0].spec.balance_loss
    assert coefficient == model.config.router_aux_loss_coef > 0
    assert abs(aux.item() - coefficient * out.aux_loss.item()) <= 1e-6 * coefficient * out.aux_loss.item() + 1e-9
    (loss + aux).backward()
    theirs = [p.grad.numpy() for n, p in model.named_parameters() if n.endswith(("gate.weight", "router.weight"))
              and p.shape[0] == moes[0].spec.experts]  # fmt: skip
    assert len(theirs) == len(moes)
    for mine, wanted in zip(moes, theirs, strict=True):
        assert np.linalg.norm(mine.router.weight.grad - wanted) <= 1e-4 * np.linalg.norm(wanted)


def test_mxfp4():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 7, 4, 16), dtype=np.uint8)
    scales = rng.integers(1, 250, (3, 7, 4), dtype=np.uint8)
    want = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32).numpy()
    stored = {name: Stored(each.shape, "uint8", lambda each=each: each)
              for name, each in (("w_blocks", blocks), ("w_scales", scales))}  # fmt: skip
    got = opened(stored, {}, "here")["w"]
    assert got.shape == want.shape and np.array_equal(got.array(), want)

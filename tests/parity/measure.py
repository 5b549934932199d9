"""How far a family is from transformers on its tiny model: what the tests bound and tools/family_table.py tabulates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microgpt import _kernels as k
from microgpt.autograd import no_grad
from microgpt.io.names import Rule, from_file, to_file
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pretrained import load_decoder, save_decoder
from microgpt.nn import Ctx, Layout
from microgpt.state.contiguous import ContiguousStates
from tests.parity import tiny
from tests.tiny_families import ENCODERS, LENGTHS, rows


class Errors(NamedTuple):
    """Largest absolute error of logits, relative error of each gradient."""

    logits: float
    gradients: dict[str, float]
    parameters: int
    incremental: float
    pieces: float  # what `incremental` may be, by the layers' own specs: 0 where all keep their bits


def _ours(model: Any) -> tuple[Decoder, tuple[Rule, ...]]:
    """The reference's weights in our model, and the rules of their names."""
    family = FAMILIES.get(model.config.model_type)
    config = family.read(model.config.to_dict())
    assert family.rules is not None
    rules = family.rules(config)
    ours = Decoder(config)
    ours.load_arrays(from_file(rules, tiny.weights(model), "reference", family.optional(config)))
    return ours, rules


def errors(name: str) -> Errors:
    """Packed unequal sequences, their mean loss' gradients, and the same tokens in pieces of 1, 3 and 7."""
    model = tiny.make(name)
    want, wanted = tiny.logits(model), tiny.gradients(model)
    ours, rules = _ours(model)
    config = ours.config
    tokens, layout = k.from_numpy(np.concatenate(rows())), Layout.packed(LENGTHS)
    got = ours.logits(ours.hidden(tokens, Ctx(layout))).numpy().copy()
    assert np.abs(got).max() > 0.1
    ours.loss(tokens, k.from_numpy(tiny.targets()), Ctx(layout)).backward()
    found = to_file(rules, {each: p.numpy() if p.slot is None else p.grad for each, p in ours.named_parameters()})
    found = {each: gradient for each, gradient in found.items() if each in wanted}  # without constants of the file
    assert found.keys() == wanted.keys()
    far = _relative(found, wanted)
    pieces = sum(layer.piece_error for block in config.blocks for layer in block.layers) * float(np.abs(got).max())
    return Errors(float(np.abs(got - want).max()), far, config.num_parameters(), incremental(ours), pieces)


def incremental(model: Decoder) -> float:
    """Largest difference between the forward of one sequence and its decoding in pieces of 1, 3 and 7."""
    ids, worst = np.concatenate(rows()), 0.0
    with no_grad():
        whole = model.logits(model.hidden(k.from_numpy(ids), Ctx(Layout.packed([len(ids)])))).numpy().copy()
        for chunk in (1, 3, 7):
            states = ContiguousStates(model.state_specs(), 1, len(ids))
            for start in range(0, len(ids), chunk):
                piece = ids[start : start + chunk].copy()
                states.begin([len(piece)])
                ctx = Ctx(Layout.cached([len(piece)], states.lengths, states.rows), states=states)
                got = model.logits(model.hidden(k.from_numpy(piece), ctx)).numpy()
                worst = max(worst, float(np.abs(got - whole[start : start + chunk]).max()))
                states.commit()
    return worst


def encoder_errors(name: str) -> Errors:
    """The same of an encoder: hidden states in place of logits, gradients of their sum in a random direction (and of
    the pooler's outputs). It decodes nothing: `incremental` is NaN."""
    import torch

    from microgpt import ops
    from microgpt.tensors import Tensor

    model = tiny.make(name)
    ours, rules = _ours(model)
    config, ctx = ours.config, Ctx(Layout.packed(LENGTHS))
    got, want = ours.hidden(k.from_numpy(np.concatenate(rows())), ctx), tiny.hidden(model)
    far = float(np.abs(got.numpy() - want.detach().numpy()).max())
    direction = np.random.default_rng(3).standard_normal(want.shape).astype(np.float32)
    loss, goal = ops.mul(got, Tensor(direction)).sum(), (want * torch.from_numpy(direction)).sum()
    if config.pooler:
        pooled = ours.pooled(got, ctx)
        first = [model(torch.from_numpy(row.astype(np.int64))[None]).pooler_output[0] for row in rows()]
        far = max(far, float(np.abs(pooled.numpy() - torch.stack(first).detach().numpy()).max()))
        loss, goal = loss + pooled.sum(), goal + torch.stack(first).sum()
    loss.backward()
    goal.backward()
    found = to_file(rules, {each: p.grad for each, p in ours.named_parameters() if p.grad is not None})
    wanted = {each: p.grad.numpy() for each, p in model.named_parameters()}
    assert found.keys() == wanted.keys()
    return Errors(far, _relative(found, wanted), config.num_parameters(), float("nan"), 0.0)


def _relative(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
    """Errors of gradients relative to each, or to a thousandth of the largest where it vanishes (as a bias on keys)."""
    floor = 1e-3 * max(float(np.linalg.norm(each)) for each in wanted.values())
    return {n: float(np.linalg.norm(found[n] - g) / max(np.linalg.norm(g), floor)) for n, g in wanted.items()}


class RoundTrip(NamedTuple):
    """What came back from transformers after a folder went theirs -> ours -> theirs."""

    complaints: dict[str, Any]  # of from_pretrained
    same_weights: bool
    same_config: bool
    logits: float


def round_trip(name: str, folder: Path) -> RoundTrip:
    """Save with transformers, load and save with ours, load with both."""
    from transformers import AutoModel, AutoModelForCausalLM

    auto, said = (AutoModel, tiny.hidden) if name in ENCODERS else (AutoModelForCausalLM, tiny.logits)
    model = tiny.make(name)
    model.save_pretrained(folder / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a key that is not understood is a key that may matter
        ours = load_decoder(folder / "theirs")
    (folder / "ours").mkdir()
    save_decoder(ours, folder / "ours")
    again, report = auto.from_pretrained(
        folder / "ours", attn_implementation=tiny.attention(ours.config.family), output_loading_info=True
    )
    first, second = tiny.weights(model), tiny.weights(again.eval())
    same = first.keys() == second.keys() and all(np.array_equal(first[each], second[each]) for each in first)
    return RoundTrip(
        {key: names for key, names in report.items() if names and key.endswith("_keys")},
        same,
        load_decoder(folder / "ours").config == ours.config,
        _far(said(again), said(model)),
    )


def _far(a: Any, b: Any) -> float:
    """The largest difference; of tensors of PyTorch too."""
    a, b = (each.detach().numpy() if hasattr(each, "detach") else each for each in (a, b))
    return float(np.abs(a - b).max())

"""The decoder variants of the conformance suite: a table of specs, every example of every spec, and what they need."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from microgpt import _kernels as k
from microgpt.autograd import no_grad
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.presets import MODELS
from microgpt.nn.context import Ctx, Layout
from microgpt.nn.ffn.mlp import GluSpec, MlpSpec
from microgpt.nn.ffn.xielu import XieluSpec
from microgpt.nn.mixers import MIXERS
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.nn.mixers.differential import DifferentialSpec
from microgpt.nn.module import Parameter
from microgpt.nn.rope import RopeScaling, RopeSpec
from microgpt.nn.spec import SPECS, BlockSpec, LayerSpec, NormSpec
from microgpt.ops.raw import ACTS
from microgpt.tensors import Tensor

VOCAB, WIDTH, HEADS, HEAD_DIM, CONTEXT, TOKENS = 29, 24, 4, 6, 32, 21
RMS = NormSpec("rms", bias=False)
PLUS_ONE = NormSpec("rms", bias=False, plus_one=True)
ROPE = RopeSpec()
SCALINGS = [
    RopeScaling("linear", 2.0),
    RopeScaling("dynamic", 2.0, 16),
    RopeScaling("yarn", 4.0, 8),
    RopeScaling("longrope", 4.0, 8, short_factor=(1.0, 1.0, 1.0), long_factor=(1.0, 2.0, 4.0)),
    RopeScaling("llama3", 4.0, 8),
    RopeScaling("proportional", 2.0, share=0.7),
    RopeScaling("ntk", 4.0),
]


def variant(
    kv_heads: int = HEADS,
    ffn: Any = None,
    norm: NormSpec | None = None,
    placement: str = "pre",
    learned: bool = False,
    model: dict[str, Any] | None = None,
    block: dict[str, Any] | None = None,
    kind: type[AttentionSpec] = AttentionSpec,
    **attention: Any,
) -> ModelConfig:
    """A decoder of two blocks; `learned` positions, `attention`, `block` and `model` are fields of the specs."""
    norm = norm or NormSpec()
    mixer = kind(HEADS, HEAD_DIM, kv_heads, **attention)
    both = BlockSpec(mixer, ffn or MlpSpec(40), norm, placement, **(block or {}))
    # Weights wide enough that everything in the model matters to the logits.
    settings = {"final_norm": norm, "init_std": 0.2, **(model or {})}
    return ModelConfig(VOCAB, WIDTH, CONTEXT, (both, both), learned_positions=learned, **settings)


VARIANTS = {
    "learned": variant(learned=True),
    "rope": variant(rope=ROPE),
    "rope_interleaved": variant(rope=RopeSpec(500.0, interleaved=True)),
    "rope_partial": variant(rope=RopeSpec(100.0, dims=4)),
    **{f"rope_{scaling.kind}": variant(rope=RopeSpec(100.0, scaling=scaling)) for scaling in SCALINGS},
    "alibi": variant(alibi=True),
    "no_positions": variant(),
    "gqa": variant(kv_heads=2, rope=ROPE),
    "mqa": variant(kv_heads=1, rope=ROPE),
    "mqa_alibi": variant(kv_heads=1, alibi=True),
    "rms": variant(norm=RMS, rope=ROPE),
    "norm_without_weight": variant(norm=NormSpec("rms", weight=False, bias=False), rope=ROPE),
    "post": variant(placement="post", rope=ROPE),
    "post_rms": variant(placement="post", norm=RMS, learned=True, model={"final_norm": None}),
    "sandwich": variant(placement="sandwich", norm=RMS, rope=ROPE),
    "sandwich_layer": variant(placement="sandwich", learned=True),
    **{f"mlp_{act}": variant(ffn=MlpSpec(40, act), rope=ROPE) for act in ACTS},
    "mlp_no_bias": variant(ffn=MlpSpec(40, "gelu", bias=False), bias=False, out_bias=False, learned=True),
    "swiglu": variant(ffn=GluSpec(40), norm=RMS, rope=ROPE),
    "geglu": variant(ffn=GluSpec(40, "gelu"), rope=ROPE),
    "geglu_tanh_bias": variant(ffn=GluSpec(40, "gelu_tanh", bias=True), rope=ROPE),
    "window": variant(window=5, rope=ROPE),
    "window_1": variant(window=1, learned=True),
    "soft_cap": variant(soft_cap=2.0, rope=ROPE),
    "window_soft_cap_alibi_gqa": variant(kv_heads=2, window=6, soft_cap=3.0, alibi=True),
    "scale": variant(scale=1.0, rope=ROPE),
    "untied": variant(rope=ROPE, model={"tie_embeddings": False}),
    "head_bias": variant(rope=ROPE, model={"head_bias": True}),
    "untied_head_bias": variant(rope=ROPE, model={"tie_embeddings": False, "head_bias": True}),
    "embed_norm": variant(rope=ROPE, norm=RMS, model={"embed_norm": RMS}),
    "qk_norm": variant(rope=RopeSpec(reverse=True), qk_norm=RMS, qk_norm_last=True),
    "qk_norm_heads": variant(kv_heads=2, rope=ROPE, qk_norm=NormSpec(), qk_norm_over="heads"),
    "qk_norm_width": variant(kv_heads=2, rope=ROPE, qk_norm=PLUS_ONE, qk_norm_over="width"),
    "plus_one": variant(norm=PLUS_ONE, placement="sandwich", rope=ROPE),
    "res_post_layer_plus_one": variant(norm=NormSpec(plus_one=True), placement="res_post", rope=ROPE),
    "parallel": variant(block={"parallel": True}, rope=ROPE),
    "parallel_shared": variant(block={"parallel": True, "shared_norm": True}, rope=ROPE),
    "sinks_gate_window": variant(kv_heads=2, window=6, sinks=True, gate=True, rope=ROPE),
    "clip_temperature": variant(clip=0.7, temperature=(0.5, 4), rope=ROPE),
    "scales": variant(block={"residual_scale": 0.5}, alibi=True, alibi_scale=0.4,
                      model={"embed_scale": 3.0, "logit_scale": 0.5, "logit_soft_cap": 2.0}),
    "differential": variant(kv_heads=2, kind=DifferentialSpec, rope=ROPE),
    "xielu": variant(ffn=XieluSpec(40, bias=True), rope=ROPE),
    **{f"model_{name}": dataclasses.replace(make(VOCAB, WIDTH, 2, HEADS, CONTEXT, 0.0), init_std=0.2)
       for name, make in MODELS.items()},
}  # fmt: skip
_block = VARIANTS["gqa"].blocks[0]
_sharing = dataclasses.replace(_block, mixer=dataclasses.replace(_block.mixer, kv_from=0))
VARIANTS["shared_kv"] = dataclasses.replace(VARIANTS["gqa"], blocks=(_block, _sharing))


def examples() -> dict[str, ModelConfig]:
    """Every example of every layer's spec in two blocks, and in a block between two of attention."""
    made = {}
    attention = BlockSpec(AttentionSpec(HEADS, HEAD_DIM, 2, rope=ROPE), MlpSpec(40), RMS)
    for kind, spec in SPECS.items():
        for name, example in spec.examples(WIDTH).items():
            half = "mixer" if kind in MIXERS else "ffn"
            blocks = {"": (dataclasses.replace(attention, **{half: example}),) * 2}
            if half == "mixer":
                alone = dataclasses.replace(attention, mixer=example, ffn=None)
                blocks |= {"_alone": (alone, alone), "_hybrid": (attention, alone, attention)}
            for way, each in blocks.items():
                made[f"{kind}_{name}{way}"] = ModelConfig(
                    VOCAB, WIDTH, CONTEXT, each, learned_positions=False, final_norm=RMS, init_std=0.2
                )
    return made


VARIANTS |= examples()
_only = dataclasses.replace(_block, ffn=None), dataclasses.replace(_block, mixer=None)
VARIANTS["halves"] = dataclasses.replace(VARIANTS["gqa"], blocks=_only)
VARIANTS["halves_sandwich"] = dataclasses.replace(
    VARIANTS["gqa"], blocks=tuple(dataclasses.replace(each, placement="sandwich") for each in _only)
)

IDS = np.random.default_rng(7).integers(0, VOCAB, TOKENS, dtype=np.int32)


def make(config: ModelConfig, dtype: str = "float32", seed: int = 3) -> Decoder:
    """A decoder whose norms and biases are not at their trivial initial values."""
    model = Decoder(config, dtype, seed)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        if parameter.std is None:
            values = parameter.numpy()
            values += rng.uniform(-0.3, 0.3, values.shape).astype(dtype)
    return model


def learned(model: Decoder) -> dict[str, Parameter]:
    """The parameters that take a gradient."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def logits(model: Decoder, ids: npt.NDArray[np.int32], lengths: list[int] | None = None) -> npt.NDArray[Any]:
    with no_grad():
        ctx = Ctx(Layout.packed(lengths or [len(ids)]))
        return model.logits(model.hidden(k.from_numpy(ids), ctx)).numpy().copy()


def layers(config: ModelConfig) -> list[LayerSpec]:
    return [layer for block in config.blocks for layer in block.layers]


def mixers(config: ModelConfig) -> list[LayerSpec]:
    """Of all blocks; the parts of those that have parts."""
    found = [block.mixer for block in config.blocks if block.mixer is not None]
    return [part for mixer in found for part in (mixer.parts.values() or [mixer])]


def check_pieces(config: ModelConfig, got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    """The same bits, unless a layer's spec says how far results of other pieces may lie apart."""
    error = sum(layer.piece_error for layer in layers(config))
    if error == 0.0:
        assert np.array_equal(got, expected)
    else:
        assert np.abs(got - expected).max() <= error * np.abs(expected).max()


def loss_of(model: Decoder, ids: npt.NDArray[np.int32], **ctx: Any) -> Tensor:
    layout = Layout.packed([len(ids) - 1])
    return model.loss(k.from_numpy(ids[:-1].copy()), k.from_numpy(ids[1:].copy()), Ctx(layout, **ctx))

"""GPT-2 (Radford et al. 2019), as transformers' GPT2LMHeadModel stores it: Conv1D weights are (in, out)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ...io.names import Rule
from ...nn.spec import AttentionSpec, BlockSpec, MlpSpec, NormSpec
from ..config import ModelConfig
from . import FAMILIES, Family
from .common import Reader
from .gguf import GGUF, Gguf

# transformers' activation names <-> ours
ACTS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
# Training-time or head settings of other tasks; attention-probability dropout is not implemented and stays out.
IGNORED = [
    "attn_pdrop",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "n_ctx",
    "reorder_and_upcast_attn",
    "gradient_checkpointing",
    "layer_norm_eps",
]


def read(config: dict[str, Any]) -> ModelConfig:
    """config.json of model_type gpt2 -> ModelConfig."""
    get = Reader(config)
    width, heads = get.get("n_embd", int, 768), get.get("n_head", int, 12)
    if heads < 1 or width % heads:
        raise ConfigError(f"config.json: n_embd {width} is not divisible by n_head {heads}")
    act = get.get("activation_function", str, "gelu_new")
    if act not in ACTS:
        raise ConfigError(f"config.json: activation_function {act!r}: known are {', '.join(ACTS)}")
    if get.get("scale_attn_by_inverse_layer_idx", bool, False):
        raise ConfigError("config.json: scale_attn_by_inverse_layer_idx is not supported")
    scale = None if get.get("scale_attn_weights", bool, True) else 1.0
    norm = NormSpec("layer", get.get("layer_norm_epsilon", float, 1e-5))
    block = BlockSpec(
        mixer=AttentionSpec(heads, width // heads, heads, scale=scale),
        ffn=MlpSpec(get.get("n_inner", (int, type(None)), None) or 4 * width, ACTS[act]),
        norm=norm,
        dropout=get.get("resid_pdrop", (float, int), 0.1),
    )
    made = ModelConfig(
        vocab_size=get.get("vocab_size", int, 50257),
        width=width,
        max_positions=get.get("n_positions", int, 1024),
        blocks=(block,) * get.get("n_layer", int, 12),
        family="gpt2",
        tie_embeddings=get.get("tie_word_embeddings", bool, True),
        final_norm=norm,
        embed_dropout=get.get("embd_pdrop", (float, int), 0.1),
        init_std=get.get("initializer_range", float, 0.02),
    )
    get.finish(IGNORED)
    return made


def write(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> config.json. Raises ConfigError if this is not a GPT-2."""
    block = config.blocks[0]
    attention, mlp = block.mixer, block.ffn
    values = {
        "n_embd": config.width,
        "n_head": attention.heads,
        "n_layer": len(config.blocks),
        "n_positions": config.max_positions,
        "n_inner": mlp.width,
        "vocab_size": config.vocab_size,
        "activation_function": {ours: theirs for theirs, ours in ACTS.items()}.get(mlp.act, mlp.act),
        "layer_norm_epsilon": block.norm.eps,
        "resid_pdrop": float(block.dropout),
        "embd_pdrop": float(config.embed_dropout),
        "attn_pdrop": 0.0,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_attn_weights": attention.scale is None,
    }
    if read(values) != config:
        raise ConfigError("this model is not a GPT-2: save it as family 'microgpt'")
    return values


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Weight names of GPT2LMHeadModel."""
    table = [
        Rule("embed.weight", "transformer.wte.weight"),
        Rule("positions.weight", "transformer.wpe.weight"),
        Rule("norm.weight", "transformer.ln_f.weight"),
        Rule("norm.bias", "transformer.ln_f.bias"),
    ]
    if not config.tie_embeddings:
        table.append(Rule("head", "lm_head.weight"))
    thirds = (config.width,) * 3
    for i in range(len(config.blocks)):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for kind, transpose in (("weight", True), ("bias", False)):
            qkv = tuple(f"{ours}.mixer.{part}.{kind}" for part in "qkv")
            table += [
                Rule(f"{ours}.mixer_norm.{kind}", f"{theirs}.ln_1.{kind}"),
                Rule(qkv, f"{theirs}.attn.c_attn.{kind}", transpose, thirds),
                Rule(f"{ours}.mixer.o.{kind}", f"{theirs}.attn.c_proj.{kind}", transpose),
                Rule(f"{ours}.ffn_norm.{kind}", f"{theirs}.ln_2.{kind}"),
                Rule(f"{ours}.ffn.up.{kind}", f"{theirs}.mlp.c_fc.{kind}", transpose),
                Rule(f"{ours}.ffn.down.{kind}", f"{theirs}.mlp.c_proj.{kind}", transpose),
            ]
    return table


def optional(config: ModelConfig) -> Sequence[str]:
    """Mask buffers of old checkpoints, and the head where it repeats the embedding."""
    buffers = [f"transformer.h.{i}.attn.{b}" for i in range(len(config.blocks)) for b in ("bias", "masked_bias")]
    return [*buffers, "lm_head.weight"]


FAMILIES.add("gpt2", Family("gpt2", "GPT2LMHeadModel", read, write, rules, optional))
GGUF.add(
    "gpt2",
    Gguf(
        "gpt2",
        keys={
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        fixed={"activation_function": "gelu_new", "scale_attn_weights": True},
        assumed={"resid_pdrop": 0.0, "embd_pdrop": 0.0},
        fused={"mixer.q mixer.k mixer.v": "attn_qkv"},
        rope=False,
    ),
)

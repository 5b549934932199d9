"""Llama (Touvron et al. 2023, arXiv:2302.13971; 3: arXiv:2407.21783) as transformers' LlamaForCausalLM stores it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ...io.names import Rule
from ...nn.spec import AttentionSpec, BlockSpec, GluSpec, NormSpec
from ..config import ModelConfig
from . import FAMILIES, Family
from .common import Reader, read_rope, write_rope
from .gguf import GGUF, LLAMA_KEYS, Gguf

ACTS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
IGNORED = ["attention_dropout", "pretraining_tp", "rms_norm_eps"]


def read(config: dict[str, Any]) -> ModelConfig:
    """config.json of model_type llama -> ModelConfig."""
    get = Reader(config)
    width, heads = get.get("hidden_size", int, 4096), get.get("num_attention_heads", int, 32)
    head_dim = get.get("head_dim", (int, type(None)), None)
    if head_dim is None:
        if heads < 1 or width % heads:
            raise ConfigError(f"config.json: hidden_size {width} is not divisible by num_attention_heads {heads}")
        head_dim = width // heads
    kv_heads = get.get("num_key_value_heads", (int, type(None)), None) or heads
    act = get.get("hidden_act", str, "silu")
    if act not in ACTS:
        raise ConfigError(f"config.json: hidden_act {act!r}: known are {', '.join(ACTS)}")
    positions = get.get("max_position_embeddings", int, 2048)
    bias = get.get("attention_bias", bool, False)
    norm = NormSpec("rms", float(get.get("rms_norm_eps", (float, int), 1e-6)), bias=False)
    block = BlockSpec(
        AttentionSpec(heads, head_dim, kv_heads, bias, bias, rope=read_rope(get, head_dim, positions)),
        GluSpec(get.get("intermediate_size", int, 11008), ACTS[act], get.get("mlp_bias", bool, False)),
        norm,
        dropout=get.get("resid_pdrop", (float, int), 0.0),  # ours; transformers' Llama has no such dropout
    )
    made = ModelConfig(
        vocab_size=get.get("vocab_size", int, 32000),
        width=width,
        max_positions=positions,
        blocks=(block,) * get.get("num_hidden_layers", int, 32),
        family="llama",
        learned_positions=False,
        tie_embeddings=get.get("tie_word_embeddings", bool, False),
        final_norm=norm,
        embed_dropout=get.get("embd_pdrop", (float, int), 0.0),
        init_std=get.get("initializer_range", (float, int), 0.02),
    )
    get.finish(IGNORED)
    return made


def write(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> config.json. Raises ConfigError if this is not a Llama."""
    block = config.blocks[0]
    attention, glu = block.mixer, block.ffn
    if not isinstance(attention, AttentionSpec) or attention.rope is None or not isinstance(glu, GluSpec):
        raise ConfigError("this model is not a Llama: save it as family 'microgpt'")
    values = {
        "hidden_size": config.width,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "num_hidden_layers": len(config.blocks),
        "intermediate_size": glu.width,
        "hidden_act": {ours: theirs for theirs, ours in reversed(ACTS.items())}.get(glu.act, glu.act),
        "max_position_embeddings": config.max_positions,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": block.norm.eps,
        "attention_bias": attention.bias,
        "attention_dropout": 0.0,
        "mlp_bias": glu.bias,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rope(attention.rope, attention.head_dim),
    }
    if block.dropout or config.embed_dropout:
        values |= {"resid_pdrop": float(block.dropout), "embd_pdrop": float(config.embed_dropout)}
    if read(values) != config:
        raise ConfigError("this model is not a Llama: save it as family 'microgpt'")
    return values


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Weight names of LlamaForCausalLM."""
    table = [Rule("embed.weight", "model.embed_tokens.weight"), Rule("norm.weight", "model.norm.weight")]
    if not config.tie_embeddings:
        table.append(Rule("head", "lm_head.weight"))
    for i, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        table.append(Rule(f"{ours}.mixer_norm.weight", f"{theirs}.input_layernorm.weight"))
        table.append(Rule(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight"))
        for kind in ("weight", "bias") if block.mixer.bias else ("weight",):
            table += [Rule(f"{ours}.mixer.{x}.{kind}", f"{theirs}.self_attn.{x}_proj.{kind}") for x in "qkvo"]
        for kind in ("weight", "bias") if block.ffn.bias else ("weight",):
            parts = ("gate", "up", "down")
            table += [Rule(f"{ours}.ffn.{x}.{kind}", f"{theirs}.mlp.{x}_proj.{kind}") for x in parts]
    return table


def optional(config: ModelConfig) -> Sequence[str]:
    """Frequency buffers of old checkpoints, and the head where it repeats the embedding."""
    buffers = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(len(config.blocks))]
    return [*buffers, "lm_head.weight"] if config.tie_embeddings else buffers


FAMILIES.add("llama", Family("llama", "LlamaForCausalLM", read, write, rules, optional))
GGUF.add("llama", Gguf(
    "llama", LLAMA_KEYS, fixed={"hidden_act": "silu"},
    present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}, interleaved=True,
))  # fmt: skip

"""Settings of families for GGUF files: those it can hold, and those it cannot."""

from __future__ import annotations

from typing import Any

from microgpt.models.families.gguf import GGUF
from tests.tiny_families import BASE, ENCODERS, FOUR, HYBRID, MAMBA, TINY, WIDE

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 12}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 8,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 2.5, 4.0]}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 3.0, "original_max_position_embeddings": 8}
# Of tests/tiny_families.py, what llama.cpp cannot compute: a part of the message.
REFUSED = {
    "mistral": "sliding_window None, this model 5",
    "qwen2": "use_sliding_window False, this model True",
    "qwen3": "attention_bias False, this model True",
    "gemma2": "scale",  # query_pre_attn_scalar is the width of a head
    "gemma3": "scale",
    "phi_qk": "qk_layernorm False, this model True",
    "starcoder2": "sliding_window None, this model 6",
    "falcon_rw": "bias False, this model True",
    "cohere": "64 layers and more only",
    "cohere2": "head_dim 8, it is 12",
    "exaone4": "head_dim 8, it is 12",
    "nemotron": "head_dim 8, it is 12",
    "seed_oss": "attention_out_bias False, this model True",
    "smollm3": "rope",  # each fourth layer is without positions, no other
    "ernie4_5": "use_bias False, this model True",
    "mixtral": "sliding_window None, this model 5",
    "qwen2_moe": r"mlp_only_layers \[\], this model \[1\]",
    "qwen3_moe": r"mlp_only_layers \[\], this model \[0, 2\]",
    "olmoe": "num_key_value_heads: expected 4, got 2",
    "gpt_oss": "swiglu_limit 7.0, this model 0.5",
    "mamba": "use_bias False, this model True",
    "falcon_mamba": "use_conv_bias True, this model False",
    "qwen3_next": r"mlp_only_layers \[\], this model \[1\]",
    "lfm2": "conv_bias False, this model True",
    "mamba2_limits": "use_bias False, this model True",
    "nemotron_h_moe": "layers_block_type: expected some of each of linear_attention, full_attention, moe and of no",
    "falcon_h1_norm": "lm_head_multiplier: expected 3.0 as embedding_multiplier with tied embeddings, got 0.7",
    "jamba": "mamba_proj_bias False, this model True",
    "lfm2_moe": "routed_scaling_factor 1.0, this model 1.5",
    "bamba": "mamba_proj_bias False, this model True",
    "qwen3_5": "linear_value_head_dim: expected 6, got 10",
    "modernbert_bias": "norm_bias False, this model True",
    "modernbert_layers": "full layers at equal distances from the first, this model others",
    "modernbert_scaled": "no scaled rotary positions, this model some",
    "bert_act": "hidden_act 'gelu', this model 'relu'",
}
EN = {**ENCODERS["modernbert"][1], "norm_bias": False}
NOT_OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert_bias": ENCODERS["modernbert"],
    "modernbert_layers": ("modernbert", {**EN, "layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2}),
    "modernbert_scaled": ("modernbert", {**EN, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "bert_act": ("bert", {**ENCODERS["bert"][1], "hidden_act": "relu"}),
}
# and with settings that it can
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: each for name, each in TINY.items() if each[0] in GGUF and name not in REFUSED},
    "mistral": ("mistral", {**BASE, "sliding_window": None}),
    "mistral_wide_window": ("mistral", {**BASE, "sliding_window": 32}),
    "qwen2": ("qwen2", BASE),
    "qwen3": ("qwen3", WIDE),
    "gemma2": ("gemma2", {**TINY["gemma2"][1], "query_pre_attn_scalar": 12}),
    "gemma3": (
        "gemma3_text",
        {
            **TINY["gemma3"][1],
            "query_pre_attn_scalar": 12,
            "sliding_window_pattern": 6,
            "num_hidden_layers": 7,
            "rope_local_base_freq": 77.0,
        },
    ),
    "starcoder2": ("starcoder2", {**BASE, "sliding_window": None}),
    "cohere": ("cohere", {**BASE, "logit_scale": 0.3}),
    "cohere_qk": ("cohere", {**BASE, "num_hidden_layers": 64, "use_qk_norm": True}),
    "cohere2": ("cohere2", {**BASE, **FOUR}),
    "exaone4": ("exaone4", {**BASE, "sliding_window": None}),
    "exaone4_windows": ("exaone4", {**BASE, "num_hidden_layers": 64, "sliding_window": 5}),
    "nemotron": ("nemotron", {**BASE, "attention_bias": True}),
    "seed_oss": ("seed_oss", WIDE),
    "smollm3": ("smollm3", {**WIDE, **FOUR, "sliding_window": None}),
    "ernie4_5": ("ernie4_5", WIDE),
    "qwen3_next": (
        "qwen3_next",
        {**TINY["qwen3_next"][1], "mlp_only_layers": [], "layer_types": ["linear_attention"] * 2 + ["full_attention"]},
    ),
    "lfm2": ("lfm2", {**TINY["lfm2"][1], "conv_bias": False}),
    "falcon_h1": ("falcon_h1", {**BASE, **HYBRID, "mamba_d_ssm": 40}),
    "falcon_h1_multipliers": TINY["falcon_h1"],
    "lfm2_moe": ("lfm2_moe", {**TINY["lfm2_moe"][1], "routed_scaling_factor": 1.0}),
    "bamba": ("bamba", {**TINY["bamba"][1], "mamba_proj_bias": False}),
    "nemotron_h_moe": (
        "nemotron_h",
        {**TINY["nemotron_h_moe"][1], "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    ),
    "qwen3_5": (
        "qwen3_5_text",
        {
            **TINY["qwen3_5"][1],
            "linear_value_head_dim": 6,
            "layer_types": ["linear_attention"] * 2 + ["full_attention"],
        },
    ),
    "qwen3_5_keys": (
        "qwen3_5_text",
        {
            **TINY["qwen3_5"][1],
            "linear_value_head_dim": 6,
            "linear_num_value_heads": 2,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
        },
    ),
    "falcon_h1_norm": (
        "falcon_h1",
        {
            **BASE,
            **HYBRID,
            "mamba_d_ssm": 40,
            "mamba_n_groups": 2,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
        },
    ),
    "mixtral": ("mixtral", {**BASE, "num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", {**TINY["qwen2_moe"][1], "mlp_only_layers": None}),
    "qwen3_moe": ("qwen3_moe", {**TINY["qwen3_moe"][1], "decoder_sparse_step": 1}),
    "olmoe": ("olmoe", {**TINY["olmoe"][1], "num_key_value_heads": 4}),
    "gpt_oss": ("gpt_oss", {**TINY["gpt_oss"][1], "swiglu_limit": 7.0}),
    "mamba": ("mamba", MAMBA),
    "falcon_mamba": ("falcon_mamba", {**MAMBA, "tie_word_embeddings": False}),
    "jamba": ("jamba", {**TINY["jamba"][1], "mamba_proj_bias": False}),
    "yarn": ("llama", {**BASE, "rope_parameters": {**YARN, "attention_factor": 1.25}}),
    "minicpm": ("minicpm", {**BASE, "scale_emb": 6.0, "scale_depth": 1.4, "dim_model_base": 8}),
    "bert": ENCODERS["bert"],
    "modernbert": ("modernbert", {**ENCODERS["modernbert"][1], "norm_bias": False}),
    "modernbert_silu": (
        "modernbert",
        {
            **ENCODERS["modernbert"][1],
            "norm_bias": False,
            "hidden_activation": "silu",
            "global_attn_every_n_layers": 2,
            "local_rope_theta": 77.0,
        },
    ),
}

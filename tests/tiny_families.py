"""Tiny configurations of every family as transformers knows it, and weights that need no file: drawn from their names.

`make parity` compares them with transformers live; `tests/golden/families.npz` holds transformers' logits on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microgpt.nn.module import normal

VOCAB = 31
LENGTHS = (11, 4, 7)  # of the sequences that the golden logits were computed for
BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "max_position_embeddings": 32, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
WIDE = {**BASE, "head_dim": 12}
FOUR = {"num_hidden_layers": 4, "sliding_window": 5}
NEOX = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
TEXT = {"query_pre_attn_scalar": 10}
FALCON = {**NEOX, "ffn_hidden_size": 40}
del FALCON["intermediate_size"]
LONGROPE = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 3,
            "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 2.5, 4.0]}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 4,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}  # fmt: skip
NTK = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 1.0, "alpha": 8.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 12}  # fmt: skip

MAMBA = {**{key: BASE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")},
         "state_size": 5}  # fmt: skip
OSS_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8,
            "beta_fast": 4.0, "beta_slow": 1.0, "truncate": False}  # fmt: skip

MAMBA2 = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8,
          "state_size": 12, "n_groups": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
HYBRID = {"mamba_n_heads": 4, "mamba_d_state": 9, "mamba_d_conv": 3, "num_hidden_layers": 3}
FALCON_H1 = {"mamba_d_ssm": 40, "embedding_multiplier": 3.0, "lm_head_multiplier": 0.7, "key_multiplier": 0.6,
             "attention_in_multiplier": 1.3, "attention_out_multiplier": 0.8, "ssm_in_multiplier": 1.2,
             "ssm_out_multiplier": 0.9, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
             "mlp_multipliers": [0.8, 1.4]}  # fmt: skip
# A head's first output is q . k times v: where it is near zero a small eps would magnify its roundings.
DELTA = {**BASE, "rms_norm_eps": 1e-3, "head_dim": 16, "num_hidden_layers": 3, "linear_num_value_heads": 4,
         "linear_num_key_heads": 2, "linear_key_head_dim": 6, "linear_value_head_dim": 10,
         "layer_types": ["linear_attention", "full_attention", "linear_attention"]}  # fmt: skip

# name -> (model_type, settings)
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "llama": ("llama", {**WIDE, "attention_bias": True, "rope_parameters": LLAMA3}),
    "mistral": ("mistral", {**WIDE, "sliding_window": 5}),
    "ministral": ("ministral", {**WIDE, "sliding_window": 5,
                                "layer_types": ["full_attention", "sliding_attention"]}),
    "ministral3": ("ministral3", {**WIDE, "rope_parameters": YARN}),
    "qwen2": ("qwen2", {**BASE, **FOUR, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("qwen3", {**WIDE, "attention_bias": True}),
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", {**WIDE, **FOUR, **TEXT, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**WIDE, **FOUR, **TEXT, "sliding_window_pattern": 3}),
    "phi": ("phi", BASE),
    "phi_qk": ("phi", {**BASE, "qk_layernorm": True}),
    "phi3": ("phi3", {**BASE, "rope_parameters": LONGROPE, "original_max_position_embeddings": 3, "sliding_window": 9}),
    "smollm3": ("smollm3", {**BASE, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 1]}),
    "olmo": ("olmo", {**BASE, "clip_qkv": 0.6}),
    "olmo2": ("olmo2", BASE),
    "olmo3": ("olmo3", {**BASE, **FOUR}),
    "stablelm": ("stablelm", {**BASE, "hidden_size": 64, "use_qkv_bias": True}),
    "stablelm_parallel": ("stablelm", {**BASE, "hidden_size": 64, "use_parallel_residual": True}),
    "stablelm_qk": ("stablelm", {**BASE, "hidden_size": 64, "qk_layernorm": True}),
    "starcoder2": ("starcoder2", {**BASE, "sliding_window": 6}),
    "falcon": ("falcon", FALCON),
    "falcon_40b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_11b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2,
                              "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False}),
    "falcon_rw": ("falcon", {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "mpt": ("mpt", {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32,
                    "attn_config": {"clip_qkv": 0.5}}),
    "bloom": ("bloom", {"vocab_size": VOCAB, "hidden_size": 36, "n_layer": 2, "n_head": 6}),
    "gpt_neox": ("gpt_neox", {**NEOX, "hidden_size": 64}),
    "gpt_neox_serial": ("gpt_neox", {**NEOX, "hidden_size": 64, "use_parallel_residual": False,
                                     "attention_bias": False}),
    "cohere": ("cohere", {**BASE, "use_qk_norm": True, "logit_scale": 0.3}),
    "cohere2": ("cohere2", {**WIDE, **FOUR}),
    "granite": ("granite", {**BASE, "embedding_multiplier": 3.0, "logits_scaling": 0.7, "residual_multiplier": 0.4,
                            "attention_multiplier": 0.3}),
    "exaone4": ("exaone4", {**WIDE, **FOUR}),
    "nemotron": ("nemotron", WIDE),
    "glm4": ("glm4", WIDE),
    "nanochat": ("nanochat", BASE),
    "apertus": ("apertus", {**BASE, "rope_parameters": LLAMA3}),
    "arcee": ("arcee", BASE),
    "helium": ("helium", {**BASE, "head_dim": 8}),
    "seed_oss": ("seed_oss", {**WIDE, "attention_out_bias": True}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {**WIDE, "rope_parameters": NTK}),
    "ernie4_5": ("ernie4_5", {**WIDE, "use_bias": True}),
    "diffllama": ("diffllama", BASE),
    "mamba": ("mamba", {**MAMBA, "use_bias": True}),
    "falcon_mamba": ("falcon_mamba", {**MAMBA, "tie_word_embeddings": False, "use_conv_bias": False}),
    "recurrent_gemma": ("recurrent_gemma", {**NEOX, "num_key_value_heads": 1, "num_hidden_layers": 4, "lru_width": 40,
                                            "attention_window_size": 5}),
    "jamba": ("jamba", {**BASE, "num_hidden_layers": 4, "num_experts": 1, "attn_layer_period": 3,
                        "attn_layer_offset": 1, "mamba_d_state": 5, "mamba_dt_rank": 3, "mamba_proj_bias": True}),
    "jamba_moe": ("jamba", {**BASE, "num_hidden_layers": 4, "num_experts": 4, "attn_layer_period": 4,
                            "attn_layer_offset": 2, "mamba_d_state": 4}),
    "mixtral": ("mixtral", {**BASE, "num_local_experts": 4, "sliding_window": 5}),
    "qwen2_moe": ("qwen2_moe", {**BASE, "num_hidden_layers": 3, "mlp_only_layers": [1], "moe_intermediate_size": 24,
                                "shared_expert_intermediate_size": 16, "num_experts": 5, "num_experts_per_tok": 3}),
    "qwen3_moe": ("qwen3_moe", {**WIDE, "num_hidden_layers": 4, "decoder_sparse_step": 2, "moe_intermediate_size": 24,
                                "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    # No expert is so nearly chosen here that bfloat16 chooses another.
    "olmoe": ("olmoe", {**BASE, "num_experts": 8, "num_experts_per_tok": 4}),
    "lfm2": ("lfm2", {**BASE, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8, "conv_bias": True}),
    "lfm2_moe": ("lfm2_moe", {**BASE, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"],
                              "num_dense_layers": 1, "num_experts": 4, "num_experts_per_tok": 2,
                              "moe_intermediate_size": 24, "routed_scaling_factor": 1.5}),
    "granitemoe": ("granitemoe", {**BASE, "num_local_experts": 4, "embedding_multiplier": 3.0, "logits_scaling": 0.7,
                                  "residual_multiplier": 0.4, "attention_multiplier": 0.3}),
    "gpt_oss": ("gpt_oss", {**WIDE, **FOUR, "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.5,
                            "rope_parameters": OSS_YARN}),
    "mamba2": ("mamba2", MAMBA2),
    "mamba2_limits": ("mamba2", {**MAMBA2, "n_groups": 1, "use_bias": True, "use_conv_bias": False,
                                 "time_step_limit": (0.05, 0.7), "tie_word_embeddings": True}),
    "bamba": ("bamba", {**BASE, **HYBRID, "mamba_n_groups": 2, "attn_layer_indices": [1], "mamba_proj_bias": True}),
    "granitemoehybrid": ("granitemoehybrid", {
        **BASE, **HYBRID, "num_local_experts": 0, "shared_intermediate_size": 24, "position_embedding_type": "rope",
        "layer_types": ["linear_attention", "full_attention", "linear_attention"], "embedding_multiplier": 3.0,
        "logits_scaling": 0.7, "residual_multiplier": 0.4, "attention_multiplier": 0.3}),
    "granitemoehybrid_moe": ("granitemoehybrid", {
        **BASE, **HYBRID, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24,
        "layer_types": ["full_attention", "linear_attention", "linear_attention"], "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4}),
    "nemotron_h": ("nemotron_h", {
        **{key: value for key, value in BASE.items() if key != "num_hidden_layers"}, "head_dim": 12,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"], "mamba_num_heads": 4,
        "mamba_head_dim": 10, "ssm_state_size": 9, "n_groups": 2}),
    "nemotron_h_moe": ("nemotron_h", {
        **{key: value for key, value in BASE.items() if key != "num_hidden_layers"}, "head_dim": 8,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp"], "mamba_num_heads": 4,
        "mamba_head_dim": 8, "ssm_state_size": 6, "n_groups": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 20, "routed_scaling_factor": 2.5}),
    "falcon_h1": ("falcon_h1", {**BASE, **HYBRID, **FALCON_H1, "mamba_norm_before_gate": False}),
    "falcon_h1_norm": ("falcon_h1", {
        **BASE, **HYBRID, **FALCON_H1, "mamba_rms_norm": True, "mamba_n_groups": 2, "projectors_bias": True,
        "mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "qwen3_5": ("qwen3_5_text", DELTA),
    # Of sizes and multipliers where no token of the test changes its experts in bfloat16, here and in Granite's.
    "qwen3_next": ("qwen3_next", {**DELTA, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 4,
                                  "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                  "shared_expert_intermediate_size": 20, "mlp_only_layers": [1]}),
}  # fmt: skip

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", NEOX),
    "modernbert": ("modernbert", {**NEOX, "num_hidden_layers": 4, "local_attention": 6, "norm_bias": True}),
}


def weight(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The tiny model's weight called `name` in the file: everything random, norms around one."""
    values = normal(int(np.prod(shape)), 1, name).reshape(shape)
    if len(shape) > 1:
        embedding = any(part in name for part in ("embed", "wte", "wpe"))
        return (values * (0.3 if embedding else 0.15)).astype(np.float32)
    norm = name.endswith("weight")
    return (values * 0.1 + norm).astype(np.float32)


def rows() -> list[npt.NDArray[np.int32]]:
    """The sequences of LENGTHS."""
    rng = np.random.default_rng(5)
    return [rng.integers(3, VOCAB, n).astype(np.int32) for n in LENGTHS]

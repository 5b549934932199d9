"""ModernBERT (Warner et al. 2024, arXiv:2412.13663), the encoder alone: two windows to a full layer, GeGLU."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ConfigError
from ...nn.spec import NormSpec
from ..config import ModelConfig
from .common import Reader
from .declare import (
    ATTENTION_BIAS,
    FULL,
    SLIDING,
    Act,
    Bool,
    Derived,
    Draft,
    Float,
    Key,
    Part,
    all_heads,
    declare,
    head_width,
    shape,
)
from .gguf import ENCODER, ENCODER_KEYS, GGUF, Gguf
from .rope import LayeredRope


class LocalLayers(Part):
    """Which layers see `local_attention` tokens, half of them on either side; the first layer's mixer has no norm."""

    def read(self, get: Reader, draft: Draft) -> None:
        """See Part."""
        reach, period = get.get("local_attention", int, 128) // 2, get.get("global_attn_every_n_layers", int, 3)
        count = len(draft.blocks)
        given = get.get("layer_types", (list, type(None)), None)
        draft.types = given or [SLIDING if period and i % period else FULL for i in range(count)]
        draft.check_types(get)
        for i, (block, kind) in enumerate(zip(draft.blocks, draft.types, strict=True)):
            block["mixer.window"] = reach + 1 if kind == SLIDING else None
            block["block.bare_mixer"] = i == 0

    def write(self, config: ModelConfig, out: dict[str, Any]) -> None:
        """See Part."""
        windows = [block.mixer.window for block in config.blocks]
        out["layer_types"] = [FULL if window is None else SLIDING for window in windows]
        out["local_attention"] = 2 * (next((w for w in windows if w is not None), 65) - 1)


declare(
    "modernbert", "ModernBertModel",
    [*shape(50368, 768, 22, 12, 8192), Derived("mixer.kv_heads", all_heads), Derived("mixer.head_dim", head_width),
     Key("intermediate_size", "ffn.width", 1152), Act("hidden_activation", "gelu"), Float("norm_eps", "norm.eps", 1e-5),
     Bool("norm_bias", "norm.bias"), ATTENTION_BIAS, Bool("mlp_bias", "ffn.bias"), LocalLayers(),
     LayeredRope(160000.0, 10000.0, "local_rope_theta"), Bool("tie_word_embeddings", "tie_embeddings", True),
     Float("initializer_range", "init_std", 0.02), Float("embedding_dropout", "embed_dropout", 0.0)],
    {"embed": "embeddings.tok_embeddings", "embed_norm": "embeddings.norm", "norm": "final_norm", "blocks": "layers",
     "mixer_norm": "attn_norm", "mixer.q mixer.k mixer.v": "attn.Wqkv", "mixer.o": "attn.Wo", "ffn_norm": "mlp_norm",
     "ffn.gate ffn.up": "mlp.Wi", "ffn.down": "mlp.Wo"},
    norm=NormSpec("layer", bias=False), fixed={"mixer.causal": False}, model={"embed_norm": True},
    older={"global_rope_theta": "rope_theta"},
    ignored="""attention_dropout mlp_dropout initializer_cutoff_factor cls_token_id decoder_bias classifier_pooling
        classifier_dropout classifier_bias classifier_activation deterministic_flash_attn sparse_prediction
        sparse_pred_ignore_index global_attn_every_n_layers reference_compile repad_logits_with_grad norm_eps
        position_embedding_type layer_norm_eps gradient_checkpointing""",
)  # fmt: skip


def layers(values: dict[str, Any]) -> None:
    """Full layers by their period (0: there are none), or layer by layer."""
    period, count = values.pop("global_attn_every_n_layers", 3), values["num_hidden_layers"]
    slides = period if isinstance(period, np.ndarray) else [period == 0 or i % period > 0 for i in range(count)]
    values["layer_types"] = [SLIDING if each else FULL for each in slides]


def every(values: dict[str, Any]) -> None:
    """The period of the full layers, the first one's number being 0; thetas of both kinds of layers."""
    types = values["layer_types"]
    periods = [
        p for p in range(len(types) + 1) if types == [FULL if p and i % p == 0 else SLIDING for i in range(len(types))]
    ]
    if not periods:
        raise ConfigError("GGUF's modern-bert has full layers at equal distances from the first, this model others")
    ropes = values["rope_parameters"]
    if any(rope["rope_type"] != "default" for rope in ropes.values()):
        raise ConfigError("GGUF's modern-bert has no scaled rotary positions, this model some")
    values |= {"global_attn_every_n_layers": periods[0], "local_rope_theta": ropes[SLIDING]["rope_theta"]}
    act = values["hidden_activation"]
    if act not in ("gelu", "silu"):
        raise ConfigError(f"GGUF's modern-bert has hidden_activation gelu or silu, this model {act!r}")


GGUF.add("modernbert", Gguf(
    "modern-bert",
    {**{key: "norm_eps" if value == "layer_norm_eps" else value for key, value in ENCODER_KEYS.items()},
     "attention.sliding_window": "local_attention", "attention.sliding_window_pattern": "global_attn_every_n_layers",
     "rope.freq_base_swa": "local_rope_theta", "hidden_activation": "hidden_activation"},
    fixed={"norm_bias": False, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True},
    fused={"mixer.q mixer.k mixer.v": "attn_qkv", "ffn.gate ffn.up": "ffn_up"}, stated=ENCODER,
    read=layers, write=every,
))  # fmt: skip

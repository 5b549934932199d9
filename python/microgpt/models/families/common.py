"""What families share when they read a config.json."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from ...errors import ConfigError, nearest

# Keys that transformers writes for every model and that say nothing about its mathematics.
COMMON_KEYS = frozenset(
    """
    model_type architectures transformers_version torch_dtype dtype bos_token_id eos_token_id pad_token_id
    use_cache initializer_range tie_word_embeddings _name_or_path output_attentions output_hidden_states
    return_dict is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size
    chunk_size_feed_forward problem_type id2label label2id finetuning_task task_specific_params prefix
    sep_token_id decoder_start_token_id tokenizer_class torchscript pruned_heads
    """.split()
)


class Reader:
    """Typed look-ups in a config.json that remember which keys were used."""

    def __init__(self, config: dict[str, Any], where: str = "config.json") -> None:
        self.config = config
        self.where = where
        self.used: set[str] = set()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """config[key] checked to be of `kind`. Raises ConfigError when it is missing without a default."""
        self.used.add(key)
        value = self.config.get(key, default)
        if value is ...:
            raise ConfigError(f"{self.where}: missing key {key!r}")
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong and value is not default:
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join(each.__name__ for each in kinds)
            raise ConfigError(f"{self.where}: {key} expected {names}, got {value!r}")
        return value

    def finish(self, ignored: Collection[str]) -> None:
        """Warn once about keys that nothing here reads: they may change what the reference computes."""
        known = self.used | set(ignored) | COMMON_KEYS
        unknown = [key for key in self.config if key not in known]
        if unknown:
            hints = ", ".join(f"{key!r}{nearest(key, known)}" for key in unknown)
            warnings.warn(f"{self.where}: keys not understood and ignored: {hints}", stacklevel=3)

"""What families share when they read a config.json."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from ...errors import ConfigError, nearest
from ...nn.checks import number, whole
from ...nn.rope import RopeScaling, RopeSpec

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
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and not {bool, object} & set(kinds))
        if wrong and value is not default:
            names = " or ".join(each.__name__ for each in kinds if each is not type(None))
            raise ConfigError(f"{self.where}: {key} expected {names}, got {value!r}")
        return value

    def finish(self, ignored: Collection[str]) -> None:
        """Warn once about keys that nothing here reads: they may change what the reference computes."""
        known = self.used | set(ignored) | COMMON_KEYS
        unknown = [key for key in self.config if key not in known]
        if unknown:
            hints = ", ".join(f"{key!r}{nearest(key, known)}" for key in unknown)
            warnings.warn(f"{self.where}: keys not understood and ignored: {hints}", stacklevel=3)


# keys of transformers' rope_parameters <-> fields of RopeScaling
SCALING_KEYS = {name: name for name in """factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate
    low_freq_factor high_freq_factor short_factor long_factor""".split()}  # fmt: skip
SCALING_KEYS |= {"original_max_position_embeddings": "original", "partial_rotary_factor": "share"}
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("factor", "short_factor", "long_factor", "original_max_position_embeddings"),
    "proportional": ("partial_rotary_factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
OPTIONAL = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor",),
    "proportional": ("factor",),
}
OLD_NAMES = {"su": "longrope", "mrope": "default"}


def read_rope(get: Reader, head_dim: int, max_positions: int, theta: float = 10000.0, share: float = 1.0,
              known: tuple[str, ...] = ()) -> RopeSpec:  # fmt: skip
    """Rotary positions from either dialect: rope_parameters (transformers 5), or rope_theta and rope_scaling.

    `theta` and the `share` of a head that turns are the family's defaults; `known` keys are somebody else's.
    """
    where = "rope_parameters" if isinstance(get.config.get("rope_parameters"), dict) else "rope_scaling"
    values: dict[str, Any] = dict(get.get(where, (dict, type(None)), None) or {})
    get.used |= {"rope_parameters", "rope_scaling"}
    theta = values.pop("rope_theta", get.get("rope_theta", (float, int), theta))
    share = values.pop("partial_rotary_factor", get.get("partial_rotary_factor", (float, int), share))
    for taken in ("max_position_embeddings", *known):
        values.pop(taken, None)
    old_name = values.pop("type", "default")  # transformers below 4.45 wrote this; both may stand
    kind = str(values.pop("rope_type", old_name))
    kind = OLD_NAMES.get(kind, kind)
    number(f"config.json: {where}.rope_theta", theta, 1e-6)
    number(f"config.json: {where}.partial_rotary_factor", share, 1e-6, 1.0)
    dims = int(head_dim * share)
    scaling = None
    if kind == "proportional":
        values["partial_rotary_factor"], dims = share, head_dim
    if kind != "default":
        if kind not in NEEDED:
            kinds = ", ".join(["default", *NEEDED])
            raise ConfigError(f"config.json: {where}.rope_type {kind!r}{nearest(str(kind), NEEDED)}; known: {kinds}")
        values = {key: value for key, value in values.items() if value is not None}
        if "original_max_position_embeddings" in NEEDED[kind]:  # the model's own by default, as in transformers
            outer = get.get("original_max_position_embeddings", (int, type(None)), None)
            original = values["original_max_position_embeddings"] = outer or values.get(
                "original_max_position_embeddings", max_positions
            )
            whole(f"config.json: {where}.original_max_position_embeddings", original, 1, 2**24)
            if kind != "llama3":
                values.setdefault("factor", max_positions / original)
        for key in NEEDED[kind]:
            if key not in values:
                raise ConfigError(f"config.json: {where}: missing key {key!r} for rope_type {kind}")
        for key in values:
            if key not in SCALING_KEYS:
                hint = nearest(key, SCALING_KEYS)
                warnings.warn(f"config.json: {where}.{key} is not understood and ignored{hint}", stacklevel=4)
        try:
            scaling = RopeScaling(kind, **{SCALING_KEYS[k]: v for k, v in values.items() if k in SCALING_KEYS})
        except ConfigError as error:
            raise ConfigError(f"config.json: {where}: {error}") from None
    return RopeSpec(theta, 0 if dims == head_dim else dims, scaling=scaling)


def write_rope(rope: RopeSpec, head_dim: int) -> dict[str, Any]:
    """The inverse of read_rope: rope_parameters for transformers 5, and rope_theta for older readers."""
    values: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.dims:
        values["partial_rotary_factor"] = rope.dims / head_dim
    if rope.scaling is not None:
        values["rope_type"] = rope.scaling.kind
        for theirs in (*NEEDED[rope.scaling.kind], *OPTIONAL.get(rope.scaling.kind, ())):
            value = getattr(rope.scaling, SCALING_KEYS[theirs])
            if value or theirs == "truncate":  # None and 0 mean: derived
                values[theirs] = list(value) if isinstance(value, tuple) else value
    return {"rope_parameters": values, "rope_theta": rope.theta}

"""How families look in GGUF files: a table a family, from which both directions follow.

Hyperparameters are translated to and from the keys of config.json, so a family's `read` and `write` check them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...io.names import Packing
from ...nn.checks import require, whole
from ...registry import Registry
from ..config import ModelConfig

# Our module <-> its name in GGUF, outside and inside of blocks.
OUTSIDE = {
    "embed": "token_embd",
    "positions": "position_embd",
    "token_types": "token_types",
    "embed_norm": "token_embd_norm",
    "norm": "output_norm",
    "head": "output",
}
INSIDE = {
    "mixer_norm": "attn_norm",
    "mixer.q": "attn_q",
    "mixer.k": "attn_k",
    "mixer.v": "attn_v",
    "mixer.q_norm": "attn_q_norm",
    "mixer.k_norm": "attn_k_norm",
    "mixer.o": "attn_output",
    "mixer_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
    "ffn_post_norm": "post_ffw_norm",
}
# Metadata keys (without "ARCH.") <-> what config.json of Llama and all that came after it calls them.
LLAMA_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}

NO_WIDTH = {key: value for key, value in LLAMA_KEYS.items() if value != "head_dim"}  # where heads share the width
LAYER_KEYS = {key: value for key, value in NO_WIDTH.items() if "rms" not in key}
LAYER_KEYS["attention.layer_norm_epsilon"] = "layer_norm_eps"
ENCODER_KEYS = {key: value for key, value in LAYER_KEYS.items() if value != "num_key_value_heads"}
ENCODER = {"attention.causal": False}  # what encoders' files state
WINDOW = {"attention.sliding_window": "sliding_window"}
QK_AFTER = {"mixer_norm": "post_attention_norm", "ffn_norm": "post_ffw_norm"}  # norms on what is added


class Metadata(dict[str, Any]):
    """What the tables made of a file's metadata, under the keys of config.json; `names`: what those are in the file."""

    def __init__(self, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
        super().__init__(values)
        self.names = names

    def require(self, condition: bool, name: str, expected: object) -> None:
        """Raise ConfigError unless `condition`, with what was expected of a value."""
        require(condition, f"metadata {self.names.get(name, name)!r}", expected, self.get(name))

    def whole(self, name: str, least: int = 0, most: int = 2**31 - 1) -> int:
        """A whole number in [least, most]. Raises ConfigError."""
        found: Any = self.get(name)
        whole(f"metadata {self.names.get(name, name)!r}", found, least, most)
        return int(found)

    def over(self, name: str, other: str) -> int:
        """How many times a number is another one. Raises ConfigError."""
        count = self.whole(other, 1)
        expected = f"a multiple of {self.names.get(other, other)} {count}"
        self.require(self.whole(name, 1) % count == 0, name, expected)
        return int(self[name] // count)

    def each(self, name: str, count: int) -> list[int]:
        """Whole numbers of `count` blocks, or one for all. Raises ConfigError."""
        found: Any = self.get(name)
        values = found.tolist() if isinstance(found, np.ndarray) else [found] * count
        good = len(values) == count and all(type(value) in (int, bool) and 0 <= value < 2**31 for value in values)
        self.require(good, name, f"a whole number, or {count} of them, one a block")
        return [int(value) for value in values]


@dataclass(frozen=True)
class Gguf:
    """A family in GGUF files.

    `arch`: the value of general.architecture. `keys`: metadata key (without "ARCH.") -> key of config.json. `fixed`:
    what the architecture implies, in terms of config.json; `assumed`: what reading assumes and writing leaves out.
    `stated`: keys (without "ARCH.") that every file has with these values.
    `present`: a switch of config.json -> the tensor that is in the file where it is on; with a "*" in its name, a list
    of the blocks that have it. `rows`: a number of config.json -> the tensor that has so many rows, which may be
    missing, and the whole key that says so too. `names`: departures from INSIDE and OUTSIDE. `fused`: modules of a
    block -> the one tensor that their rows are joined in ("mixer.q mixer.k mixer.v": "attn_qkv").
    `interleaved`: rows of q and k lie in the order of pairs that turn together (2i, 2i + 1) and not (i, i + D/2).
    `plus_one`: norms store their weight plus the one that it is added to.
    `rope`: rotary positions stand in the usual keys. `partial`: heads may turn in part. `truncate`: YaRN's, which has
    no key.
    `told_by`: where several families share an `arch`, the metadata key (without "ARCH.") of this one's files alone,
    which is there and not false; of those that have it too, this one's lack `untold_by`.
    `family`: whose table it is, where that is not its name: one that has several, of which this one is of the models
    that it `holds`.
    `variant`: more departures from the usual names, that depend on the model; "3.mixer.o" is that of block 3.
    `numbers`: parameters of a block of one number each -> the metadata key (whole) that holds those of all blocks;
    `constants`: keys of the same kind whose numbers are always these. `packings`: how parameters of a block lie in the
    file, by their names ("mixer.q mixer.gate.weight" of what is `fused`, "3.mixer.o.weight" of block 3); may depend
    on the model.
    `folded`: the model that a file holds instead of one with multipliers, and by how much which of its weights grow.
    `read` changes what the tables made of a file into keys of config.json, in place; `write` does the opposite.
    """

    arch: str
    keys: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    stated: Mapping[str, Any] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    plus_one: bool = False
    rope: bool = True
    partial: bool = False
    truncate: bool = True
    told_by: str = ""
    untold_by: str = ""
    family: str = ""
    holds: Callable[[ModelConfig], bool] = lambda config: True
    variant: Callable[[ModelConfig], Mapping[str, str]] = lambda config: {}
    numbers: Mapping[str, str] = field(default_factory=dict)
    packings: Mapping[str, Packing] | Callable[[ModelConfig], Mapping[str, Packing]] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)
    folded: Callable[[ModelConfig], tuple[ModelConfig, Mapping[str, float]]] = lambda config: (config, {})
    read: Callable[[Metadata], None] = lambda values: None
    write: Callable[[dict[str, Any]], None] = lambda values: None

    def told(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a file of its architecture is this family's and no other's."""
        found = metadata.get(f"{self.arch}.{self.told_by}", False)
        return found is not False and f"{self.arch}.{self.untold_by}" not in metadata

    def name(self, ours: str) -> str | None:
        """The tensor that a parameter of ours is in ("blocks.3.mixer.q.weight" -> "blk.3.attn_q.weight")."""
        if ours in ("head", "head_bias"):
            return "output.weight" if ours == "head" else "output.bias"
        module, _, kind = ours.rpartition(".")
        if not module.startswith("blocks."):
            table = {**OUTSIDE, **self.names}
            return f"{table[module]}.{kind}" if module in table else None
        _, number, inner = module.split(".", 2)
        if f"{inner}.{kind}" in self.numbers:
            return f"{self.numbers[f'{inner}.{kind}']}[{number}]"
        table = {**INSIDE, **self.names}
        table |= {part: theirs for parts, theirs in self.fused.items() for part in parts.split()}
        own = f"{number}.{inner}"
        inner = own if own in table else inner
        if f"{inner}.{kind}" in table:  # a parameter that is no weight or bias
            return f"blk.{number}.{table[f'{inner}.{kind}']}"
        return f"blk.{number}.{table[inner]}.{kind}" if inner in table else None


GGUF: Registry[Gguf] = Registry("family of GGUF files")  # by the name of the family, or of a table of it

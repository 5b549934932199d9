"""ModelConfig: a decoder as a list of blocks, and its JSON form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..nn.checks import number, require, whole
from ..nn.spec import BlockSpec, NormSpec, Shapes, below, check_types, count, from_dict, linear, to_dict


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model.

    `learned_positions` adds a table of `max_positions` rows to the embeddings; rotary and ALiBi positions stand in the
    blocks' mixers. `final_norm` or `embed_norm` None leaves the norm out. `embed_scale` multiplies the embeddings,
    `logit_scale` the logits, and `logit_soft_cap` then bounds them by cap * tanh(logit / cap). `family` names the
    Hugging Face layout that the model is saved in; "microgpt" is our own and holds any combination.

    An encoder's mixers are not causal. `token_types`: rows of a table whose first row is added to all embeddings (BERT
    tells two texts apart with it); `pooler`: a layer over the first token of each sequence.
    """

    vocab_size: int
    width: int
    max_positions: int
    blocks: tuple[BlockSpec, ...]
    family: str = "microgpt"
    learned_positions: bool = True
    tie_embeddings: bool = True
    final_norm: NormSpec | None = field(default_factory=NormSpec)
    embed_norm: NormSpec | None = None
    embed_dropout: float = 0.0
    head_bias: bool = False
    init_std: float = 0.02
    scale_residual_init: bool = True
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    token_types: int = 0
    pooler: bool = False

    def __post_init__(self) -> None:
        check_types(self, "config")
        whole("vocab_size", self.vocab_size, 1, 2**24)
        whole("width", self.width, 1, 2**20)
        whole("max_positions", self.max_positions, 1, 2**24)
        require(1 <= len(self.blocks) <= 1024, "blocks", "1 to 1024 blocks", len(self.blocks))
        for i, block in enumerate(self.blocks):
            source = getattr(block.mixer, "kv_from", None)
            if source is not None:
                require(source < i, f"blocks[{i}]: kv_from", "an earlier block", source)
                other = self.blocks[source].mixer
                kinds = [[getattr(mixer, name, None) for name in ("kv_heads", "head_dim", "kind")]
                         for mixer in (other, block.mixer)]  # fmt: skip
                require(kinds[0] == kinds[1] and other.kv_from is None, f"blocks[{i}]: kv_from",
                        "a block with key/value heads of its own that are like this one's", source)  # fmt: skip
        number("embed_dropout", self.embed_dropout, 0.0, 1.0)
        number("init_std", self.init_std, 0.0)
        whole("token_types", self.token_types, 0, 2**16)
        for name in ("embed_scale", "logit_scale", "logit_soft_cap"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), 1e-9)

    def shapes(self) -> Shapes:
        """Name and shape of every parameter, without building the model."""
        made: Shapes = {"embed.weight": (self.vocab_size, self.width)}
        if self.learned_positions:
            made["positions.weight"] = (self.max_positions, self.width)
        if self.token_types:
            made["token_types.weight"] = (self.token_types, self.width)
        if self.embed_norm is not None:
            made |= below("embed_norm", self.embed_norm.shapes(self.width))
        for i, block in enumerate(self.blocks):
            made |= below(f"blocks.{i}", block.shapes(self.width))
        if self.final_norm is not None:
            made |= below("norm", self.final_norm.shapes(self.width))
        if not self.tie_embeddings:
            made["head"] = (self.vocab_size, self.width)
        if self.pooler:
            made |= linear("pooler", self.width, self.width, True)
        return made | ({"head_bias": (self.vocab_size,)} if self.head_bias else {})

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one: what a language model needs."""
        return all(layer.causal for block in self.blocks for layer in block.layers)

    def num_parameters(self) -> int:
        """Numbers in all parameters, without building the model."""
        return count(self.shapes())

    def flops_per_token(self, context: int) -> int:
        """FLOPs of a forward for one token that sees `context` others: 2 a weight used, and attention's own."""
        tables = self.max_positions * self.learned_positions + self.token_types
        weights = self.num_parameters() - tables * self.width
        if not self.tie_embeddings:
            weights -= self.vocab_size * self.width  # the embedding is a look-up
        layers = [layer for block in self.blocks for layer in block.layers]
        weights -= sum(layer.idle(self.width) for layer in layers)
        return 2 * weights + sum(layer.flops(context) for layer in layers)

    def state_numbers(self) -> int:
        """Numbers that a sequence keeps for each token: cached keys and values."""
        return sum(layer.state_numbers() for block in self.blocks for layer in block.layers)

    def cache_bytes(self, stored: str = "bfloat16") -> int:
        """Bytes of cached keys and values a token, held as float32, bfloat16 or int8 with its scales."""
        return sum(layer.cache_bytes(stored) for block in self.blocks for layer in block.layers)

    def fixed_state_numbers(self) -> int:
        """Numbers that a sequence keeps whatever its length: recurrent states."""
        return sum(layer.fixed_state_numbers() for block in self.blocks for layer in block.layers)

    def activations(self, remat: bool = False) -> int:
        """Numbers a token that training keeps for the backward; `remat` keeps the input of each block and one block."""
        blocks = [block.activations(self.width) for block in self.blocks]
        return 2 * self.width + (len(blocks) * self.width + max(blocks) if remat else sum(blocks))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = to_dict(self)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse. Raises ConfigError naming unknown, missing or impossible keys."""
        return from_dict(cls, values, "config")

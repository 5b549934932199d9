"""Decoder: embeddings, blocks, final norm, head. Built from a ModelConfig; knows no family."""

from __future__ import annotations

import math
from typing import Any

from .. import _kernels as k
from .. import ops
from ..errors import UsageError
from ..nn.block import Block
from ..nn.context import Ctx
from ..nn.linear import Embedding, Linear, drop
from ..nn.module import Module, Parameter
from ..nn.norm import Norm
from ..nn.place import Place
from ..qtensor import QTensor
from ..state.spec import KVSpec, StateSpec
from ..tensors import Tensor
from .config import ModelConfig

Array = k.Array


class Decoder(Module):
    """A decoder-only language model over packed tokens. `dtype` is float32, bfloat16, or float64 for gradient checks.

    A bfloat16 model sums in float32, and its losses, logits and parameter gradients are float32. `seed` None draws no
    initial values: the caller fills every parameter.
    """

    def __init__(self, config: ModelConfig, dtype: str = "float32", seed: int | None = 0) -> None:
        self.config = config
        self.dtype = dtype
        width, std = config.width, config.init_std
        # Residual projections start smaller, so that the stream's variance does not grow with depth (GPT-2).
        out_std = std / math.sqrt(2 * len(config.blocks)) if config.scale_residual_init else std
        self.embed = Embedding(config.vocab_size, width, std, dtype)
        self.positions = Embedding(config.max_positions, width, std, dtype) if config.learned_positions else None
        self.token_types = Embedding(config.token_types, width, std, dtype) if config.token_types else None
        self.embed_norm = Norm(config.embed_norm, width, dtype) if config.embed_norm else None
        layers = len(config.blocks)
        self.blocks = [
            Block(spec, Place(width, i, layers, std, out_std, dtype, config.max_positions))
            for i, spec in enumerate(config.blocks)
        ]
        for block in self.blocks:  # blocks whose keys and values later ones use
            source = getattr(block.spec.mixer, "kv_from", None)
            if source is not None:
                self.blocks[source].mixer.shared = True
        self.norm = Norm(config.final_norm, width, dtype) if config.final_norm else None
        self.head: Any = None if config.tie_embeddings else Parameter((config.vocab_size, width), dtype, std=std)
        self.pooler = Linear(width, width, True, std, dtype) if config.pooler else None
        self.head_bias = Parameter((config.vocab_size,), dtype) if config.head_bias else None
        self.kv_dtype: str | None = None  # what caches of keys and values hold; None: the layers' own type
        self.remat = False  # recompute each block in the backward instead of keeping its activations
        for slot, (_, module) in enumerate(self._remembering()):
            module.slot = slot
        if seed is not None:
            self.initialize(seed)

    def _remembering(self) -> list[tuple[str, Any]]:
        """The modules that keep something of a sequence, in order."""
        return [(name, module) for name, module in self.named_modules() if hasattr(module, "state_spec")]

    @property
    def head_weight(self) -> Any:
        """(V, D) of the output projection: the embedding where they are tied."""
        return self.embed.weight if self.head is None else self.head

    def state_specs(self) -> list[StateSpec]:
        """What a sequence must remember, slot by slot."""
        specs = [module.state_spec() for _, module in self._remembering()]
        return [spec.kept(self.kv_dtype) if isinstance(spec, KVSpec) else spec for spec in specs]

    def enter(self, tokens: Array, ctx: Ctx) -> Tensor:
        """tokens (T) int32 -> (T, D) that the first block is given."""
        ctx.check_tokens(tokens.size)
        x: Tensor = self.embed(tokens)
        if self.config.embed_scale != 1.0:
            x = x * self.config.embed_scale
        if self.positions is not None:
            x = x + self.positions(ctx.layout.positions)
        if self.token_types is not None:
            x = x + self.token_types.weight[0]
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return drop(x, ctx, self.config.embed_dropout, stream=0)

    def hidden(self, tokens: Array, ctx: Ctx) -> Tensor:
        """tokens (T) int32 -> (T, D) after the final norm."""
        x = self.enter(tokens, ctx)
        for block in self.blocks:
            # What crosses from block to block besides the stream is out of a checkpoint's sight.
            remat = self.remat and not any(getattr(each, "crosses", False) for each in (block.mixer, block.ffn))
            x = ops.checkpoint(lambda y, block=block: block(y, ctx), x) if remat else block(x, ctx)
        return x if self.norm is None else self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        y: Tensor = ops.linear(self._scaled(hidden), self.head_weight, self.head_bias, wide_out=True)
        cap = self.config.logit_soft_cap
        return y if cap is None else ops.tanh(y * (1.0 / cap)) * cap

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden if self.config.logit_scale == 1.0 else hidden * self.config.logit_scale

    def pooled(self, hidden: Tensor, ctx: Ctx) -> Tensor:
        """(T, D) -> (sequences, D): tanh of a layer over each first token. Raises UsageError without a pooler."""
        if self.pooler is None:
            raise UsageError("this model has no pooler")
        first: Tensor = ops.embedding(hidden, ctx.layout.q_start.view((ctx.layout.sequences,)))
        y: Tensor = ops.tanh(self.pooler(first, ctx))
        return y

    def loss(self, tokens: Array, targets: Array, ctx: Ctx, reduction: str = "mean", **options: float) -> Tensor:
        """Next-token cross-entropy in nats; targets (T) int32, negative ones are ignored.

        `options`: label_smoothing and z_loss of ops.cross_entropy.
        """
        hidden = self.hidden(tokens, ctx)
        whole = self.head_bias is not None or self.config.logit_soft_cap is not None
        if whole or isinstance(self.head_weight, QTensor):
            y: Tensor = ops.cross_entropy(self.logits(hidden), targets, reduction=reduction, **options)
        else:
            y = ops.linear_cross_entropy(
                self._scaled(hidden), self.head_weight, targets, reduction=reduction, **options
            )
        return y

    def flops_per_token(self, context: int) -> int:
        """See ModelConfig."""
        return self.config.flops_per_token(context)

    def state_bytes(self, tokens: int) -> int:
        """Memory of what a sequence of so many tokens remembers."""
        return sum(spec.bytes(tokens) for spec in self.state_specs())

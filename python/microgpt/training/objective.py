"""Objectives: what turns a batch into a loss. The trainer never learns their names."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from .. import _kernels as k
from ..data.batches import BatchBlock
from ..models.decoder import Decoder
from ..nn.context import Ctx, Dropout, Layout
from ..tensors import Tensor

Array = k.Array


class Objective(Protocol):
    """Knows the model, and says how batches are fed to a recorded step."""

    def buffers(self) -> Any:
        """Memory for one batch, read by the recorded kernels."""

    def feed(self, buffers: Any, block: BatchBlock, row: int) -> None:
        """Copy batch `row` of a block into the buffers."""

    def loss(self, buffers: Any, step: Array | None) -> Tensor:
        """The mean loss of the batch; `step` counts steps for dropout, None in validation."""

    def validation_record(self, loss: float) -> dict[str, float]:
        """`val_loss` and whatever else the objective makes of it."""


class LmBuffers:
    """One batch of packed tokens on its way into the kernels."""

    def __init__(self, tokens: int, sequences: int, number: int = 0) -> None:
        self.number = number  # of the micro-batch: tells their dropout masks apart
        self.tokens = k.empty((tokens,), "int32")
        self.targets = k.empty((tokens,), "int32")
        self.layout = Layout(tokens, sequences)


class LanguageModeling:
    """Next-token prediction: mean cross-entropy over the targets that are not padding.

    `options` are the loss's in training (label_smoothing, z_loss); validation has none. `bytes_per_token` of the
    validation text gives bits per byte, which compare across tokenizers.
    """

    def __init__(
        self,
        model: Decoder,
        tokens: int,
        sequences: int,
        seed: int,
        options: dict[str, float] | None = None,
        bytes_per_token: float | None = None,
    ) -> None:
        self.model = model
        self.options = options or {}
        self.bytes_per_token = bytes_per_token
        self.tokens = tokens
        self.sequences = sequences
        self.seed = seed
        self._made = 0

    def buffers(self) -> LmBuffers:
        """See Objective."""
        self._made += 1
        return LmBuffers(self.tokens, self.sequences, self._made - 1)

    def feed(self, buffers: LmBuffers, block: BatchBlock, row: int) -> None:
        """See Objective."""
        buffers.tokens.copy_from(block.tokens[row])
        buffers.targets.copy_from(block.targets[row])
        buffers.layout.feed(block.cu_seqlens[row], block.positions[row])

    def loss(self, buffers: LmBuffers, step: Array | None) -> Tensor:
        """See Objective."""
        seed = (self.seed + buffers.number * 0x9E3779B97F4A7C15) % 2**64
        dropout = None if step is None else Dropout(seed, step)
        options: Any = {} if step is None else self.options
        ctx = Ctx(buffers.layout, dropout=dropout)
        loss = self.model.loss(buffers.tokens, buffers.targets, ctx, **options)
        aux = None if step is None else ctx.aux_loss()
        return loss if aux is None else loss + aux

    def validation_record(self, loss: float) -> dict[str, float]:
        """See Objective."""
        bits = {"val_bits_per_byte": loss / math.log(2) / self.bytes_per_token} if self.bytes_per_token else {}
        return {"val_loss": loss, **bits}


def whole_text_loss(model: Decoder, ids: np.ndarray[Any, Any]) -> Tensor:
    """Mean next-token loss of one sequence of ids (T), T >= 2, on the tape."""
    tokens = np.ascontiguousarray(ids, np.int32)
    layout = Layout.packed([len(tokens) - 1])
    return model.loss(k.from_numpy(tokens[:-1]), k.from_numpy(tokens[1:]), Ctx(layout))

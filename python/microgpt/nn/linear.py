"""Linear with adapter hooks, and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _kernels as k
from .. import ops
from ..autograd import JoinedSlot, state
from ..tensors import Tensor, result
from .context import Ctx
from .module import Module, Parameter


class Adapter(Module):
    """Changes what a Linear computes without replacing it: LoRA, masks, fake quantization.

    `weight` sees the weight before the product; `output` the result y = x w^T + b before activation and residual.
    Override one or both. Beside a layer of experts `offsets` are where each one's rows begin in x.
    """

    offsets: Any = None

    def weight(self, weight: Tensor, ctx: Ctx) -> Tensor:
        """The weight to use instead."""
        return weight

    def output(self, x: Tensor, weight: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        """The output to use instead."""
        return y


class Linear(Module):
    """y = residual + act(x weight^T + bias); weight is (out, in) as in PyTorch. `std` spreads the initial weight."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, std: float = 0.02, dtype: str = "float32") -> None:
        self.weight: Any = Parameter((outputs, inputs), dtype, std=std)  # or a QTensor
        self.bias = Parameter((outputs,), dtype) if bias else None
        self.adapters: list[Adapter] = []

    def __call__(
        self, x: Tensor, ctx: Ctx, act: str = "none", residual: Tensor | None = None, rows: Any = None
    ) -> Tensor:
        if not self.adapters:
            y: Tensor = ops.linear(x, self.weight, self.bias, residual, act, False, rows)  # keywords take longer
            return y
        weight: Tensor = self.weight
        for adapter in self.adapters:
            weight = adapter.weight(weight, ctx)
        y = ops.linear(x, weight, self.bias)
        for adapter in self.adapters:
            y = adapter.output(x, weight, y, ctx)
        if act != "none":
            y = ops.activation(y, act)
        return y if residual is None else residual + y


class GroupedLinear(Module):
    """y = x weight[e]^T + bias[e] for the rows of each expert e; weight (experts, out, in). Adapters see all of it."""

    def __init__(
        self, experts: int, inputs: int, outputs: int, bias: bool = True, std: float = 0.02, dtype: str = "float32"
    ) -> None:
        self.weight: Any = Parameter((experts, outputs, inputs), dtype, std=std)  # or a QTensor
        self.bias = Parameter((experts, outputs), dtype) if bias else None
        self.adapters: list[Adapter] = []

    def __call__(self, x: Tensor, offsets: Any, ctx: Ctx, rows: Any = None) -> Tensor:
        """x (R, in) in the order of experts, whose first rows are offsets (experts + 1) -> (R, out). `rows`: what
        project_experts() made of tokens x."""
        weight: Tensor = self.weight
        for adapter in self.adapters:
            adapter.offsets = offsets
            weight = adapter.weight(weight, ctx)
        y: Tensor = ops.grouped_linear(x, weight, self.bias, offsets, rows=rows)
        for adapter in self.adapters:
            y = adapter.output(x, weight, y, ctx)
        return y


def project(x: Tensor, ctx: Ctx, linears: list[Linear]) -> list[Tensor]:
    """Several projections of the same x (q, k, v; gate, up): one kernel, or x is at least prepared once for all."""
    if all(_bare(linear) for linear in linears):
        ys = ops.joined_linear(x, [linear.weight for linear in linears], [linear.bias for linear in linears])
        if ys is not None:
            return ys
    rows = ops.shared_rows(x, [linear.weight for linear in linears])
    return [linear(x, ctx, rows=rows) for linear in linears]


def _bare(linear: Linear) -> bool:
    """Whether its call is the product and nothing else."""
    return not linear.adapters and type(linear).__call__ is Linear.__call__


def side_by_side(linears: Sequence[Linear]) -> tuple[Tensor, Tensor | None] | None:
    """The weights and biases of several layers as one weight and one bias, where they follow each other in memory.

    That is so where an optimizer has moved them into its arenas. Their gradients must lie so too, or none be wanted.
    """
    if not all(_bare(linear) and isinstance(linear.weight, Tensor) for linear in linears):
        return None
    weight = _joined([linear.weight for linear in linears])
    if weight is None or all(linear.bias is None for linear in linears):
        return None if weight is None else (weight, None)
    bias = None if any(linear.bias is None for linear in linears) else _joined([linear.bias for linear in linears])
    return None if bias is None else (weight, bias)


def _joined(parameters: Sequence[Any]) -> Tensor | None:
    data = k.joined([each.data for each in parameters])
    if data is None:
        return None
    slots = [each.slot for each in parameters]
    if not state.enabled or all(slot is None for slot in slots):
        return result(data)
    if any(slot is None or slot.array is None for slot in slots):
        return None
    gradient = k.joined([slot.array for slot in slots])
    return None if gradient is None else result(data, JoinedSlot(slots, gradient))


def project_experts(x: Tensor, ctx: Ctx, routing: Any, linears: list[GroupedLinear]) -> list[Tensor]:
    """project() for layers of experts: x (T, in) are tokens, which go where `routing` says; each result (R, out)."""
    plain = not any(linear.adapters for linear in linears)  # they look at numbers
    rows = ops.expert_rows(x, [linear.weight for linear in linears], routing) if plain else None
    if rows is None:
        x = ops.gather_rows(x, routing.order, routing.place)
    return [linear(x, routing.offsets, ctx, rows=rows) for linear in linears]


class Embedding(Module):
    """Rows of a table by number."""

    def __init__(self, count: int, width: int, std: float = 0.02, dtype: str = "float32") -> None:
        self.weight: Any = Parameter((count, width), dtype, std=std)  # or a QTensor

    def __call__(self, ids: Any) -> Tensor:
        y: Tensor = ops.embedding(self.weight, ids)
        return y


def drop(x: Tensor, ctx: Ctx, p: float, stream: int) -> Tensor:
    """Dropout in training, nothing otherwise. `stream` tells the places in a model apart."""
    if p == 0.0 or ctx.dropout is None:
        return x
    y: Tensor = ops.dropout(x, p, ctx.dropout.step, ctx.dropout.seed, stream)
    return y

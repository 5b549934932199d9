"""Mixture of experts: a router sends each token to a few of many gated linear units (Shazeer et al. 2017,
arXiv:1701.06538). No token is dropped: shapes do not depend on where tokens go."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ... import _kernels as k
from ... import ops
from ...autograd import is_grad_enabled
from ...ops import raw
from ...ops.experts import Routing, score_code
from ...ops.layers import act_code
from ...tensors import Tensor, full, wide, zeros
from ..checks import number, require, whole
from ..context import Ctx
from ..linear import GroupedLinear, Linear, project_experts
from ..module import Module, Parameter
from ..place import Place
from ..spec import LayerSpec, Shapes, below, linear
from . import feed_forward
from .mlp import Glu, GluSpec, Mlp, MlpSpec

Array = k.Array


@dataclass(frozen=True)
class MoeSpec(LayerSpec):
    """`chosen` of `experts` gated units of `width` work on a token; their outputs are added, each times its weight.
    Without `gated`, units are act(x Wu) Wd, the shared one too (Nemotron 3).

    Weights are `score` softmax over all experts or sigmoid of each, `renormalize`d to a sum of one (`eps` is added to
    the sum of sigmoids) and times `scale`. `bias`: experts have biases; `router_bias`. `limit`: gates are bounded by
    it, ups on both sides, and the unit is gate * sigmoid(alpha * gate) * (up + 1) (gpt-oss); else act(gate) * up.
    `shared`: width of a unit that works on every token, with `shared_gate` times the sigmoid of a number of its own
    (Qwen2). Balance in training: `balance_loss` times Switch's loss (arXiv:2101.03961, eq. 4), or `balance_bias`,
    numbers added to the scores for the choice, which move by `balance_rate` a step towards experts with little to do
    (arXiv:2408.15664, algorithm 1).
    """

    kind: ClassVar[str] = "moe"
    experts: int
    width: int
    chosen: int
    act: str = "silu"
    gated: bool = True
    score: str = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    eps: float = 0.0
    bias: bool = False
    router_bias: bool = False
    limit: float | None = None
    alpha: float = 1.702
    shared: int = 0
    shared_gate: bool = False
    balance_loss: float = 0.0
    balance_bias: bool = False
    balance_rate: float = 0.0

    def __post_init__(self) -> None:
        whole("moe experts", self.experts, 1, 2**16)
        whole("moe width", self.width)
        whole("moe chosen", self.chosen, 1, self.experts)
        act_code(self.act)
        score_code(self.score)
        number("moe scale", self.scale, 1e-6)
        number("moe eps", self.eps, 0.0)
        number("moe alpha", self.alpha, 1e-6)
        if self.limit is not None:
            number("moe limit", self.limit, 1e-6)
            require(self.gated, "moe limit", "None without gates", self.limit)
        whole("moe shared", self.shared, 0)
        number("moe balance_loss", self.balance_loss, 0.0)
        number("moe balance_rate", self.balance_rate, 0.0)
        require(self.shared > 0 or not self.shared_gate, "moe shared_gate", "False without a shared unit", True)
        require(self.balance_bias or not self.balance_rate, "moe balance_rate", "0 without balance_bias",
                self.balance_rate)  # fmt: skip

    def _expert(self, width: int) -> int:
        """Numbers of one expert."""
        inner = (1 + self.gated) * self.width
        return width * (inner + self.width) + self.bias * (inner + width)

    @property
    def shared_spec(self) -> GluSpec | MlpSpec:
        """The shared unit."""
        return GluSpec(self.shared, self.act) if self.gated else MlpSpec(self.shared, self.act, bias=False)

    def shapes(self, width: int) -> Shapes:
        """Its parameters over a stream of `width`."""
        made = linear("router", width, self.experts, self.router_bias)
        for name in ("gate", "up", "down")[not self.gated :]:
            inputs, outputs = (self.width, width) if name == "down" else (width, self.width)
            made[f"{name}.weight"] = (self.experts, outputs, inputs)
            if self.bias:
                made[f"{name}.bias"] = (self.experts, outputs)
        if self.balance_bias:
            made["balance"] = (self.experts,)
        if self.shared:
            made |= below("shared", self.shared_spec.shapes(width))
        return made | (linear("shared_gate", width, 1, False) if self.shared_gate else {})

    def idle(self, width: int) -> int:
        """Those of the experts that a token does not go to."""
        return (self.experts - self.chosen) * self._expert(width)

    def activations(self, width: int) -> int:
        """Numbers a token that the backward needs: for each expert its row, gate, up, product and output."""
        own = 2 + self.gated + 4 * (self.limit is not None)
        shared = self.shared_spec.activations(width) if self.shared else 0
        shared += 2 * width * self.shared_gate
        return self.experts + self.chosen * (2 * width + own * self.width + 1) + shared

    @classmethod
    def examples(cls, width: int) -> dict[str, LayerSpec]:
        """Those of Mixtral, Qwen2, DeepSeek, gpt-oss and Nemotron 3."""
        return {
            "softmax": cls(4, 24, 2),
            "shared": cls(5, 16, 3, "gelu", renormalize=False, shared=24, shared_gate=True),
            "sigmoid": cls(4, 16, 2, score="sigmoid", scale=2.5, eps=1e-6, shared=16, balance_bias=True,
                           balance_rate=1e-3),
            "limit": cls(4, 16, 2, bias=True, router_bias=True, limit=0.5),
            "ungated": cls(4, 16, 2, "relu2", gated=False, score="sigmoid", eps=1e-20, bias=True, shared=24),
            "one": cls(4, 16, 1, renormalize=False, balance_loss=0.01),
        }  # fmt: skip


@dataclass
class Balance:
    """What a layer's routing says about its balance: how often each expert was chosen, `load` (E), and the sum of
    scores over `rows` tokens, `scores` (E)."""

    coefficient: float
    load: Array
    scores: Tensor
    rows: int

    @property
    def key(self) -> Hashable:
        """Terms with the same key make one loss."""
        return "balance", self.coefficient, self.load.size

    @staticmethod
    def total(terms: Sequence[Balance]) -> Tensor:
        """coefficient * E * the sum over experts of (chosen per token) * (mean score), means over all layers' tokens:
        what transformers adds to the loss of a model with router_aux_loss_coef."""
        load, scores = Tensor(terms[0].load), terms[0].scores
        for term in terms[1:]:
            load, scores = load + Tensor(term.load), scores + term.scores
        rows = max(1, sum(term.rows for term in terms))
        y: Tensor = (load * scores).sum() * (terms[0].coefficient * load.size / rows**2)
        return y


@feed_forward(MoeSpec)
class Moe(Module):
    """The sum over a token's experts of weight * (act(x Wg) * x Wu) Wd, or weight * act(x Wu) Wd; the shared unit."""

    def __init__(self, spec: MoeSpec, place: Place) -> None:
        width, std, out_std, dtype = place.width, place.std, place.out_std, place.dtype
        self.spec = spec
        self.router = Linear(width, spec.experts, spec.router_bias, std, dtype)
        self.gate = GroupedLinear(spec.experts, width, spec.width, spec.bias, std, dtype) if spec.gated else None
        self.up = GroupedLinear(spec.experts, width, spec.width, spec.bias, std, dtype)
        self.down = GroupedLinear(spec.experts, spec.width, width, spec.bias, out_std, dtype)
        self.balance = Parameter((spec.experts,), wide(dtype)) if spec.balance_bias else None
        if self.balance is not None:
            self.balance.freeze()  # it moves by its own rule
        self.shared: Glu | Mlp | None = None
        if spec.shared:
            unit = spec.shared_spec
            self.shared = Glu(unit, place) if isinstance(unit, GluSpec) else Mlp(unit, place)
        self.shared_gate = Linear(width, 1, False, std, dtype) if spec.shared_gate else None
        self.crosses = spec.balance_loss > 0.0  # what it adds to the loss is out of a checkpoint's sight
        self._load = zeros((spec.experts,), wide(dtype))  # what experts had to do since the last step

    def __call__(self, x: Tensor, ctx: Ctx, residual: Tensor | None = None) -> Tensor:
        spec = self.spec
        logits = self.router(x, ctx)
        routing = ops.route(logits, spec.chosen, spec.score, None if self.balance is None else self.balance.data)
        weights = ops.expert_weights(logits, routing.ids, spec.score, spec.renormalize, spec.scale, spec.eps)
        if ctx.states is None and is_grad_enabled():
            self._note(logits, routing, ctx)
        *gate, up = project_experts(x, ctx, routing, [self.up] if self.gate is None else [self.gate, self.up])
        out = self.down(self._act(gate[0] if gate else None, up), routing.offsets, ctx)
        if self.shared is not None:
            residual = self._shared(x, ctx, residual)
        y: Tensor = ops.combine_rows(out, weights, residual, routing.order, routing.place)
        return y

    def _act(self, gate: Tensor | None, up: Tensor) -> Tensor:
        limit, act = self.spec.limit, self.spec.act
        if gate is None or limit is None:
            y: Tensor = ops.activation(up, act) if gate is None else ops.glu(gate, up, act=act)
            return y
        most, least = (full((), each, gate.dtype) for each in (limit, -limit))
        gate, up = ops.minimum(gate, most), ops.maximum(ops.minimum(up, most), least)
        return gate * ops.sigmoid(gate * self.spec.alpha) * (up + 1.0)

    def _shared(self, x: Tensor, ctx: Ctx, residual: Tensor | None) -> Tensor:
        assert self.shared is not None
        if self.shared_gate is None:
            return self.shared(x, ctx, residual=residual)
        y: Tensor = self.shared(x, ctx) * ops.sigmoid(self.shared_gate(x, ctx))
        return y if residual is None else residual + y

    # -- balance -----------------------------------------------------------------------------------------------
    def _note(self, logits: Tensor, routing: Routing, ctx: Ctx) -> None:
        """Remember for the loss, or for the end of the step, what this forward chose."""
        spec = self.spec
        if spec.balance_rate > 0.0:
            k.axpy(routing.load, self._load.data, 1.0, 1.0)
        if spec.balance_loss > 0.0:
            scores: Tensor = ops.cast(logits, "float32")
            if spec.score == "softmax":
                scores = ops.softmax(scores)
            else:
                scores = ops.sigmoid(scores)
                scores = scores / scores.sum(1, keepdims=True)
            ctx.aux.append(Balance(spec.balance_loss, routing.load, scores.sum(0), logits.shape[0]))

    def after_step(self, finite: Array) -> None:
        """Move the balance by balance_rate: up where an expert had less than the mean to do, down where more.

        `finite` holds 1, or 0 for a step that did not count. Only launches kernels.
        """
        if self.balance is None or self.spec.balance_rate == 0.0:
            return
        load = self._load.data
        mean = raw.reduce(load, 0)
        k.axpy(mean, mean, 1.0 / load.size)
        less, more = raw.binary("less", load, mean), raw.binary("less", mean, load)
        k.axpy(raw.binary("sub", less, more), self.balance.data, self.spec.balance_rate, 1.0, alpha_at=finite)
        k.fill(load, 0.0)

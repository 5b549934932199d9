"""Update rules: what one step does to a stretch of the arenas. A new one is a class here and a row in RULES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from .. import _kernels as k
from ..errors import ConfigError
from ..registry import Registry
from .arena import Group

Array = k.Array


class UpdateRule(Protocol):
    """`slots` names the arenas of state it needs; `apply` launches the kernel for one segment."""

    slots: ClassVar[tuple[str, ...]]

    def apply(
        self,
        param: Array,
        grad: Array,
        state: dict[str, Array],
        group: Group,
        hyper: Array,
        step: Array,
        control: Array,
        rounded: Array | None = None,
    ) -> None:
        """One step; reads the learning rate from hyper[0], the step number from step[0], clipping from control.

        `rounded`, if given, receives a bfloat16 copy of the new parameters.
        """


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), as torch.optim.AdamW."""

    slots: ClassVar[tuple[str, ...]] = ("m", "v")
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _between("beta1", self.beta1, 0.0, 1.0)
        _between("beta2", self.beta2, 0.0, 1.0)
        _between("eps", self.eps, 0.0, 1.0)

    def apply(
        self,
        param: Array,
        grad: Array,
        state: dict[str, Array],
        group: Group,
        hyper: Array,
        step: Array,
        control: Array,
        rounded: Array | None = None,
    ) -> None:
        """See UpdateRule."""
        k.adamw(param, grad, state["m"], state["v"], hyper, step, self.beta1, self.beta2, self.eps,
                group.weight_decay, group.lr_scale, control, rounded)  # fmt: skip


@dataclass(frozen=True)
class Sgd:
    """Gradient descent with momentum, as torch.optim.SGD (weight decay is added to the gradient)."""

    slots: ClassVar[tuple[str, ...]] = ("momentum",)
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _between("momentum", self.momentum, 0.0, 1.0)

    def apply(
        self,
        param: Array,
        grad: Array,
        state: dict[str, Array],
        group: Group,
        hyper: Array,
        step: Array,
        control: Array,
        rounded: Array | None = None,
    ) -> None:
        """See UpdateRule."""
        k.sgd(param, grad, hyper, step, self.momentum, group.weight_decay, group.lr_scale, self.nesterov,
              state["momentum"], control, rounded)  # fmt: skip


RULES: Registry[type] = Registry("optimizer")
RULES.add("adamw", AdamW)
RULES.add("sgd", Sgd)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ConfigError(f"{name}: expected a number in [{low}, {high}), got {value}")

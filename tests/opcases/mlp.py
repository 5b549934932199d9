"""The feed-forward of two linears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import ConfigError, ShapeError

from .bounds import Numbers, act, act_error, act_slope, gamma, slope_error
from .case import Case, ErrorCase, Inputs, Rule, array


def _mlp(rows: tuple[int, ...], inner: int, hidden: int, n: int, more: bool = False) -> Callable[..., Inputs]:
    def make(rng: np.random.Generator) -> Inputs:
        made = {
            "x": rng.standard_normal((*rows, inner)),
            "up": rng.standard_normal((hidden, inner)) / np.sqrt(max(1, inner)),
            "down": rng.standard_normal((n, hidden)),
        }
        if more:
            made |= {"up_bias": rng.standard_normal(hidden), "down_bias": rng.standard_normal(n)}
            made["residual"] = rng.standard_normal((*rows, n))
        return made

    return make


def _hidden(i: Inputs, o: Any, u: float) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """What the activation is given and what it gives, a row each, and their errors."""
    x, up = i["x"].reshape(-1, i["x"].shape[-1]), i["up"]
    bias = i.get("up_bias", np.zeros(len(up)))
    z = x @ up.T + bias
    error = gamma(x.shape[1] + 2, u) * (np.abs(x) @ np.abs(up).T + np.abs(bias))
    name = o.get("act", "gelu")
    return z, error, act(z, name), act_error(z, error, name, u)


def _forward(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    _, _, h, error = _hidden(i, o, u)
    down = np.abs(i["down"]).T
    own = gamma(len(down) + 2, u) * (np.abs(h) @ down + np.abs(i.get("down_bias", 0.0)))
    bound = (error @ down + own).reshape(y.shape)
    return bound + u * np.abs(y) if "residual" in i else bound


def _gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    name = o.get("act", "gelu")
    z, error, h, h_error = _hidden(i, o, u)
    x, up, down = (np.abs(i[each]) for each in ("x", "up", "down"))
    x, d, slope = x.reshape(-1, x.shape[-1]), np.abs(dy).reshape(-1, dy.shape[-1]), np.abs(act_slope(z, name))
    rows, dh = len(x), d @ down
    dz = dh * slope
    # One chain for the hidden gradient, the slope's error, and their product.
    off = (gamma(len(down) + 1, u) + u) * dz + dh * slope_error(z, error, name, u)
    return {
        "x": (off @ up + gamma(len(up) + 1, u) * (dz @ up)).reshape(i["x"].shape),
        "up": off.T @ x + gamma(rows + 1, u) * (dz.T @ x),
        "down": d.T @ h_error + gamma(rows + 1, u) * (d.T @ np.abs(h)),
        "up_bias": off.sum(0) + gamma(rows, u) * dz.sum(0),
        "down_bias": gamma(rows, u) * d.sum(0),
        "residual": 0 * dy,
    }


CASES: list[Case] = [
    Case("mlp", "3x5x7x4", _mlp((3,), 5, 7, 4, more=True), small=True),
    Case("mlp", "plain", _mlp((4,), 5, 6, 3), small=True),
    Case("mlp", "axes", _mlp((2, 3), 17, 33, 9, more=True), {"act": "silu"}),
    Case("mlp", "0rows", _mlp((0,), 5, 7, 4, more=True)),
    Case("mlp", "0hidden", _mlp((3,), 5, 0, 4, more=True)),
    Case("mlp", "vector", _mlp((), 17, 33, 5)),
    *(Case("mlp", name, _mlp((9,), 17, 35, 33, more=True), {"act": name}) for name in
      ("none", "gelu", "gelu_tanh", "relu", "relu2", "silu")),
    Case("mlp", "shares", _mlp((131,), 65, 260, 129, more=True), {"act": "gelu_tanh"}, shares=True),
]  # fmt: skip
RULES: dict[str, Rule] = {"mlp": Rule(_forward, _gradients)}


def _call(up: tuple[int, int], down: tuple[int, int], act: str = "gelu") -> Callable[[], Any]:
    return lambda: ops.mlp(array((2, 3)), array(up), array(down), act=act)


ERRORS: list[ErrorCase] = [
    ErrorCase("mlp", "up", _call((5, 4), (3, 5)), ShapeError, r"`x` expected \(\.\.\., 4\)"),
    ErrorCase("mlp", "down", _call((5, 3), (3, 4)), ShapeError, r"`x` expected \(\.\.\., 4\)"),
    ErrorCase("mlp", "act", _call((5, 3), (3, 5), "gelv"), ConfigError, r"'gelv'.*'gelu'"),
]

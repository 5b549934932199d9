"""The child of `bench train` that trains with microgpt, and what others need to train the same model."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _kernels as k
from ..models.config import ModelConfig
from ..models.decoder import Decoder
from ..models.presets import MODELS
from ..nn import Ctx, Layout
from ..optim import AdamW, Optimizer, decay_groups
from ..program import Program
from ..training.probe import TRAINING
from . import roofline
from .peers.configs import ADAMW, COMPARED, CONFIGS, data
from .peers.serve import Server


def spec(config: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of an entry of CONFIGS."""
    positions = config.get("positions", config["block"])
    return MODELS.get(config["model"])(
        config["vocab"], config["width"], config["layers"], config["heads"], positions, 0.0
    )


def initial_model(config: dict[str, Any], dtype: str = "float32") -> Decoder:
    """The model that all sides begin with."""
    return Decoder(spec(config), dtype=dtype, seed=1)


def step_flops(config: dict[str, Any]) -> int:
    """FLOPs that a training step needs: a causal row sees half of the others."""
    tokens = config["batch"] * config["block"]
    return TRAINING * tokens * spec(config).flops_per_token((config["block"] + 1) // 2)


class Trained:
    """A recorded step: model, optimizer and program."""

    def __init__(self, config: dict[str, Any], dtype: str) -> None:
        self.model = initial_model(config, dtype)
        # As float32, whatever the type: a bfloat16 model's masters begin as its rounded weights.
        self.weights = {name: np.array(values, np.float32) for name, values in self.model.arrays().items()}
        rule = AdamW(ADAMW["beta1"], ADAMW["beta2"], ADAMW["eps"])
        self.optimizer = Optimizer(self.model, rule, decay_groups(ADAMW["weight_decay"]))
        batch, block, ids = config["batch"], config["block"], data(config)
        self._inputs = [np.ascontiguousarray(each[:, :-1]).reshape(-1) for each in ids]
        self._outputs = [np.ascontiguousarray(each[:, 1:]).reshape(-1) for each in ids]
        self._tokens, self._targets = k.from_numpy(self._inputs[0]), k.from_numpy(self._outputs[0])
        self._layout = Layout.packed([block] * batch)
        self.program: Program[Any] = Program(self._record)
        self._number = 0

    def _record(self) -> Any:
        loss = self.model.loss(self._tokens, self._targets, Ctx(self._layout))
        loss.backward()
        self.optimizer.launch(loss)
        return loss

    def step(self) -> float:
        """One step; its loss."""
        at = self._number % len(self._inputs)
        self._tokens.copy_from(self._inputs[at])
        self._targets.copy_from(self._outputs[at])
        self._number += 1
        self.optimizer.feed(self._number, ADAMW["lr"])
        return float(self.program().item())


def main() -> None:
    """Serve."""
    probes = roofline.Probes()
    trained: Trained | None = None

    def train(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal trained
        server.step = trained = None
        k.trim_pool()
        config = CONFIGS[request["config"]]
        trained = Trained(config, request["dtype"])
        np.savez(request["weights"], **trained.weights)  # type: ignore[arg-type]
        trained.weights = {}
        losses = [trained.step() for _ in range(COMPARED)]
        server.prepare(trained.step)
        return {"losses": losses, "nodes": len(trained.program), "parameters": trained.model.num_parameters(),
                "flops": step_flops(config)}  # fmt: skip

    def profile(request: dict[str, Any]) -> dict[str, Any]:
        if trained is None:
            raise RuntimeError("nothing is set up")
        names: list[str] = trained.program.kernels()
        calls = {name: names.count(name) for name in names}
        return {"seconds": trained.program.profile(int(request["repeats"])), "calls": calls}

    server = Server(roofline.hello(), {"train": train, "profile": profile, **probes.handlers()})
    server.serve()


if __name__ == "__main__":
    main()

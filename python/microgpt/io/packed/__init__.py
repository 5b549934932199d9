"""Matrices that others quantized, in Hugging Face folders: MLX, MXFP4, GPTQ, AWQ, bitsandbytes, compressed-tensors.

Each module knows one layout and makes a `Packed` of the tensors that belong together: codes and scales as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConfigError, nearest
from ..stored import Stored
from . import bitsandbytes, compressed, gptq, mlx, mxfp4
from .common import Packed

METHODS: dict[str, Callable[[Mapping[str, Stored], Mapping[str, Any], str], dict[str, Stored]]] = {
    "gptq": gptq.opened,
    "awq": gptq.awq_opened,
    "bitsandbytes": bitsandbytes.opened,
    "compressed-tensors": compressed.opened,
    "mxfp4": lambda weights, settings, where: dict(weights),
}


def method_of(config: Mapping[str, Any], where: str) -> str | None:
    """How a folder's weights are quantized, by its config.json; None for plain ones and MLX's. Raises ConfigError."""
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method is not None and method not in METHODS:
        hint = nearest(method, METHODS) if isinstance(method, str) else ""
        raise ConfigError(
            f"{where}: weights quantized by {str(method)[:40]!r}{hint}: plain ones, MLX's, {', '.join(METHODS)} are "
            "read; transformers' `dequantize()` and `save_pretrained()` make plain ones; many models have a GGUF file"
        )
    return method


def opened(weights: Mapping[str, Stored], config: Mapping[str, Any], where: str) -> dict[str, Stored]:
    """The weights with each quantized matrix as one float32 tensor (`Stored.packed` has its codes).

    `config` is the folder's config.json. Raises ConfigError for other methods or impossible settings, FormatError for
    tensors that do not fit each other.
    """
    weights = mxfp4.opened(weights, where)
    method = method_of(config, where)
    if method is None:
        return mlx.opened(weights, config, where)
    return METHODS[method](weights, config["quantization_config"], f"{where}: quantization_config")


__all__ = ["METHODS", "Packed", "method_of", "opened"]

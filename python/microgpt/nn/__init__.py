"""Layers: modules built from specs, called with packed tokens (T, D) and a Ctx."""

from .block import Block
from .context import Ctx, Dropout, Layout
from .linear import Adapter, Embedding, Linear
from .module import Module, Parameter, edit
from .norm import Norm
from .rope import RopeSpec
from .spec import AttentionSpec, BlockSpec, GluSpec, Mask, MlpSpec, NormSpec

__all__ = [
    "Adapter",
    "AttentionSpec",
    "Block",
    "BlockSpec",
    "Ctx",
    "Dropout",
    "Embedding",
    "GluSpec",
    "Layout",
    "Linear",
    "Mask",
    "MlpSpec",
    "Module",
    "Norm",
    "NormSpec",
    "Parameter",
    "RopeSpec",
    "edit",
]

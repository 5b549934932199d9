"""Layers: modules built from specs, called with packed tokens (T, D) and a Ctx."""

from .block import Block
from .context import Ctx, Dropout, Layout
from .ffn.mlp import GluSpec, MlpSpec
from .linear import Adapter, Embedding, Linear
from .mixers.attention import AttentionSpec
from .module import Module, Parameter, edit
from .norm import Norm
from .place import Place
from .rope import RopeSpec
from .spec import BlockSpec, LayerSpec, Mask, NormSpec

__all__ = [
    "Adapter",
    "AttentionSpec",
    "Block",
    "BlockSpec",
    "Ctx",
    "Dropout",
    "Embedding",
    "GluSpec",
    "LayerSpec",
    "Layout",
    "Linear",
    "Mask",
    "MlpSpec",
    "Module",
    "Norm",
    "NormSpec",
    "Parameter",
    "Place",
    "RopeSpec",
    "edit",
]

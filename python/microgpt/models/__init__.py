"""Models: configurations, the decoder, families."""

from .config import ModelConfig
from .decoder import Decoder

__all__ = ["Decoder", "ModelConfig"]

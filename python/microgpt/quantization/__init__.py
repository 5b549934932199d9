"""Quantizers that look at what a model does with a text: importance-weighted rounding, GPTQ, AWQ."""

from .quantize import METHODS, TOKENS, quantize_model

__all__ = ["METHODS", "TOKENS", "quantize_model"]

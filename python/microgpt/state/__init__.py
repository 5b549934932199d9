"""What sequences remember between calls."""

from .contiguous import ContiguousStates
from .spec import KVSpec

__all__ = ["ContiguousStates", "KVSpec"]

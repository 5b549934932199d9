"""What sequences remember between calls."""

from .contiguous import ContiguousStates
from .spec import KVSpec, RecurrentSpec, StateSpec

__all__ = ["ContiguousStates", "KVSpec", "RecurrentSpec", "StateSpec"]

"""The op cases: one table per family. Every test of an op, and the kernel bench, walks these."""

from . import attention, delta, layers, loss, plain, rows, sinks, ssd
from .case import Case, ErrorCase, Rule, assert_close, flat, run

FAMILIES = (plain, layers, rows, attention, sinks, loss, ssd, delta)
CASES: list[Case] = [case for family in FAMILIES for case in family.CASES]
ERRORS: list[ErrorCase] = [case for family in FAMILIES for case in family.ERRORS]
RULES: dict[str, Rule] = {name: rule for family in FAMILIES for name, rule in family.RULES.items()}

__all__ = ["CASES", "ERRORS", "FAMILIES", "RULES", "Case", "ErrorCase", "Rule", "assert_close", "flat", "run"]

"""The op cases: one table per family. Every test of an op, and the kernel bench, walks these."""

import importlib
import pkgutil

from .case import Case, ErrorCase, Rule, assert_close, flat, run

# Every file of this folder that has cases.
_modules = [importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]
FAMILIES = [module for module in _modules if hasattr(module, "CASES")]
CASES: list[Case] = [case for family in FAMILIES for case in family.CASES]
ERRORS: list[ErrorCase] = [case for family in FAMILIES for case in family.ERRORS]
RULES: dict[str, Rule] = {name: rule for family in FAMILIES for name, rule in family.RULES.items()}

__all__ = ["CASES", "ERRORS", "FAMILIES", "RULES", "Case", "ErrorCase", "Rule", "assert_close", "flat", "run"]

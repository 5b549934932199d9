"""Check that no wide instruction stands outside the functions of its instruction set.

Disassembles the object files of a build (they still have symbols, unlike the extension). An object of
csrc/targets/NAME.cpp may use what NAME has, in functions of namespace mg::NAME; every other object the baseline alone,
x86-64-v2 or Armv8.0. An object of a target must also have no static initialiser, and no weak function outside its
namespace: the linker keeps one copy of those, and might keep this one for every machine. No kernel may write MXCSR, the
x87 control word or FPCR.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

#: What each target may use beyond the baseline.
ALLOWED = {
    "scalar": set[str](),
    "avx2": {"vex"},
    "avx2vnni": {"vex", "avxvnni"},
    "avx512": {"vex", "avx512"},
    "avx512vnni": {"vex", "avx512", "vnni"},
    "avx512bf16": {"vex", "avx512", "bf16", "vnni"},
    "avx512amx": {"vex", "avx512", "bf16", "amx"},
    "neon": set[str](),
    "neon_dotprod": {"dotprod"},
    "neon_i8mm": {"dotprod", "i8mm"},
}
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
INSTRUCTION = re.compile(r"^ *[0-9a-f]+:\t((?:[0-9a-f]{2} )+|[0-9a-f]{8} ) *\t(.+)$")
# Prefixes that may stand before VEX (C4, C5) and EVEX (62), whose first bytes mean nothing else in 64-bit code.
PREFIXES = {"2e", "36", "3e", "26", "64", "65", "67"}
# What objdump writes before a name.
BEFORE = ("lock", "rep", "repz", "repnz", "notrack", "bnd", "{vex}", "{evex}")
# Plain encodings that x86-64-v2 lacks. (TZCNT is left out: gcc uses it where an older processor's BSF gives the same.)
NOT_IN_V2 = re.compile(r"^(lzcnt|movbe|ad[co]x|rd(rand|seed)|sha\d\S*|aes\S+|pclmul\S+|gf2p8\S+)$")

CONTROL_WORD = re.compile(r"v?ldmxcsr|fldcw|fldenv|fxrstor|xrstor|msr\s+fpcr\b")
# AArch64: what later versions of the architecture added that a compiler may choose by itself, or we by hand.
ARM = {
    "dotprod": re.compile(r"[us]dot\b"),
    "i8mm": re.compile(r"(su|us)dot\b|(s|u|us)mmla\b"),
    "bf16": re.compile(r"bf(dot|mmla|mlal[bt]|cvt)"),
    "fp16": re.compile(r"f(?!cvt)\w+\s.*(\bh\d+\b|\.[48]h\b)|(scvtf|ucvtf)\s.*(\bh\d+\b|\.[48]h\b)"),
    "lse": re.compile(
        r"(ld|st)(add|clr|eor|set|[su]max|[su]min)(a|l|al)?[bh]?\s|casp?(a|l|al)?[bh]?\s|swp(a|l|al)?[bh]?\s"
    ),
    "rcpc": re.compile(r"ldapu?r"),
    "sve": re.compile(r".*\bz\d+\.[bhsdq]\b"),
}


def feature(code: list[str], text: str) -> str | None:
    """What an instruction of x86-64 needs: vex, avx512, bf16, vnni, avxvnni, amx or its name; None for the baseline.

    Args:
        code: its bytes in hexadecimal.
        text: mnemonic and operands as objdump writes them.
    """
    words = text.split()
    name = next((word for word in words if word not in BEFORE), words[0])
    first = next((byte for byte in code if byte not in PREFIXES), "")
    if first not in ("c4", "c5", "62"):
        return name if NOT_IN_V2.match(name) else None
    if re.match(r"tdp|tile|ldtilecfg|sttilecfg", name):
        return "amx"
    if "bf16" in name:
        return "bf16"
    if name.startswith(("vpdpbu", "vpdpws")):
        return "vnni" if first == "62" else "avxvnni"
    return "avx512" if first == "62" or re.search(r"%k[0-7]", text) else "vex"


def arm_feature(text: str) -> str | None:
    """The same of AArch64, whose instructions are all as long: a name in ARM."""
    return next((name for name, pattern in ARM.items() if pattern.match(text)), None)


def in_namespace(symbol: str, target: str) -> bool:
    """Whether a mangled name belongs to mg::target: names carry their length, so mg::avx512 is not mg::avx512bf16."""
    return f"2mg{len(target)}{target}" in symbol


def check(target: str | None, disassembly: Iterable[str], symbols: Iterable[str], sections: str) -> Iterator[str]:
    """What is wrong with one object file, a line for each function.

    Args:
        target: the instruction set that it is of, None for the baseline.
        disassembly: lines of `objdump -dw`.
        symbols: lines of `nm --defined-only`.
        sections: output of `objdump -h`.
    """
    function, said = "", set[tuple[str, str]]()
    for line in disassembly:
        if header := FUNCTION.match(line):
            function = header[1]
        elif found := INSTRUCTION.match(line):
            code, text = found[1].split(), found[2]
            need = arm_feature(text) if len(code) == 1 and len(code[0]) == 8 else feature(code, text)
            if target and CONTROL_WORD.match(text):
                need = "the floating-point control word"
            allowed = need is None or (target and need in ALLOWED[target] and in_namespace(function, target))
            if not allowed and (function, need) not in said:
                said.add((function, str(need)))
                yield f"{function}: {need}: {' '.join(text.split())}"
    if target:
        if ".init_array" in sections or ".ctors" in sections:
            yield "a static initialiser in the object of a target"
        for line in symbols:
            kind, name = line.split()[-2:]
            if kind in "Ww" and not in_namespace(name, target):
                yield f"{name}: a weak function in the object of a target"


def run(*command: str | Path) -> str:
    """Output of a command."""
    return subprocess.run([str(part) for part in command], check=True, text=True, capture_output=True).stdout


def main() -> int:
    """0 if every object file is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="a build folder with object files, build/release or build/aarch64")
    parser.add_argument("--prefix", default="", help="of objdump and nm: aarch64-linux-gnu-")
    options = parser.parse_args()
    build, prefix = options.build, options.prefix
    objects = sorted(path for path in build.rglob("*.o") if "/csrc/" in str(path) and "/csrc/tests/" not in str(path))
    targets = [path for path in objects if path.parent.name == "targets" and path.name != "dispatch.cpp.o"]
    if not targets:
        print(f"no object files of csrc/targets in {build}; build it first (make cpp-test)", file=sys.stderr)
        return 2
    bad, instructions = 0, 0
    for path in objects:
        target = path.name.removesuffix(".cpp.o") if path in targets else None
        disassembly = run(f"{prefix}objdump", "-dw", path).splitlines()
        instructions += len(disassembly)
        symbols = run(f"{prefix}nm", "--defined-only", path).splitlines()
        for problem in check(target, disassembly, symbols, run(f"{prefix}objdump", "-h", path)):
            bad += 1
            print(f"{path.relative_to(build)}: {problem}", file=sys.stderr)
    names = ", ".join(path.name.removesuffix(".cpp.o") for path in targets)
    print(f"{len(objects)} object files ({names} among them), {instructions} lines of code, {bad} problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""tools/check_isa.py finds wide instructions where they must not be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
AVX2 = "_ZN2mg4avx212_GLOBAL__N_1L3actIfEEvRKNS_7ActArgsIT_EERKNS_5ShareE"
AVX512 = "_ZN2mg6avx51212_GLOBAL__N_1L4gemmERKNS_8GemmArgsIfEERKNS_5ShareE.cold"
BF16 = "_ZN2mg10avx512bf1612_GLOBAL__N_1L9gemm_tileEv"
XMM = "c5 f8 10 00          \tvmovups (%rax),%xmm0"
YMM = "c5 fc 10 07          \tvmovups (%rdi),%ymm0"
ZMM = "62 f1 7c 48 10 06    \tvmovups (%rsi),%zmm0"
YMM_OF_AVX512 = "62 e1 7c 28 10 07    \tvmovups (%rdi),%ymm16"
MASK = "c5 f8 92 c8          \tkmovw  %eax,%k1"
PAIRS = "62 f2 76 48 52 c2    \tvdpbf16ps %zmm2,%zmm1,%zmm0"
TILES = "c4 e2 6a 5c c1       \ttdpbf16ps %tmm2,%tmm1,%tmm0"
GATHER_FS = "64 c5 fc 10 07       \tvmovups %fs:(%rdi),%ymm0"
SSE = "0f 10 07             \tmovups (%rdi),%xmm0"
LZCNT = "f3 0f bd c7          \tlzcnt  %edi,%eax"
EVEX_VNNI = "62 f2 6d 28 50 c1    \tvpdpbusd %ymm1,%ymm2,%ymm0"
VEX_VNNI = "c4 e2 6d 50 c1       \t{vex} vpdpbusd %ymm1,%ymm2,%ymm0"
AVX2VNNI = "_ZN2mg8avx2vnni12_GLOBAL__N_1L13q_tile_groupsEv"
NEON = "_ZN2mg4neon12_GLOBAL__N_1L4gemmEv"
DOTPROD, I8MM = NEON.replace("4neon", "12neon_dotprod"), NEON.replace("4neon", "9neon_i8mm")
FMLA = "4e21cc40 \tfmla\tv0.4s, v2.4s, v1.4s"
SDOT = "4f81e040 \tsdot\tv0.4s, v2.16b, v1.4b[0]"
USMMLA = "4e81ac40 \tusmmla\tv0.4s, v2.16b, v1.16b"
HALVES = "0e217800 \tfcvtl\tv0.4s, v0.4h"
HALF_SUM = "4e411400 \tfadd\tv0.8h, v0.8h, v1.8h"
CAS = "88e0fc41 \tcasal\tw0, w1, [x2]"
FPCR = "d51b4400 \tmsr\tfpcr, x0"
CONTROL = "0f ae 17             \tldmxcsr (%rdi)"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_isa", ROOT / "tools" / "check_isa.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listing(function: str, *instructions: str) -> list[str]:
    """As objdump -dw writes it."""
    return ["", f"0000000000000000 <{function}>:", *(f"  {4 * i:x}:\t{line}" for i, line in enumerate(instructions))]


@pytest.mark.parametrize(
    ("target", "function", "instruction", "need"),
    [
        (None, "_ZN2mg3RefEv", SSE, None),
        (None, "_ZN2mg3RefEv", XMM, "vex"),
        (None, "_ZN2mg3RefEv", LZCNT, "lzcnt"),
        (None, "_GLOBAL__sub_I_x", ZMM, "avx512"),
        (None, "_ZN2mg7runtimeEv", CONTROL, None),  # the runtime sets and restores it
        ("scalar", "_ZN2mg6scalar3actEv", SSE, None),
        ("scalar", "_ZN2mg6scalar3actEv", YMM, "vex"),
        ("avx2", AVX2, YMM, None),
        ("avx2", AVX2, GATHER_FS, None),
        ("avx2", AVX2, ZMM, "avx512"),
        ("avx2", AVX2, YMM_OF_AVX512, "avx512"),
        ("avx2", AVX2, MASK, "avx512"),
        ("avx2", AVX2, CONTROL, "control word"),
        ("avx2", "_ZSt3maxIfERKT_S2_S2_", YMM, "vex"),  # an inline function of the STL, compiled wide
        ("avx2", AVX2, VEX_VNNI, "avxvnni"),
        ("avx2", AVX2VNNI, YMM, "vex"),
        ("avx2vnni", AVX2VNNI, VEX_VNNI, None),
        ("avx2vnni", AVX2VNNI, EVEX_VNNI, "vnni"),
        ("avx2vnni", AVX2VNNI, YMM_OF_AVX512, "avx512"),
        ("avx512vnni", AVX512.replace("6avx512", "10avx512vnni"), EVEX_VNNI, None),
        ("neon", NEON, FMLA, None),
        ("neon", NEON, HALVES, None),
        ("neon", NEON, SDOT, "dotprod"),
        ("neon", NEON, FPCR, "control word"),
        ("neon_dotprod", DOTPROD, SDOT, None),
        ("neon_dotprod", NEON, SDOT, "dotprod"),
        ("neon_dotprod", DOTPROD, USMMLA, "i8mm"),
        ("neon_dotprod", DOTPROD, HALF_SUM, "fp16"),
        ("neon_i8mm", I8MM, USMMLA, None),
        ("neon_i8mm", I8MM, CAS, "lse"),
        (None, "_ZN2mg7runtimeEv", CAS, "lse"),
        ("avx512", AVX512, ZMM, None),
        ("avx512", AVX512, MASK, None),
        ("avx512", AVX512, PAIRS, "bf16"),
        ("avx512", BF16, ZMM, "avx512"),  # another target's namespace
        ("avx512bf16", BF16, PAIRS, None),
        ("avx512bf16", BF16, TILES, "amx"),
        ("avx512amx", BF16.replace("10avx512bf16", "9avx512amx"), TILES, None),
        ("avx512amx", BF16.replace("10avx512bf16", "9avx512amx"), PAIRS, None),
    ],
)
def test_an_instruction(
    tool: ModuleType, target: str | None, function: str, instruction: str, need: str | None
) -> None:
    found = list(tool.check(target, listing(function, instruction, instruction), [], ""))
    if need is None:
        assert found == []
    else:
        assert len(found) == 1 and found[0].startswith(function) and need in found[0]


def test_weak_functions_and_static_initialisers(tool: ModuleType) -> None:
    symbols = [f"0000000000000000 W {AVX2}", "0000000000000000 t _ZL5local", "0000000000000010 W _ZSt3maxIfERKT_S2_S2_"]
    assert list(tool.check("avx2", [], symbols, "  0 .text")) == [
        "_ZSt3maxIfERKT_S2_S2_: a weak function in the object of a target"
    ]
    assert list(tool.check(None, [], symbols, "  0 .init_array")) == []
    assert list(tool.check("avx2", [], [], "  0 .init_array")) == ["a static initialiser in the object of a target"]

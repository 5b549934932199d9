"""Who may import whom: a package imports itself and lower lines only. And no file grows beyond 500 lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "microgpt"

# From the top down; names of one line do not import each other, but for the pairs below.
LINES = [
    ["__main__"],
    ["cli"],
    ["bench"],
    ["api"],
    ["training", "engine", "quantization"],
    ["models", "optim", "data", "tokenizers", "io"],
    ["nn"],
    ["state"],
    ["tensors", "qtensor", "kvrows", "autograd", "ops", "program", "errors", "registry", "filters", "system"],
    ["_kernels"],
]
# models reads and writes its files; data writes token shards with their tokenizer; the bottom line is one piece.
ALLOWED = {("models", "io"), ("data", "io"), ("data", "tokenizers"), *((a, b) for a in LINES[-2] for b in LINES[-2])}
STANDALONE = {"scalar"}  # the whole algorithm in one file of the standard library


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Names of microgpt's parts that a file imports, at any depth of the code."""
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*here[: len(here) - node.level], *([node.module] if node.module else [])])
            modules = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "microgpt" and len(parts) > 1:
                found.add(parts[1])
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path):
    level = {name: i for i, line in enumerate(LINES) for name in line}
    own = package_of(path)
    if own in STANDALONE:
        assert imports(path) == set()
        return
    assert own in level, f"{own} stands on no line of tests/test_layering.py"
    wrong = [
        other
        for other in imports(path)
        if other in level and other != own and level[other] <= level[own] and (own, other) not in ALLOWED
    ]
    assert not wrong, f"{path.name} ({own}) may not import {wrong}"


def test_the_check_sees_imports():
    assert {"_kernels", "autograd", "errors"} <= imports(PACKAGE / "ops" / "custom.py")
    assert "training" in imports(PACKAGE / "api.py")
    assert "spec" not in imports(PACKAGE / "nn" / "norm.py") and "nn" in imports(PACKAGE / "nn" / "norm.py")


def test_no_file_over_500_lines():
    code = [
        p for folder in ("csrc", "python", "tests", "bench", "examples", "tools") for p in (ROOT / folder).rglob("*")
    ]
    long = {
        str(p.relative_to(ROOT)): n
        for p in code
        if p.suffix in (".py", ".pyx", ".pxd", ".cpp", ".h") and (n := len(p.read_text().splitlines())) > 500
    }
    assert long == {}


def test_openmp_and_pybind_stay_where_they_belong():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix not in (".cpp", ".h"):
            continue
        text = path.read_text()
        if "omp.h" in text or "#pragma omp" in text:
            assert path.name in ("parallel.cpp", "team.cpp"), f"{path} names OpenMP"
        if "pybind11" in text:
            assert path.parent.name == "bindings", f"{path} names pybind11"


def test_no_pickle_eval_or_remote_code_in_the_package():
    banned = {"pickle", "marshal", "shelve", "dill"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", None)}
                assert not names & banned, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__"), path
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path

"""Write python/microgpt/_kernels.pyi from the built module, or check that the committed one is current."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import types
from pathlib import Path

STUB = Path(__file__).parents[1] / "python" / "microgpt" / "_kernels.pyi"


def generate() -> str:
    """The stub of the installed microgpt._kernels."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "microgpt._kernels", "-o", folder, "--exit-code"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        text = next(Path(folder).rglob("_kernels.pyi")).read_text()
    # The version is a constant of the build, not of the interface.
    lines = ["VERSION: str" if line.startswith("VERSION") else line for line in text.splitlines()]
    # A null pointer by default is None in Python; the generator does not know that.
    text = "\n".join(lines).replace(": Array = None", ": Array | None = None") + "\n"
    # The method numpy() hides the module of that name inside its class; plain containers get their arguments.
    text = text.replace("numpy.ndarray", "_numpy.ndarray").replace(
        "import typing\n", "import typing\n\nimport numpy as _numpy\n", 1
    )
    text = text.replace("-> tuple:", "-> tuple[typing.Any, ...]:").replace("-> dict:", "-> dict[str, typing.Any]:")
    # It passes over the C properties of Array; the first line of their docstrings is the type.
    text = text.replace("    def __repr__(self):\n", properties() + "    def __repr__(self) -> str:\n", 1)
    for command in (["check", "--select", "I,UP,RUF022", "--fix", "-q"], ["format", "-q"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(STUB), "-"],
            input=text, capture_output=True, text=True, check=True,
        )  # fmt: skip
        text = done.stdout
    return text


def properties() -> str:
    """Array's properties as they stand in a stub."""
    from microgpt._kernels import Array

    text = ""
    for name, each in vars(Array).items():
        if isinstance(each, types.GetSetDescriptorType):
            kind, _, doc = each.__doc__.partition("\n\n")
            text += f'    @property\n    def {name}(self) -> {kind}:\n        """\n        {doc}\n        """\n'
    return text


def main() -> int:
    """0 if written or current, 1 if the committed stub differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    if not parser.parse_args().check:
        STUB.write_text(generate())
        return 0
    if STUB.read_text() == generate():
        return 0
    print(f"{STUB.name} is not what the built module says; run `make stub`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""`microgpt doctor`."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from typing import Any

import click

from ..errors import MicrogptError, nearest
from .common import Command, Option

VARIABLES = {
    "MICROGPT_ISA": "instruction set to use, one of those in this build, or auto",
    "MICROGPT_NUM_THREADS": "threads to use",
    "MICROGPT_REPLAY": "0 runs training steps eagerly, with the same bits",
    "MICROGPT_TRACE": "1 shows the traceback behind an error",
    "OMP_NUM_THREADS": "threads, where MICROGPT_NUM_THREADS is not set",
}
# distribution -> the extra that brings it; None for what every installation has
LIBRARIES = {
    "numpy": None,
    "ml-dtypes": None,
    "safetensors": None,
    "tokenizers": None,
    "jinja2": None,
    "click": None,
    "tqdm": None,
    "transformers": "parity",
    "pytest": "test",
    "hypothesis": "test",
}
LITTLE_MEMORY = 1 << 30  # bytes; a training run of the defaults needs a tenth of it

EXAMPLES = """\
microgpt doctor
microgpt doctor --json
MICROGPT_ISA=avx2 MICROGPT_NUM_THREADS=1 microgpt doctor"""


def examine() -> dict[str, Any]:
    """info() with libraries, `warnings` and `problems`; whatever cannot be found out is a problem, not an error."""
    problems: list[str] = []
    try:
        from .. import _kernels as k
        from .. import api
    except ImportError as error:
        broken = f"the compiled core does not load: {error}; reinstall microgpt, or build it (see CONTRIBUTING.md)"
        return {"libraries": libraries(), "warnings": [], "problems": [broken]}
    removed: dict[str, str] = {}
    checks: dict[str, Callable[[], Any]] = {
        "MICROGPT_ISA": k.isa,
        "MICROGPT_NUM_THREADS": k.thread_choice,
        "OMP_NUM_THREADS": k.thread_choice,
    }
    for variable, check in checks.items():
        try:
            check()
        except MicrogptError as error:
            if variable in os.environ:  # without it, the rest can still be examined
                problems.append(str(error))
                removed[variable] = os.environ.pop(variable)
    try:
        found = api.info()
    except MicrogptError as error:
        found = {}
        problems.append(str(error))
    finally:
        os.environ.update(removed)
    if found:
        found["environment"] = {**found["environment"], **removed}
        found["quantized"] = quantized(found["isa"])
    warnings = _warnings(found) if found else []
    return {**found, "libraries": libraries(), "warnings": warnings, "problems": problems}


def quantized(isa: str) -> dict[str, str]:
    """Each quantized type with "fast", or why it is slow here."""
    from ..qtensor import Q_TYPES

    scalar = "slow: no vector instructions"
    slow = "slow: its codes are no integers, so products take its numbers"
    return {name: scalar if isa == "scalar" else "fast" if row.product else slow for name, row in Q_TYPES.items()}


def libraries() -> dict[str, str | None]:
    """Versions of the libraries microgpt uses; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _warnings(found: dict[str, Any]) -> list[str]:
    lines = []
    best = next((name for name, supported in found["isas"].items() if supported), found["isa"])
    if found["isa"] != best:
        lines.append(f"running {found['isa']} though {best} would run here: MICROGPT_ISA asks for it")
    elif found["isa"] == "scalar":
        built = ", ".join(name for name in found["isas"] if name != "scalar")
        lines.append(f"running scalar, many times slower: this processor has none of {built or 'the vector sets'}")
    allowed = len(os.sched_getaffinity(0))
    if found["threads"] > allowed:
        lines.append(f"{found['threads']} threads share {allowed} allowed CPUs: expect it to be slower, not faster")
    if found["memory_available"] is not None and found["memory_available"] < LITTLE_MEMORY:
        lines.append(f"only {_size(found['memory_available'])} of memory is available")
    if os.environ.get("MICROGPT_REPLAY") == "0":
        lines.append("MICROGPT_REPLAY=0: training steps run eagerly, which is slower")
    for name in found["environment"]:
        if name.startswith("MICROGPT_") and name not in VARIABLES:
            lines.append(f"{name} is set but means nothing{nearest(name, VARIABLES)}")
    for name, extra in LIBRARIES.items():
        if extra is None and libraries()[name] is None:
            lines.append(f"{name} is not installed, though every installation needs it")
    return lines


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def _isa_why(found: dict[str, Any]) -> str:
    asked = found["environment"].get("MICROGPT_ISA")
    if asked == found["isa"]:
        return f"MICROGPT_ISA={asked}"
    return "the best that this processor and this build have"


def _quantized_text(found: dict[str, str]) -> str:
    kinds: dict[str, list[str]] = {}
    for name, speed in found.items():
        kinds.setdefault(speed, []).append(name)
    return "; ".join(f"{speed}: {', '.join(names)}" for speed, names in kinds.items())


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    isas = ", ".join(f"{name} ({'ok' if ok else 'not on this processor'})" for name, ok in found["isas"].items())
    threads = f"{found['threads']} ({found['threads_why']})"
    if found["cpu_quota"]:
        threads += "; a CPU quota limits this process"
    return [
        ("microgpt", found["microgpt"]),
        ("python", f"{found['python']}, {found['executable']}"),
        ("platform", found["platform"]),
        ("processor", found["cpu"]),
        ("features", found["features"]),
        ("instruction set", f"{found['isa']} ({_isa_why(found)})"),
        ("in this build", isas),
        ("quantized types", _quantized_text(found["quantized"])),
        ("threads", threads),
        ("OpenMP", found["openmp"]),
        ("memory", f"{_size(found['memory_total'])}, {_size(found['memory_available'])} available"),
    ]


def _library_text(name: str, version: str | None) -> str:
    extra = LIBRARIES[name]
    if version:
        return f"{name} {version}"
    return f"{name} missing" + (f" (pip install 'microgpt[{extra}]')" if extra else "")


def _run(as_json: bool) -> None:
    found = examine()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        rows = _rows(found) if "isa" in found else []
        rows.append(("libraries", ", ".join(_library_text(n, v) for n, v in found["libraries"].items())))
        environment = found.get("environment", {})
        for name, text in VARIABLES.items():
            value = environment.get(name)
            rows.append((name, f"{'not set' if value is None else value} ({text})"))
        for label, text in rows:
            click.echo(f"{label:<21}{text}")
        for line in found["warnings"]:
            click.echo(f"warning: {line}")
        for line in found["problems"]:
            click.echo(f"problem: {line}")
        if not found["warnings"] and not found["problems"]:
            click.echo("all is well")
    if found["problems"]:
        raise click.exceptions.Exit(1)


command = Command(
    "doctor",
    callback=_run,
    params=[Option(["--json", "as_json"], is_flag=True, help="Print one JSON object instead.")],
    examples=EXAMPLES,
    help="Say what microgpt found on this machine, and what is wrong.\n\n"
    "Exits with 1 when something must be repaired before microgpt can run, and with 0 otherwise.",
)

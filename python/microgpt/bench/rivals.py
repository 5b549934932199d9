"""Which peers there are, which were asked for, and what they are told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ChildError, ConfigError, nearest


@dataclass(frozen=True)
class Settings:
    """What every comparison is told: types, peers and how long."""

    dtypes: tuple[str, ...]
    threads: int
    peers: dict[str, str]  # name -> version
    python: str
    rounds: int
    seconds: float
    timeout: float


PROBE = """
import importlib.util, json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    if importlib.util.find_spec(name) is not None:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown version"
print(json.dumps(found))
"""


def chosen(option: str, text: str | None, known: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    """The names in a comma-separated list, in the order of `known`. Raises ConfigError naming an unknown one."""
    if text is None:
        return tuple(default)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{option}: expected one or more of {', '.join(known)}, got {text!r}")
    for name in names:
        if name not in known:
            raise ConfigError(f"{option}: unknown {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return tuple(name for name in known if name in names)


def find_peers(option: str | None, known: dict[str, str], python: str | None, timeout: float) -> dict[str, str]:
    """Peer -> version of those to run; `known` says which package each needs, `option` is --peers.

    Without --peers all that are installed, none of which need be, unless --peer-python names the place. Raises
    ConfigError for unknown names, a Python that cannot be run, and a peer asked for that is not there.
    """
    if option is not None and option.strip() == "none":
        return {}
    names = chosen("--peers", option, [*known, "none"], list(known))
    if "none" in names:
        raise ConfigError(f"--peers: none stands alone, got {option!r}")
    place = python or sys.executable
    packages = installed(place, sorted({known[name] for name in names}), timeout)
    needed = {known[name] for name in names} if option is not None else {"torch"} if python is not None else set()
    if missing := sorted(needed - packages.keys()):
        hint = "" if python is not None else "; --peer-python PATH names a Python that has it"
        raise ConfigError(f"peer {', '.join(missing)}: not installed in {place}{hint}")
    return {name: packages[known[name]] for name in names if known[name] in packages}


def installed(python: str, packages: Sequence[str], timeout: float) -> dict[str, str]:
    """Which of `packages` a Python has, with versions, without importing them."""
    if shutil.which(python) is None or os.path.isdir(python):
        raise ConfigError(f"--peer-python: expected a Python to run, got {python!r}")
    command = [python, "-c", PROBE, *packages]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=min(timeout, 60.0), check=False)  # fmt: skip
        found = json.loads(done.stdout.strip().split("\n")[-1])
        if isinstance(found, dict):
            return {str(name): str(version) for name, version in found.items()}
        raise ValueError
    except subprocess.TimeoutExpired:
        raise ChildError(f"--peer-python {python}: no answer for {min(timeout, 60.0):g} s") from None
    except OSError as error:
        raise ConfigError(f"--peer-python: cannot run {python!r}: {error.strerror or error}") from None
    except ValueError:
        words = (done.stderr or done.stdout).strip().split("\n")[-1][-200:]
        raise ConfigError(f"--peer-python: {python!r} does not behave like a Python: {words}") from None

"""Repair the wheel in a folder and use it as a stranger would: a fresh environment without compiler, network or HOME.

Linux. Every command that fails fails the check. Needs auditwheel and patchelf on PATH, and the right to make a network
namespace (`unshare`); the libraries microgpt depends on are downloaded before the network goes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# What must work: twice, before and after NumPy is loaded, beside a json.py that is not the standard library's.
USE = """
import sys
if sys.argv[1] == "numpy first":
    import numpy
import microgpt
if sys.argv[1] == "numpy last":
    import numpy
run = microgpt.train(data="names", steps=20, out=sys.argv[2])
text = microgpt.load(sys.argv[2]).generate("an", seed=1).text
assert isinstance(text, str) and text, text
assert microgpt.__file__.startswith(sys.prefix), microgpt.__file__
print(sys.argv[1], repr(text))
"""


def run(*command: str | Path, **more: object) -> str:
    """Output of a command, which must end with 0."""
    print("$", *command, flush=True)
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True, **more)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def one(folder: Path, pattern: str) -> Path:
    """The only file of that name pattern."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"expected one {pattern} in {folder}, found {[path.name for path in found] or 'none'}")
    return found[0]


def outside(folder: Path) -> list[str]:
    """The command prefix for a bare process: no network, no compiler on PATH, no HOME."""
    empty = folder / "no-programs"
    empty.mkdir(exist_ok=True)
    prefix = ["unshare", "-n"] if os.getuid() == 0 else ["unshare", "--map-current-user", "-n"]
    return [*prefix, "env", "-i", f"PATH={empty}", "LANG=C.UTF-8"]


def use(folder: Path, name: str, install: list[str | Path]) -> None:
    """Make environment `name`, install, and train and generate in it from a hostile working folder."""
    place = folder / name
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *install)
    run("chmod", "-R", "a-w", place)  # site-packages that cannot be written, not even a __pycache__
    work = folder / f"{name}-work"
    work.mkdir()
    (work / "json.py").write_text("raise SystemExit('json.py of the working folder was imported')\n")
    (work / "use.py").write_text(USE)
    bare = outside(folder)
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    if unprivileged:  # root writes where nobody may
        for path in (folder, work):
            path.chmod(0o777)
        bare = [
            *bare[: bare.index("env")],
            "/usr/bin/" + unprivileged[0],
            *unprivileged[1:],
            *bare[bare.index("env") :],
        ]
    run(*bare, place / "bin" / "microgpt", "doctor", cwd=work)
    for order in ("numpy first", "numpy last"):
        out = work / order.replace(" ", "-")
        # -P: a script's own folder is not searched, as for an installed command
        print(run(*bare, python, "-P", "use.py", order, out, cwd=work), end="")
    run(*bare, place / "bin" / "microgpt", "train", "--steps", "20", "--num-samples", "0", cwd=work)
    print(run(*bare, place / "bin" / "microgpt", "generate", "--num-samples", "3", cwd=work), end="")
    run("chmod", "-R", "u+w", place)


def main() -> int:
    """0 if the wheel and the source distribution both work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path, help="folder with one wheel and one source distribution")
    dist = parser.parse_args().dist.resolve()
    built, source = one(dist, "*-linux_*.whl"), one(dist, "*.tar.gz")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(run("auditwheel", "show", built))
        run("auditwheel", "repair", "-w", dist / "repaired", built)
        wheel = max((dist / "repaired").glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)
        print(f"{built.name}: {built.stat().st_size} bytes\n{wheel.name}: {wheel.stat().st_size} bytes")
        run(sys.executable, "-m", "pip", "download", "-q", "-d", folder / "wheels", wheel)
        use(folder, "fresh", ["--no-index", "--find-links", folder / "wheels", wheel])
        use(folder, "from-source", ["--find-links", folder / "wheels", source])
    print("wheel and source distribution work")
    return 0


if __name__ == "__main__":
    sys.exit(main())

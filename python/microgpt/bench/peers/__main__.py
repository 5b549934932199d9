"""`python peers MODULE`: import MODULE of this folder as a package of its own and serve."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if sys.path and Path(sys.path[0]).resolve() == HERE:
    del sys.path[0]  # names of this folder must not hide installed modules
spec = importlib.util.spec_from_file_location(
    "microgpt_peers", HERE / "__init__.py", submodule_search_locations=[str(HERE)]
)
assert spec is not None and spec.loader is not None
package = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = package
spec.loader.exec_module(package)
importlib.import_module(f"microgpt_peers.{sys.argv[1]}").main()

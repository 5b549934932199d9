"""docs/families.md: every family beside transformers, on tiny random weights. Needs torch and transformers.

Run it from the repository's root: `python -m tools.family_table`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Families

Made by `python -m tools.family_table`. Each line is a tiny model of random weights ({tokens} tokens in packed sequences
of lengths {lengths}, float32) beside transformers {version}: the largest absolute error of the logits, the largest
relative error of a parameter's gradient (of the mean loss), the largest difference between decoding in pieces of 1, 3
and 7 tokens and the whole forward, and whether a folder that went from transformers through microgpt and back has the
same weights and configuration, is loaded without a complaint, and gives the same logits. Names with a suffix are
variants of a family.
`minicpm` needs remote code in transformers; the tests compare it with Granite, which computes the same.

| model | architecture | parameters | logits | gradients | incremental | round trip |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Measure and write."""
    sys.path.insert(0, str(ROOT))
    import transformers
    from tests.parity import measure
    from tests.tiny_families import LENGTHS, TINY

    from microgpt.models.families import FAMILIES

    lines = []
    for name, (kind, _) in TINY.items():
        found = measure.errors(name)
        with tempfile.TemporaryDirectory() as folder:
            trip = measure.round_trip(name, Path(folder))
        good = not trip.complaints and trip.same_weights and trip.same_config and trip.logits <= 4e-6
        lines.append(
            f"| {name} | {FAMILIES.get(kind).architecture} | {found.parameters:,} | {found.logits:.1e} | "
            f"{max(found.gradients.values()):.1e} | {found.incremental:.0e} | {'same' if good else 'DIFFERS'} |"
        )
        print(lines[-1], flush=True)
    head = HEAD.format(tokens=sum(LENGTHS), lengths=", ".join(map(str, LENGTHS)), version=transformers.__version__)
    (ROOT / "docs" / "families.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

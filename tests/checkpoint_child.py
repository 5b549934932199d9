"""A process that saves checkpoints without end and says which are done; test_checkpoint.py kills it."""

from __future__ import annotations

import sys
from pathlib import Path

from microgpt.io.checkpoint import RunFolder

FILES, SIZE = 3, 200_000


def content(step: int, number: int) -> bytes:
    """What file `number` of checkpoint `step` holds."""
    return (f"{step}/{number};".encode() * SIZE)[:SIZE]


def main(path: str, again: bool) -> None:
    """Clean up, go on after the newest checkpoint (or save it `again`), print each step once durable."""
    run = RunFolder(path)
    run.clean()
    step = int(run.latest()[0].name[5:]) + (not again) if run.checkpoints() else 1
    while True:

        def write(folder: Path, step: int = step) -> dict[str, int]:
            for number in range(FILES):
                (folder / f"{number}.bin").write_bytes(content(step, number))
            return {"step": step}

        print(f"writing {step}", flush=True)
        run.save(step, write, keep_last=2, best=step % 3 == 0)
        print(f"saved {step}", flush=True)
        step += 1


if __name__ == "__main__":
    main(sys.argv[1], again=sys.argv[2] == "again")

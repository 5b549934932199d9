"""Train a small Llama on the Python standard library, be interrupted, go on, compare, and load the result.

Run it in an empty folder: python 02_train_on_text.py [STEPS]
"""

import sys
from pathlib import Path

import microgpt


class StopAt(microgpt.Callback):
    """Ends the run after a number of steps, as Ctrl-C or a power cut would."""

    def __init__(self, step: int) -> None:
        self.last = step

    def step(self, control) -> None:
        if control.step == self.last:
            control.request_stop("to show how a run goes on")


def main(steps: int = 200, folder: Path = Path("runs-of-text")) -> None:
    """About a minute with the default number of steps."""
    settings = {
        "data": "stdlib",  # a path, a folder, or a list of them works the same
        "tokenizer": "bpe",
        "vocab_size": 1024,
        "model": "llama",
        "size": "500k",
        "block_size": 64,
        "batch_size": 8,
        "dtype": "auto",
        "steps": steps,
        "lr": 3e-3,
        "save_every": steps // 4,
        "eval_every": steps // 4,
        "eval_batches": 10,
    }
    whole = microgpt.train(**settings, out=folder / "whole", show=sys.stderr.isatty())
    print(f"{whole.model.num_parameters():,} parameters, {whole.steps} steps in {whole.seconds:.0f} s: "
          f"validation loss {whole.val_loss:.3f} nats a token")  # fmt: skip

    microgpt.train(**settings, out=folder / "stopped", callbacks=[StopAt(steps // 2 + 1)])
    resumed = microgpt.train(resume=folder / "stopped")
    same = all((a == b).all() for a, b in zip(
        whole.model.arrays().values(), resumed.model.arrays().values(), strict=True))  # fmt: skip
    assert same and resumed.val_loss == whole.val_loss
    print(f"stopped after step {steps // 2 + 1} and resumed: the same weights, bit for bit")

    model = microgpt.load(folder / "whole")
    print("it writes:", repr(model.generate("import ", max_tokens=30, temperature=0.7, seed=1).text))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

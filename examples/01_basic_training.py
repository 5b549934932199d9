"""Train a small GPT on names, look at what it learned, save it and load it again.

Run it in an empty folder: python 01_basic_training.py [STEPS]
"""

import sys
from pathlib import Path

import microgpt


def main(steps: int = 1000, folder: Path = Path("names-model")) -> None:
    """Takes a few seconds with the default number of steps."""
    # Every option of `microgpt train` is an argument here, under the same name.
    run = microgpt.train(data="names", layers=2, width=64, block_size=16, steps=steps, show=sys.stderr.isatty())
    print(f"{run.steps} steps in {run.seconds:.1f} s: loss {run.losses[0]:.3f} -> {run.loss:.3f}")
    print(f"validation loss {run.val_loss:.3f} nats a character; guessing among 27 characters costs 3.296")

    model = microgpt.LanguageModel(run.model, run.tokenizer)
    print("names it makes up:", ", ".join(each.text for each in model.generate_many("", 8, temperature=0.8)))

    # Scores of the next character after "emm"; id 0 begins every name.
    scores = model.logits([0, *model.tokenizer.encode("emm")])[-1]
    print("after 'emm' comes", repr(model.tokenizer.decode([int(scores.argmax())])))

    # The folder has the layout of Hugging Face's transformers, which loads it as a GPT-2.
    model.save(folder)
    again = microgpt.load(folder)
    assert again.generate("jo", seed=1) == model.generate("jo", seed=1)
    print("saved in", folder, "and loaded again: the same model, bit for bit")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

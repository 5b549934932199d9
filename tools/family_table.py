"""docs/families.md: every family beside transformers, on tiny random weights. Needs torch and transformers.

Run it from the repository's root: `python -m tools.family_table`.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Families

Made by `python -m tools.family_table`. Each line is a tiny model of random weights ({tokens} tokens in packed sequences
of lengths {lengths}, float32) beside transformers {version}: the largest absolute error of the logits, the largest
relative error of a parameter's gradient (of the mean loss), the largest difference between decoding in pieces of 1, 3
and 7 tokens and the whole forward, and whether a folder that went from transformers through microgpt and back has the
same weights and configuration, is loaded without a complaint, and gives the same logits. Names with a suffix are
variants of a family. Of encoders (bert, modernbert) hidden states stand for the logits, with the pooler's, and the
gradients are those of their sum in a random direction; they decode nothing.
`minicpm` needs remote code in transformers; the tests compare it with Granite, which computes the same.
RWKV-7 is not in transformers: its logits are within 1e-4 of the package rwkv on random weights, gradients are checked
against finite differences, pieces have the bits of the whole, and its authors' 40,000 parameters that reverse numbers,
read from their own file, give 9,150 of 9,150 digits (`tests/parity/test_rwkv.py`).

| model | architecture | parameters | logits | gradients | incremental | round trip |
|---|---|---|---|---|---|---|
"""
GGUF_HEAD = """
## In GGUF files

Read and written (in brackets general.architecture where it is another name):
{names}.

Files of each, in float32, give logits within 1e-4 of ours in llama.cpp b9190 (cyllama 0.2.18, float32 keys and
values); those with GELU within 4e-3, because its GELU is a table of float16 numbers, and within 2e-4 in the mean
where we compute with the same table (`tests/parity/test_llamacpp.py`); of encoders (BERT, ModernBERT) the same holds
for hidden states, and their pooling goes along. Reading back gives the same weights, but for norms by 1 + weight, which
are stored with the one, and BERT's pooler, which GGUF has not. What llama.cpp would compute otherwise is refused, with
the setting named:

- windows in Mistral, Mixtral, Qwen 2 and StarCoder 2; in EXAONE 4 of other than 64 layers; layers with a window,
  without positions or without experts that do not follow the architecture's own pattern (Gemma 2 and 3, Cohere 2,
  OLMo 3, SmolLM 3, the Qwen mixtures);
- biases that its architecture has no tensor for (Qwen 3, Gemma, OLMo, Cohere, SmolLM 3, Hunyuan and ERNIE 4.5 have
  none, Seed-OSS none in the output and the feed-forward), norms of queries and keys in Phi, and in Command R of less
  than 64 layers; Falcon-RW;
- tied embeddings in Apertus, GPT-NeoX, Nemotron, OLMo 2 and 3, Phi and StableLM, untied ones in Gemma 1 and 2 and
  Cohere;
- another width of heads than the model's width over their number, where no key says it (Granite, OLMo, Cohere,
  Nemotron and most that have no `head_dim` of their own), and a scale of scores of its own in Gemma 2 and 3;
- parts of heads that turn, but in Bamba, Gemma, Cohere, GLM 4, GPT-NeoX, Nemotron, Phi, Phi 3, Qwen3-Next, Qwen 3.5 and
  StableLM; YaRN without truncation but in gpt-oss; proportional scaling;
- in layers of Mamba-2 biases of projections, limits of time steps and convolutions without a bias; in Bamba, Granite 4
  and Jamba other than twice the width in channels; in LFM2 biases of convolutions, and in its experts a scale;
  Nemotron-H with both MLPs and experts; Falcon-H1's norm before the gate, and different multipliers of tied embeddings;
  in linear layers of Qwen3-Next and Qwen 3.5 keys and values of other widths, and Qwen3-Next without experts;
- biases, scaled rotary positions and full layers at unequal distances in ModernBERT.

Falcon-H1's multipliers go into the weights, as llama.cpp's converter has it: the file is read as a model without any,
of the same logits within rounding. A file of Bamba means what llama.cpp computes from it: its converter reorders the
rows of q and k as if whole heads turned, where in transformers half of each does, so such a file is not transformers'
model on either side. Blocks that predict further tokens (`nextn_predict_layers`) are left out.

llama.cpp knows no DiffLlama, Helium, NanoChat and RecurrentGemma; RWKV-7 models here are of our own layout.
"""


def gguf_part() -> str:
    """What stands about GGUF files."""
    from microgpt.models.families.gguf import GGUF

    archs: dict[str, list[str]] = {}
    for name, facts in sorted(GGUF.items()):
        archs.setdefault(facts.family or name, []).append(facts.arch)
    names = ", ".join(name if each == [name] else f"{name} ({' or '.join(each)})" for name, each in archs.items())
    return GGUF_HEAD.format(names="\n".join(textwrap.wrap(names, 119, break_on_hyphens=False)))


def main() -> None:
    """Measure and write."""
    sys.path.insert(0, str(ROOT))
    import transformers
    from tests.parity import measure
    from tests.tiny_families import ENCODERS, LENGTHS, TINY

    from microgpt.models.families import FAMILIES

    lines = []
    for name, (kind, _) in {**TINY, **ENCODERS}.items():
        found = measure.encoder_errors(name) if name in ENCODERS else measure.errors(name)
        with tempfile.TemporaryDirectory() as folder:
            trip = measure.round_trip(name, Path(folder))
        good = not trip.complaints and trip.same_weights and trip.same_config and trip.logits <= 4e-6
        lines.append(
            f"| {name} | {FAMILIES.get(kind).architecture} | {found.parameters:,} | {found.logits:.1e} | "
            f"{max(found.gradients.values()):.1e} | {'-' if name in ENCODERS else f'{found.incremental:.0e}'} | "
            f"{'same' if good else 'DIFFERS'} |"
        )
        print(lines[-1], flush=True)
    head = HEAD.format(tokens=sum(LENGTHS), lengths=", ".join(map(str, LENGTHS)), version=transformers.__version__)
    (ROOT / "docs" / "families.md").write_text(head + "\n".join(lines) + "\n" + gguf_part(), encoding="utf-8")


if __name__ == "__main__":
    main()

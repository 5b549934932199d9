r"""What rounding costs: perplexity and divergence of our quantizers beside llama.cpp's types of the same weights.

    microgpt train --data stdlib --tokenizer bpe --vocab-size 2048 --size 10.5m --model llama --dtype bf16 \
        --block-size 256 --batch-size 16 --lr 1.5e-3 --schedule wsd --steps 900 --out run
    python bench/quantizers.py run --out quantizers

MODEL should have been trained on the standard library's source with the default share for validation: texts for
calibration come from the documents it was trained on, the test text from those it never saw. llama.cpp's files are
quantized by cyllama, if that is installed, from our float32 GGUF; their numbers are computed here in float32.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import microgpt
from microgpt.api import LanguageModel
from microgpt.data.corpus import read_documents
from microgpt.data.split import split
from microgpt.io.gguf import GgufFile
from microgpt.models.quantized import weights_of

OURS: dict[str, dict[str, Any]] = {
    "int4 rtn": {"bits": 4},
    "int4 imatrix": {"bits": 4, "method": "imatrix"},
    "int4 awq": {"bits": 4, "method": "awq"},
    "int4 gptq": {"bits": 4, "method": "gptq"},
    "int4 gptq, in order": {"bits": 4, "method": "gptq", "act_order": False},
    "int8 rtn": {"bits": 8},
}
THEIRS = {"Q4_0": 2, "Q4_K_S": 14, "Q4_K_M": 15, "Q8_0": 7}  # llama.cpp's numbers of file types


def text(documents: Iterable[str], characters: int) -> str:
    """The beginnings of documents, in an order of their own, up to so many characters."""
    found = [each[:8000] for each in documents]
    random.Random(1).shuffle(found)
    return "\n".join(found)[:characters]


def theirs(model: LanguageModel, name: str, folder: Path) -> tuple[LanguageModel, float]:
    """The model as llama.cpp rounds it, in float32, and the bits of a weight in its file."""
    import cyllama.llama.llama_cpp as library

    library.disable_logging()
    source, target = folder / "float32.gguf", folder / f"{name}.gguf"
    if not source.exists():
        model.export(source, type="f32")
    settings = library.LlamaModelQuantizeParams()
    settings.ftype = THEIRS[name]
    library.model_quantize(str(source), str(target), settings)
    matrices = [tensor for tensor in GgufFile(target).tensors.values() if len(tensor.shape) == 2]
    bits = 8 * sum(tensor.bytes for tensor in matrices) / sum(math.prod(tensor.shape) for tensor in matrices)
    return microgpt.load(target, dtype="float32"), bits


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True, help="folder for llama.cpp's files")
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--characters", type=int, default=24_000, help="of the test text")
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seen, unseen = split(list(read_documents("stdlib").documents), 0.1, 0)
    calibration, test = text(seen, 110_000), text(unseen, args.characters)
    original = microgpt.load(args.model, dtype="float32")
    base = original.perplexity(test, args.context)
    count = original.decoder.num_parameters()
    print(f"float32: {count:,} parameters, perplexity {base.perplexity:.4f} over {base.tokens} tokens")

    def show(name: str, model: LanguageModel, note: str) -> None:
        found = model.perplexity(test, args.context, original)
        change = 100 * (found.perplexity / base.perplexity - 1)
        print(f"{name:38}perplexity {found.perplexity:.4f} ({change:+.3f} %), divergence {found.divergence:.6f}, "
              f"same token {100 * found.agreement:.2f} %{note}", flush=True)  # fmt: skip

    for name, options in OURS.items():
        if args.only not in name:
            continue
        model, start = microgpt.load(args.model, dtype="float32"), time.perf_counter()
        method = options.get("method", "rtn")
        report = microgpt.quantize(model, **options, **({} if method == "rtn" else {"calibration": [calibration]}))
        note = f", {report.bits_per_weight:.2f} bits, error {100 * report.relative_error:.2f} %"
        note += f", {time.perf_counter() - start:.0f} s"
        for kind in ("float", "int8"):
            for weight in weights_of(model.decoder).values():
                weight.activations = kind
            show(name if kind == "float" else f"{name}, int8 activations", model, note)
    for name in THEIRS if importlib.util.find_spec("cyllama") else ():
        if args.only in name:
            model, bits = theirs(original, name, args.out)
            show(f"llama.cpp {name}", model, f", {bits:.2f} bits")


if __name__ == "__main__":
    main()

"""`microgpt convert`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ..errors import CheckpointError, ConfigError
from .common import Command, Model, Option, say, stoppable

EXAMPLES = """\
microgpt convert runs/names-1 names.gguf --type q8_0
microgpt convert my-model my-model.q4_k.gguf --type q4_k
microgpt convert my-model my-model.q4_k_m.gguf --type q4_k_m
microgpt convert my-model-gptq my-model-gptq.gguf --type keep
microgpt convert stories15M.bin stories15M
microgpt convert model.q4_0.gguf my-model --type bf16"""
FOLDER_TYPES = {"f32": "float32", "bf16": "bfloat16"}


def _run(source: Path | str, target: Path, kind: str | None, force: bool, quiet: bool) -> None:
    from .. import api
    from ..models.quantized import KEPT

    if str(target) == "." or str(source) == "":
        raise ConfigError("expected a source and a target, got an empty name")
    to_file = target.suffix.lower() == ".gguf"
    keep = kind is not None and kind.lower() == KEPT
    if not to_file and kind not in (None, *FOLDER_TYPES):
        raise ConfigError(
            f"--type {kind}: a folder holds {' or '.join(FOLDER_TYPES)}; name a target that ends in .gguf"
        )
    if to_file:
        from ..models.gguf_types import type_of

        kind = None if keep or kind is None else type_of(kind)
    if target.exists() and not force:
        raise ConfigError(f"{target} exists; --force replaces it")
    if target.exists() and target.is_dir() == to_file:
        raise ConfigError(
            f"{target}: expected a {'file' if to_file else 'folder'} to replace, got another kind of thing"
        )
    tell = (lambda line: None) if quiet else say
    started = time.perf_counter()
    with stoppable():
        try:
            dtype = None if to_file or kind is None else FOLDER_TYPES[kind]
            if isinstance(source, Path) and source.suffix == ".pth" and source.is_file():
                from ..models.rwkv import load_rwkv7
                from ..tokenizers.ids import IdsTokenizer

                decoder = load_rwkv7(source, dtype or "float32")
                model = api.LanguageModel(decoder, IdsTokenizer(decoder.config.vocab_size))
            else:
                model = api.load(source, dtype, tell, quantize=KEPT if keep else None)
        except ConfigError as error:  # what a file says is its own fault and not the command line's
            raise CheckpointError(str(error)) from error
        if to_file:
            model.export(target, kind)
            size = target.stat().st_size
        else:
            model.save(target)
            size = sum(path.stat().st_size for path in target.iterdir() if path.is_file())
    parameters = model.decoder.config.num_parameters()
    tell(
        f"saved in {target}: {size / 1e6:,.1f} MB, {8 * size / parameters:.2f} bits a parameter, "
        f"{time.perf_counter() - started:.1f} s"
    )


command = Command(
    "convert",
    callback=_run,
    params=[
        click.Argument(["source"], metavar="SOURCE", type=Model(exists=True, path_type=Path)),
        click.Argument(["target"], metavar="TARGET", type=click.Path(path_type=Path)),
        Option(["--type", "kind"], metavar="TYPE",
               help="Of a GGUF file's matrices: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k to q6_k, iq4_nl, "
               "iq4_xs, mxfp4, llama.cpp's mixtures q3_k_m, q4_k_m, q5_k_m, or keep: what others quantized stays as it "
               "is where GGUF has such blocks [default: f16]; of a folder: f32, bf16 [default: as the source has "
               "them]."),
        Option(["--force"], is_flag=True, help="Replace a target that exists."),
        Option(["--quiet"], is_flag=True, help="Print nothing but errors and warnings."),
    ],
    examples=EXAMPLES,
    help="Write a model in another format.\n\n"
    "SOURCE is a model folder, a run folder (its newest checkpoint), ORG/NAME of the hub, a GGUF file, a .bin of "
    "llama2.c or a .pth of RWKV-7's authors, of which tensors alone are read. A TARGET that ends in .gguf is a file "
    "for llama.cpp, any other a folder in the Hugging Face layout. Quantized weights of others become numbers on the "
    "way, unless --type keep; those of `microgpt quantize` stay. A GGUF file is complete or not there.",
)  # fmt: skip

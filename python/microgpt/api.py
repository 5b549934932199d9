"""The public face: load, train, LanguageModel, info. What stands here is a promise; everything below may change."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt

from . import __version__, system
from . import _kernels as k
from .autograd import no_grad
from .engine.config import GenerationConfig, GenerationOptions, shows_options
from .engine.embed import embed
from .engine.perplexity import Score, score
from .engine.sampler import whole
from .engine.text import write
from .errors import CheckpointError, ConfigError, ShapeError, StorageError, TokenizerError
from .io import files, hub, manifest
from .io.checkpoint import RunFolder, find_newest_run, verify
from .models.decoder import Decoder
from .models.gguf import save_gguf
from .models.gguf_config import facts_of
from .models.pooling import Pooling, pooling_of, read_pooling
from .models.pretrained import Checkpoint, open_checkpoint, save_decoder, stale, take
from .models.quantized import KEPT, Filters, Report, Scheme
from .nn.context import Ctx, Layout
from .state.spec import kv_type
from .tokenizers import embedded
from .tokenizers.base import Tokenizer
from .tokenizers.chat import Messages

if TYPE_CHECKING:  # what trains is imported by who trains: a tenth of the time that opening a model takes
    from .training.callback import Callback
    from .training.pretrain import Run

AT_ONCE = 256  # sequences that generate_many advances together; bounds the memory of their states
MOST = 1_000_000  # sequences of one call; their texts are one list in memory


@dataclass(frozen=True)
class Generation:
    """`text` and `ids` after the prompt; `finish_reason` stop (end token or stop string) or length; `usage` in tokens.

    `ids` are all that were drawn but the end token: after a stop string they hold what spells it, `text` does not.
    """

    text: str
    ids: list[int]
    finish_reason: str
    usage: dict[str, int]


class LanguageModel:
    """A decoder with its tokenizer. May be used from several threads: calls queue.

    `pooling` says how embed() makes one vector of a text, None where the model's files say nothing.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, pooling: Pooling | None = None) -> None:
        if decoder.config.vocab_size < tokenizer.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {decoder.config.vocab_size}"
            )
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.pooling = pooling
        self._lock = threading.RLock()

    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Ids (T) or (B, T) -> (T, V) or (B, T, V): scores of the next token after each. No tape."""
        self._writes()
        try:
            array = np.asarray(ids)
        except ValueError:
            raise ShapeError("ids: expected rows of one length; pass them one at a time") from None
        if array.ndim not in (1, 2):
            raise ShapeError(f"ids: expected (T) or (B, T), got {array.ndim} axes")
        rows = np.ascontiguousarray(self._ids(array.reshape(-1)).reshape(-1, array.shape[-1]))
        self._fits(rows.shape[1])
        with self._lock, no_grad():
            layout = Layout.packed([rows.shape[1]] * rows.shape[0])
            hidden = self.decoder.hidden(k.from_numpy(rows.reshape(-1)), Ctx(layout))
            scores = self.decoder.logits(hidden).numpy()
        return scores.reshape(*array.shape, scores.shape[-1])

    def loss(self, ids: Sequence[int] | npt.NDArray[Any]) -> float:
        """Mean negative log-likelihood in nats of ids[1:] given what stands before each; at least two ids."""
        from .training.objective import whole_text_loss

        self._writes()
        array = self._ids(np.asarray(ids).reshape(-1))
        if array.size < 2:
            raise ShapeError(f"loss: expected at least two ids, got {array.size}")
        self._fits(array.size - 1)
        with self._lock, no_grad():
            return whole_text_loss(self.decoder, array).item()

    @shows_options
    def generate(self, prompt: str = "", **options: Unpack[GenerationOptions]) -> Generation:
        """Continue `prompt`; the options are explained at GenerationConfig. The same seed gives the same text.

        A text ends before the first of the strings `stop`, also where that begins in the prompt.
        Raises TokenizerError, ShapeError, ConfigError; NonFiniteError where the model's scores are not finite.

            model.generate("Once upon a time", temperature=0.8, min_p=0.05, stop=["The end"]).text
        """
        return self.generate_many(prompt, 1, **options)[0]

    @shows_options
    def generate_many(self, prompt: str, count: int, **options: Unpack[GenerationOptions]) -> list[Generation]:
        """`count` continuations of one prompt, computed together; the first is what generate() gives."""
        config = GenerationConfig.of(options)
        count = whole("num_samples", count, lambda n: 1 <= n <= MOST, f"1 to {MOST}")
        prompt_ids = self._prompt(prompt)
        ids: list[list[int]] = [[] for _ in range(count)]
        texts: list[list[str]] = [[] for _ in range(count)]
        reasons = [""] * count
        with self._lock:
            for first in range(0, count, AT_ONCE):
                rows = min(AT_ONCE, count - first)
                for piece in write(self.decoder, self.tokenizer, prompt, prompt_ids, rows, config, first):
                    row = first + piece.row
                    texts[row].append(piece.text)
                    if piece.token is not None:
                        ids[row].append(piece.token)
                    reasons[row] = piece.finish_reason or ""
        return [
            Generation(
                "".join(text),
                each,
                reason,
                {"prompt_tokens": len(prompt_ids), "completion_tokens": len(each)},
            )
            for text, each, reason in zip(texts, ids, reasons, strict=True)
        ]

    @shows_options
    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_values: Mapping[str, Any] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """The assistant's reply to `messages`, dictionaries with a role and content, by the tokenizer's chat template.

        `tools`, `template` and `template_values` as in Tokenizer.apply_chat_template. Raises TemplateError where there
        is no template or it refuses the messages, and what generate() raises.

            model.chat([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=200).text
        """
        config = GenerationConfig.of(options)
        prompt = self._chat_prompt(messages, tools, template, template_values)
        texts, ids, reason = [], [], ""
        with self._lock:
            for piece in write(self.decoder, self.tokenizer, "", prompt, 1, config):
                texts.append(piece.text)
                ids += [] if piece.token is None else [piece.token]
                reason = piece.finish_reason or ""
        return Generation("".join(texts), ids, reason, {"prompt_tokens": len(prompt), "completion_tokens": len(ids)})

    @shows_options
    def stream_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_values: Mapping[str, Any] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[str]:
        """chat() piece by piece; the pieces joined are its text."""
        config = GenerationConfig.of(options)
        return self._stream("", self._chat_prompt(messages, tools, template, template_values), config)

    def _chat_prompt(
        self, messages: Messages, tools: Any, template: Any, values: Mapping[str, Any] | None
    ) -> list[int]:
        self._writes()
        return self.tokenizer.apply_chat_template(messages, tools=tools, template=template, **(values or {}))

    @shows_options
    def stream(self, prompt: str = "", **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """generate() piece by piece; the pieces joined are its text.

        No piece ends in half a character or in what may become a stop string.
        """
        config = GenerationConfig.of(options)
        return self._stream(prompt, self._prompt(prompt), config)

    def _stream(self, prompt: str, prompt_ids: list[int], config: GenerationConfig) -> Iterator[str]:
        pieces = write(self.decoder, self.tokenizer, prompt, prompt_ids, 1, config)
        while True:
            with self._lock:
                piece = next(pieces, None)
            if piece is None:
                return
            if piece.text:
                yield piece.text

    def embed(self, texts: Sequence[str], truncate: bool = False) -> npt.NDArray[np.float32]:
        """n texts -> (n, D), for encoders and models whose files state a pooling, as sentence-transformers does.

        An encoder without one takes the mean over all tokens, not normalized. `truncate` takes the first tokens of
        texts that are too long. Raises ConfigError for other decoders, ShapeError for a text too long or empty.

            a, b = model.embed(["A cat sleeps.", "A dog sleeps."])
        """
        with self._lock:
            return embed(self.decoder, self.tokenizer, self.pooling, texts, truncate)

    def perplexity(self, text: str, context: int | None = None, original: LanguageModel | None = None) -> Score:
        """How well the model predicts a text, and how far it is from `original`; see engine.perplexity.score()."""
        self._writes()
        ids = self.tokenizer.encode(text, add_bos=self.tokenizer.adds_bos)
        with self._lock:
            return score(self.decoder, ids, context, None if original is None else original.decoder)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the Hugging Face layout into `folder` (made if needed); transformers loads families it knows.

        The files are written beside the folder's own and renamed over them; what else belonged to a model that was
        there (its shards, its chat template) is removed. Raises StorageError.
        """
        place = Path(folder)
        temp = files.temp_name(place / "saving")
        made = not place.exists()
        done = False
        try:
            place.mkdir(parents=True, exist_ok=True)
            files.make_dir(temp)
            ends = sorted(self.tokenizer.stop_ids)  # several where the end of a turn is a token of its own
            eos = ends if len(ends) > 1 else self.tokenizer.eos_id
            save_decoder(self.decoder, temp, bos_id=self.tokenizer.bos_id, eos_id=eos)
            self.tokenizer.max_length = self.decoder.config.max_positions
            self.tokenizer.save(temp)
            if self.pooling is not None:
                self.pooling.save(temp)
            names, other = files.regular_files(temp), (place / "config.json").exists()
            for name in names:
                files.fsync_file(temp / name)
                (place / name).parent.mkdir(exist_ok=True)
                files.rename(temp / name, place / name)
            for path in stale(place, names) if other else ():
                files.remove(path)
            files.fsync_dir(place)
            done = True
        except OSError as error:
            if isinstance(error, StorageError):  # which says it all
                raise
            raise files.storage_error(f"saving {place}", place, error) from error
        finally:
            if temp.exists():
                files.remove(temp)
            if made and not done:
                with contextlib.suppress(OSError):  # never made, or no longer empty
                    place.rmdir()
        return place

    def export(self, path: str | os.PathLike[str], type: str | None = None) -> Path:
        """Write a GGUF file, replacing `path` when it is complete; llama.cpp reads it, with its vocabulary, and load().

        A vocabulary that llama.cpp cannot express is told by a warning; it then takes and gives ids.
        `type` of the matrices: f32, f16 (None), bf16, or a quantized type or mixture of GGUF's, such as q4_k_m (all are
        in models.gguf_types). Weights that are quantized keep their numbers where blocks of GGUF hold them.
        Raises ConfigError for a model that GGUF has no form for, NonFiniteError, StorageError.

            model.export("m.gguf", type="q4_k")
        """
        place = Path(path)
        if place.suffix.lower() != ".gguf":
            raise ConfigError(f"export: expected a path that ends in .gguf, got {place}; save() writes a model folder")
        name = place.stem.encode(errors="replace").decode()  # a file's name need not be UTF-8
        words = embedded.write(self.tokenizer, self.decoder.config.vocab_size)
        if self.pooling is not None:
            words |= self.pooling.metadata(facts_of(self.decoder.config).arch)
        save_gguf(self.decoder, place, type or "f16", {"general.name": name, **words})
        return place

    def _writes(self) -> None:
        if not self.decoder.config.causal:
            raise ConfigError(f"an encoder ({self.decoder.config.family}) does not predict the next token; see embed()")

    def _ids(self, array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        vocab = self.decoder.config.vocab_size
        if array.size == 0 or not np.issubdtype(array.dtype, np.integer):
            raise ShapeError(f"ids: expected at least one whole number, got {array.size} of type {array.dtype}")
        if array.min() < 0 or array.max() >= vocab:
            raise TokenizerError(f"ids: expected 0 to {vocab - 1}, got {int(array.min())} to {int(array.max())}")
        return array.astype(np.int32)

    def _fits(self, tokens: int) -> None:
        context = self.decoder.config.max_positions
        if tokens > context:
            raise ShapeError(f"ids: expected at most {context} tokens (the model's context), got {tokens}")

    def _prompt(self, prompt: str) -> list[int]:
        self._writes()
        if not isinstance(prompt, str):
            raise TokenizerError(f"prompt: expected a string, got {type(prompt).__name__}")
        ids = self.tokenizer.encode(prompt, add_bos=self.tokenizer.adds_bos)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        if not ids:
            raise ShapeError("the prompt is empty and the tokenizer has no token to begin with")
        return ids


def load(
    path: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] | None = None,
    *,
    quantize: str | Scheme | None = None,
    kv_dtype: str | None = None,
    report: Report | None = None,
) -> LanguageModel:
    """Open a model folder, a run folder (its newest good checkpoint), a GGUF or llama2.c file, or a model of the hub.

    None is the newest run below ./runs. A model of the hub, given by id as ORG/NAME, is downloaded (extra hub) into
    that library's cache.

    `dtype` float32, bfloat16 or float64; None keeps the file's, and makes float32 of quantized weights. `say` is told
    how much memory the weights need before they are read. A file without a vocabulary gets a tokenizer of bare ids.

    `quantize` int4, int8, int8_channel (or q4_0, q8_0) rounds the matrices while they are read, in groups of 32,
    without a copy of the whole (`report` then holds the error of each); "keep" leaves as they are those that a file
    has in blocks of a known layout. The bits of a quantized model in a folder stay as they are.

    `kv_dtype` f32, bf16 or int8 is what generation keeps keys and values as (int8 with a scale a token and head);
    None: as the model computes them.

    Raises CheckpointError, FormatError, ConfigError, TokenizerError.
    """
    stored = kv_type(kv_dtype)
    if isinstance(path, str) and hub.is_id(path):
        path = hub.download(path)
    place = find_newest_run() if path is None else Path(path)
    try:
        place.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CheckpointError(f"{place}: cannot open: {getattr(error, 'strerror', None) or error}") from error
    if not place.is_file():
        if not (place / "config.json").exists() and RunFolder(place).checkpoints():
            place, problems = RunFolder(place).latest()
            for line in problems:  # a checkpoint before a damaged one: better than none, and said
                warnings.warn(line, stacklevel=2)
        elif (place / manifest.NAME).exists():
            verify(place)
    found = open_checkpoint(place)
    keep = quantize == KEPT
    scheme = None if quantize is None or keep else Scheme.named(quantize) if isinstance(quantize, str) else quantize
    if scheme is not None and found.codes:
        raise ConfigError(f"{place}: is quantized already; quantize the original")
    if say is not None:
        kind, count = dtype or found.dtype, found.config.num_parameters()
        kind = scheme.layers if scheme is not None else "quantized" if found.codes or keep else kind
        megabytes = found.bytes_needed(dtype, scheme, keep) / 1e6
        say(f"{place}: {found.config.family}, {count:,} parameters, {megabytes:,.1f} MB of memory as {kind}")
    with system.Beside(lambda: _tokenizer_of(found, place)) as tokenizer:
        decoder = take(found, dtype, scheme, keep, report)
    decoder.kv_dtype = stored
    pooling = pooling_of(found.gguf or {}, str(place)) if place.is_file() else read_pooling(place)
    return LanguageModel(decoder, tokenizer(), pooling)


def _tokenizer_of(found: Checkpoint, place: Path) -> Tokenizer:
    whole = place.is_file()
    made = embedded.of_file(found.gguf, found.config.vocab_size, place) if whole else Tokenizer.load(place)
    k.trim_heap()  # a large vocabulary is read in tens of megabytes that nobody needs any more
    return made


def quantize(
    model: LanguageModel,
    bits: int = 4,
    group_size: int = 32,
    method: str = "rtn",
    say: Callable[[str], None] | None = None,
    *,
    filters: Filters = (),
    **options: Any,
) -> Report:
    """Round a model's matrices to 4 or 8 bits in place, a scale for every `group_size` numbers.

    Embeddings and head have 8; norms and biases stay. `filters` give what they select another type, or float:
    {"blocks.0.*": "int8"}; the first that fits. `method` rtn rounds to nearest with a search for the scales; imatrix,
    gptq and awq look at what the model does with a `calibration` text; for this and other `options` see
    quantization.quantize_model(). Raises ConfigError, NonFiniteError naming the weight, DataError.

        microgpt.quantize(model, bits=4, method="gptq", calibration="text.txt").relative_error
    """
    from .quantization import quantize_model

    scheme = Scheme.of_bits(bits, group_size, filters)
    with model._lock:
        return quantize_model(model.decoder, model.tokenizer, scheme, method, say=say, **options)


def train(
    *,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    show: bool = False,
    say: Callable[[str], None] | None = None,
    handle_signals: bool = False,
    **settings: Any,
) -> Run:
    """Train a model; settings are the fields of TrainConfig and the options of `microgpt train`.

    `out`: run folder (None does not save). `resume`: go on with a run folder; settings given then replace its own.
    `config`: a TOML or YAML file of settings, which those given here precede. `handle_signals`: SIGINT and SIGTERM
    finish the step, save a checkpoint and return. Raises ConfigError for unknown or impossible settings, DataError,
    LockError, StorageError, NonFiniteError, CheckpointError, MissingExtraError.

        run = microgpt.train(data="names", steps=1000)
    """
    from .training.pretrain import pretrain
    from .training.start import chosen_config

    return pretrain(
        chosen_config(settings, out, resume, config, say),
        None if out is None else Path(out),
        None if resume is None else Path(resume),
        show=show,
        say=say,
        callbacks=callbacks,
        sampler=_sample,
        handle_signals=handle_signals,
    )


def _sample(decoder: Decoder, tokenizer: Tokenizer, prompt: str, seed: int) -> str:
    """The text of `sample_every`."""
    return LanguageModel(decoder, tokenizer).generate(prompt, temperature=0.8, seed=seed % 2**64).text


def viz(
    *runs: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    width: int = 76,
    ascii_only: bool = False,
) -> list[str]:
    """The lines of `microgpt viz`: losses of run folders as a chart of `width` characters, and a table.

    `out` draws a picture as well: .svg, or .png, .pdf, .jpg with matplotlib. Raises CheckpointError for a folder
    without records, ConfigError, MissingExtraError, StorageError.
    """
    from .training import curves

    found = [curves.read_curve(Path(run)) for run in runs]
    if not found:
        raise ConfigError("viz: expected at least one run folder")
    if out is not None:
        curves.save_picture(found, Path(out))
    return [*curves.text_chart(found, width, ascii_only=ascii_only), "", *curves.table(found)]


def info() -> dict[str, Any]:
    """What `microgpt doctor` prints: processor, instruction sets, threads, memory, versions."""
    threads, why, quota = k.thread_choice()
    total, available = system.memory()
    return {
        "microgpt": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": k.cpu_model(),
        "features": k.cpu_features(),
        "isa": k.isa(),
        "isas": dict(k.isas()),
        "threads": k.num_threads(),
        "threads_default": threads,
        "threads_why": why,
        "cpu_quota": quota,
        "openmp": k.openmp_runtime(),
        "memory_total": total,
        "memory_available": available,
        "executable": sys.executable,
        "environment": {n: v for n, v in sorted(os.environ.items()) if n.startswith(("MICROGPT_", "OMP_"))},
    }

"""The public face: load, train, LanguageModel, info. What stands here is a promise; everything below may change."""

from __future__ import annotations

import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import __version__
from . import _kernels as k
from .autograd import no_grad
from .engine.generate import generate_ids
from .engine.sampler import Sampling
from .errors import ConfigError, ShapeError, TokenizerError
from .io import files, manifest
from .io.checkpoint import RunFolder, find_newest_run, verify
from .models.decoder import Decoder
from .models.pretrained import load_decoder, save_decoder
from .nn.context import Ctx, Layout
from .tokenizers.base import Tokenizer
from .tokenizers.stream import StreamDecoder
from .training.callback import Callback
from .training.config import TrainConfig, check_names
from .training.objective import whole_text_loss
from .training.pretrain import Run, pretrain
from .training.resume import changed, run_config
from .training.settings import read_settings, with_file

AT_ONCE = 256  # sequences that generate_many advances together; bounds the memory of their states


@dataclass(frozen=True)
class Generation:
    """`text` and `ids` after the prompt; `finish_reason` stop (end token) or length; `usage` counts tokens."""

    text: str
    ids: list[int]
    finish_reason: str
    usage: dict[str, int]


class LanguageModel:
    """A decoder with its tokenizer. May be used from several threads: calls queue."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        if decoder.config.vocab_size < tokenizer.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {decoder.config.vocab_size}"
            )
        self.decoder = decoder
        self.tokenizer = tokenizer
        self._lock = threading.RLock()

    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Ids (T) or (B, T) -> (T, V) or (B, T, V): scores of the next token after each. No tape."""
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
        array = self._ids(np.asarray(ids).reshape(-1))
        if array.size < 2:
            raise ShapeError(f"loss: expected at least two ids, got {array.size}")
        self._fits(array.size - 1)
        with self._lock, no_grad():
            return whole_text_loss(self.decoder, array).item()

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Generation:
        """Continue `prompt`. The same seed gives the same text. Raises TokenizerError, ShapeError, ConfigError."""
        return self.generate_many(
            prompt, 1, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )[0]

    def generate_many(
        self,
        prompt: str,
        count: int,
        *,
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Generation]:
        """`count` continuations of one prompt, computed together; the first is what generate() gives."""
        if count < 1:
            raise ConfigError(f"num_samples: expected at least 1, got {count}")
        prompt_ids = self._prompt(prompt)
        sampling = Sampling(temperature, top_k, top_p, seed)
        ids: list[list[int]] = [[] for _ in range(count)]
        reasons = [""] * count
        with self._lock:
            for first in range(0, count, AT_ONCE):
                prompts = [prompt_ids] * min(AT_ONCE, count - first)
                for event in generate_ids(self.decoder, prompts, sampling, max_tokens, self._stops(), first):
                    row = first + event.row
                    if event.finish_reason:
                        reasons[row] = event.finish_reason
                    if event.finish_reason != "stop":
                        ids[row].append(event.token)
        return [
            Generation(
                self.tokenizer.decode(each),
                each,
                reason,
                {"prompt_tokens": len(prompt_ids), "completion_tokens": len(each)},
            )
            for each, reason in zip(ids, reasons, strict=True)
        ]

    def stream(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """generate() piece by piece; the pieces joined are its text, and no piece ends in half a character."""
        sampling = Sampling(temperature, top_k, top_p, seed)
        events = generate_ids(self.decoder, [self._prompt(prompt)], sampling, max_tokens, self._stops())
        decoder = StreamDecoder(self.tokenizer)
        while True:
            with self._lock:
                event = next(events, None)
            if event is None:
                break
            if event.finish_reason != "stop" and (piece := decoder.push(event.token)):
                yield piece
        if rest := decoder.finish():
            yield rest

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the Hugging Face layout into `folder` (made if needed); transformers loads families it knows.

        The files are written beside the folder's own and renamed over them. Raises StorageError.
        """
        place = Path(folder)
        temp = files.temp_name(place / "saving")
        try:
            place.mkdir(parents=True, exist_ok=True)
            files.make_dir(temp)
            save_decoder(self.decoder, temp, bos_id=self.tokenizer.bos_id, eos_id=self.tokenizer.eos_id)
            self.tokenizer.max_length = self.decoder.config.max_positions
            self.tokenizer.save(temp)
            for name in files.regular_files(temp):
                files.fsync_file(temp / name)
                files.rename(temp / name, place / name)
            files.fsync_dir(place)
        except OSError as error:
            raise files.storage_error(f"saving {place}", place, error) from error
        finally:
            if temp.exists():
                files.remove(temp)
        return place

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
        ids = self.tokenizer.encode(prompt, add_bos=self.tokenizer.bos_id is not None)
        if not ids:
            raise ShapeError("the prompt is empty and the tokenizer has no token to begin with")
        return ids

    def _stops(self) -> tuple[int, ...]:
        return () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)


def load(path: str | os.PathLike[str] | None = None, dtype: str | None = None) -> LanguageModel:
    """Open a model folder or a run folder (its newest good checkpoint); None is the newest run below ./runs.

    `dtype` float32 or float64; None keeps the file's. Raises CheckpointError, FormatError, ConfigError.
    """
    place = find_newest_run() if path is None else Path(path)
    if not (place / "config.json").exists() and RunFolder(place).checkpoints():
        place, problems = RunFolder(place).latest()
        for line in problems:  # a checkpoint before a damaged one: better than none, and said
            warnings.warn(line, stacklevel=2)
    elif (place / manifest.NAME).exists():
        verify(place)
    decoder = load_decoder(place, dtype)
    return LanguageModel(decoder, Tokenizer.load(place))


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
    check_names(settings)
    if config is not None:
        settings = with_file(read_settings(Path(config)), settings)
    if resume is not None:
        if out is not None:
            raise ConfigError("give out or resume, not both")
        chosen, lines = changed(run_config(Path(resume)), settings)
        if say is not None:
            for line in lines:
                say(line)
    else:
        chosen = TrainConfig(**settings)
    return pretrain(
        chosen,
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


def info() -> dict[str, Any]:
    """What `microgpt doctor` prints: processor, instruction sets, threads, memory, versions."""
    threads, why, quota = k.thread_choice()
    total, available = _memory()
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


def _memory() -> tuple[int | None, int | None]:
    """Bytes in all and free for use, from the kernel; None where it does not say."""
    found: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None, None
    return found.get("MemTotal"), found.get("MemAvailable")

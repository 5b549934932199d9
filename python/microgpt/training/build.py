"""What a configuration describes: data, model, optimizer, number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import _kernels as k
from ..data.batches import Batches
from ..data.corpus import read_documents
from ..data.split import split
from ..models.config import ModelConfig
from ..models.decoder import Decoder
from ..models.zoo import MODELS
from ..optim import RULES, Optimizer
from ..optim.groups import named_groups
from ..tokenizers.base import Tokenizer
from ..tokenizers.char import CharTokenizer
from .config import TrainConfig


@dataclass
class Prepared:
    """Batches and what made them; `summary` for people."""

    tokenizer: Tokenizer
    train: Batches
    validation: Batches | None
    summary: list[str]
    val_bytes_per_token: float = 0.0


def make_data(
    config: TrainConfig,
    tokenizer: Tokenizer | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] | None = None,
    show: bool = False,
) -> Prepared:
    """Read and split the corpus, make a tokenizer unless one is given, cut batches."""
    assert isinstance(config.data, str)
    corpus = read_documents(config.data, config.documents)
    chosen = tokenizer or CharTokenizer.train(corpus.documents)

    def batches(documents: list[str], shuffle: bool) -> Batches:
        ids = chosen.encode_many(documents, add_bos=True, add_eos=True)
        return Batches(ids, config.block_size, config.batch_size, config.seed, shuffle, vocab_size=chosen.vocab_size)

    first, second = split(corpus.documents, config.val_fraction, config.seed)
    train = batches(first, True)
    summary = [
        f"{len(corpus.documents):,} documents from {corpus.source} (one per {corpus.kind}), "
        f"{train.targets_per_epoch:,} training tokens, vocabulary {chosen.vocab_size}"
    ]
    return Prepared(chosen, train, batches(second, False) if second else None, summary)


def resolve_dtype(dtype: str) -> str:
    """`auto` is bfloat16 where this machine multiplies it fast, else float32."""
    if dtype != "auto":
        return dtype
    fast = getattr(k, "fast_bf16", None)
    return "bfloat16" if fast is not None and fast() else "float32"


def model_config(config: TrainConfig, vocab_size: int) -> ModelConfig:
    """The architecture that the configuration describes."""
    make = MODELS.get(config.model)
    return make(vocab_size, config.width, config.layers, config.heads, config.block_size, config.dropout)


def make_model(config: TrainConfig, vocab_size: int) -> Decoder:
    """The model that the configuration describes, with initial weights."""
    model = Decoder(model_config(config, vocab_size), dtype=resolve_dtype(config.dtype), seed=config.seed)
    model.remat = config.checkpointing
    return model


def make_optimizer(config: TrainConfig, model: Decoder) -> Optimizer:
    """The optimizer that the configuration describes. Raises ConfigError for a group that selects nothing."""
    cls = RULES.get(config.optimizer)
    settings = (
        {"beta1": config.beta1, "beta2": config.beta2, "eps": config.eps}
        if config.optimizer == "adamw"
        else {"momentum": config.momentum}
    )
    groups = named_groups(model, config.weight_decay, config.groups)
    return Optimizer(model, cls(**settings), groups, config.clip)


def loss_options(config: TrainConfig) -> dict[str, float]:
    """What the training loss has beyond cross-entropy; absent where it is zero."""
    options = {"label_smoothing": config.label_smoothing, "z_loss": config.z_loss}
    return {name: value for name, value in options.items() if value}


def total_steps(config: TrainConfig, train: Batches) -> int:
    """Steps from `steps`, or from `epochs` rounded up; 1,000 without either."""
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * train.windows / (config.batch_size * config.accumulate)))
    return config.steps or 1000

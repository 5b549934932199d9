"""Models of the Hugging Face hub by id, through their `huggingface_hub` library and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckpointError, MissingExtraError
from .shards import HOW

# What a model folder is made of; not the pickles, the other frameworks' weights and the pictures beside them.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "*.tiktoken",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
IGNORED = ("model.*.safetensors",)  # the same weights in another type (model.fp16.safetensors)
AT_ONCE = 2  # files: an interrupted download loses those in flight
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,200})?", re.ASCII)


def is_id(name: str) -> bool:
    """Whether `name` has the form ORG/NAME or ORG/NAME@REVISION and is no path that exists."""
    return _ID.fullmatch(name) is not None and ".." not in name and not Path(name).exists()


def download(name: str) -> Path:
    """The folder of a model in the library's cache, downloaded as far as it is not there yet.

    `name` is ORG/NAME, or ORG/NAME@REVISION for a branch, tag or commit. A connection that breaks is taken up again
    where it broke; a download that was stopped goes on with the files that were not complete. Progress is shown on
    stderr. Without a network what is in the cache is taken. Raises CheckpointError where the model is neither to be had
    nor in the cache, and for one without safetensors; MissingExtraError without `huggingface_hub`.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise MissingExtraError("a model of the hub needs huggingface_hub; pip install microgpt[hub]") from error
    repository, _, revision = name.partition("@")
    cache = constants.HF_HUB_CACHE
    try:
        found = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(IGNORED),
            library_name="microgpt",
            max_workers=AT_ONCE,
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: its owner grants access; ask for it on the hub, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such model on the hub (or a private one), and no folder of that name"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the model has no revision {revision!r}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if type(error).__name__ == "IncompleteSnapshotError":  # of newer versions
            raise CheckpointError(
                f"{name}: the hub cannot be reached, and the model is not complete in the cache {cache}"
            ) from error
        raise CheckpointError(
            f"{name}: no such file or folder here; the hub cannot be reached, and the model is not in the cache {cache}"
        ) from error
    except Exception as error:  # what a network does
        line = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{name}: the download into {cache} failed; try again to go on ({line})") from error
    folder = Path(found)
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{name}: no config.json in {folder}; the download is not complete, or it is no model")
    if not any(folder.glob("*.safetensors")):
        how = HOW.replace("IN", repository, 1)
        raise CheckpointError(
            f"{name}: the model has no safetensors; a pickle is never opened, being a program: convert it where you "
            f"trust it, {how}"
        )
    return folder

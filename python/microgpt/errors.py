"""Every error that microgpt raises on purpose. All derive from :class:`MicrogptError`.

A message says what is wrong, where, what was expected and what was found, in one line where it can.
The second base class is the builtin that a reader of Python would expect, so ``except ValueError`` still works.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MicrogptError(Exception):
    """Base of every error raised on purpose by microgpt."""


class ShapeError(MicrogptError, ValueError):
    """An array's shape or size does not fit the operation."""


class DTypeError(MicrogptError, TypeError):
    """An array's element type (or byte order, or layout) is not one the operation takes."""


class ConfigError(MicrogptError, ValueError):
    """A setting, configuration key or command-line value is unknown or impossible."""


class DataError(MicrogptError, ValueError):
    """Training or evaluation data cannot be used: empty, binary, not UTF-8, gone or changed."""


class TokenizerError(MicrogptError, ValueError):
    """Text or token ids that the vocabulary does not cover, or a tokenizer file that is broken."""


class TemplateError(MicrogptError, ValueError):
    """A chat template is broken, asks for too much, or refuses the messages; then the message is the template's own."""


class FormatError(MicrogptError, ValueError):
    """A file's bytes do not follow its format: truncated, altered, inconsistent or too large."""


class CheckpointError(MicrogptError, RuntimeError):
    """A checkpoint folder is missing files, of another version, or does not fit the model."""


class StorageError(MicrogptError, OSError):
    """Writing failed or would not fit: disk full, file-size limit, permissions."""


class LockError(MicrogptError, RuntimeError):
    """Another process owns the run folder."""


class NonFiniteError(MicrogptError, FloatingPointError):
    """A loss or gradient became NaN or infinite; the weights were left as they were."""


class RecordingError(MicrogptError, RuntimeError):
    """Data was read or changed outside an op while a program was being recorded."""


class IsaError(MicrogptError, RuntimeError):
    """An instruction set was asked for that this machine or this build does not have."""


class MissingExtraError(MicrogptError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""


class ChildError(MicrogptError, RuntimeError):
    """A process that was started to help (a bench's rival) ended, hung or failed; the message has its last words."""


class UsageError(MicrogptError, RuntimeError):
    """An object was used in a way or an order that it does not allow."""


def nearest(name: object, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name that begins with `name`, else the closest, or an empty string."""
    if not isinstance(name, str):
        return ""
    names = list(known)
    longer = sorted(each for each in names if each.startswith(f"{name}_")) if name else []
    found = longer[:1] or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""

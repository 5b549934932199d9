"""Text while it is being generated, never half a character."""

from __future__ import annotations

from collections.abc import Sequence

from microgpt.tokenizers.base import Tokenizer

_UNFINISHED = "\ufffd"  # what decoders write for bytes that are not (yet) a character
_LONGEST_WAIT = 64  # ids; only bytes that will never be text take that long


class StreamDecoder:
    """Turns ids into text one at a time; the pieces joined are the text of all ids.

    It decodes the ids of the last piece together with the new ones, because spacing and the bytes of one
    character depend on neighbours, and holds text back while it ends in an unfinished character. `context` are ids
    whose text came before.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = list(context)
        self._context = len(self._ids)  # how many of the ids are already emitted

    def push(self, token: int) -> str:
        """The text that `token` completes, often empty; raises TokenizerError for an id outside the
        vocabulary.
        """
        if self._skip and token in self._tokenizer.special_ids:
            return ""
        return self._piece([*self._ids, token], final=False)

    def finish(self) -> str:
        """What was held back, unfinished characters as U+FFFD; the decoder is then ready for another text."""
        piece = self._piece(self._ids, final=True)
        self._ids, self._context = [], 0
        return piece

    def _piece(self, ids: list[int], final: bool) -> str:
        text = self._tokenizer.decode(ids, self._skip)
        before = self._tokenizer.decode(ids[: self._context], self._skip)
        self._ids = ids
        waiting = len(ids) - self._context
        if not final and text.endswith(_UNFINISHED) and waiting < _LONGEST_WAIT:
            return ""
        if len(text) > len(before):
            self._ids, self._context = ids[self._context :], waiting
        else:  # no text of its own, but the next one may depend on it
            self._context = len(ids)
        return text[len(before) :]

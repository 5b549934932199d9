"""Texts while they are written: pieces that never end in half a character or in what may become a stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..models.decoder import Decoder
from ..tokenizers.base import Tokenizer
from ..tokenizers.stream import StreamDecoder
from .config import GenerationConfig
from .generate import generate_ids

CONTEXT = 8  # ids of a prompt that how the next one reads may depend on


@dataclass(frozen=True)
class Piece:
    """A new token of sequence `row` (None: the end token, which is no part of the text) and the text it completes.

    `finish_reason` is set with the last piece: stop (the end token or a stop string) or length.
    """

    row: int
    token: int | None
    text: str
    finish_reason: str | None


class StopScanner:
    """Passes text on until a stop string is complete. The result does not depend on how the text is cut into pieces.

    The stop string that is complete first counts, of several the longest. It may begin in `before`, the text of the
    prompt, but not end there.
    """

    def __init__(self, stops: Sequence[str], before: str = "") -> None:
        self.ended = False
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        tail = before[max(0, len(before) - self._longest + 1) :] if stops else ""
        self._old = len(tail)  # characters of what is held that are the prompt's
        self._held = tail

    def push(self, text: str) -> str:
        """The text that can be shown now."""
        if self.ended:
            return ""
        if not self._stops:
            return text
        checked, self._held = len(self._held), self._held + text
        ends = []
        for stop in self._stops:
            # A match has to end in the new text: what came before has been searched, or is the prompt.
            at = self._held.find(stop, max(0, checked - len(stop) + 1))
            if at >= 0:
                ends.append((at + len(stop), at))
        if ends:
            self.ended = True
            return self._release(min(ends)[1])
        return self._release(self._first_possible())

    def finish(self) -> str:
        """What was held back, which now can become no stop string."""
        return "" if self.ended else self._release(len(self._held))

    def _first_possible(self) -> int:
        """Where the longest end of the held text lies that a stop string begins with."""
        for at in range(max(0, len(self._held) - self._longest + 1), len(self._held)):
            end = self._held[at:]
            if any(stop.startswith(end) for stop in self._stops):
                return at
        return len(self._held)

    def _release(self, end: int) -> str:
        start, self._old = min(self._old, end), max(0, self._old - end)
        shown, self._held = self._held[start:end], self._held[end:]
        return shown


class Writer:
    """The text of one sequence, token by token."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], prompt: str, context: Sequence[int] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer, context=context)
        self._scanner = StopScanner(stops, prompt)

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        return self._scanner.push(self._decoder.push(token))

    def finish(self) -> str:
        """The rest of the text."""
        return self._scanner.push(self._decoder.finish()) + self._scanner.finish()

    @property
    def ended(self) -> bool:
        """A stop string is complete."""
        return self._scanner.ended


def write(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    prompt_ids: Sequence[int],
    count: int,
    config: GenerationConfig,
    first_row: int = 0,
) -> Iterator[Piece]:
    """`count` texts after one prompt, together; errors and `first_row` as in generate_ids.

    Where `prompt` is text, the texts go on from it: with the space that some vocabularies leave out at a beginning.
    """
    context = prompt_ids[-CONTEXT:] if prompt else ()
    writers = [Writer(tokenizer, config.stop, prompt, context) for _ in range(count)]
    stop_ids = () if config.ignore_eos else tuple(tokenizer.stop_ids)
    texts = [""] * count

    def ends(row: int, token: int) -> bool:
        texts[row] = writers[row].push(token)
        return writers[row].ended

    for event in generate_ids(model, [prompt_ids] * count, config, config.max_tokens, stop_ids, first_row, ends):
        row, reason = event.row, event.finish_reason
        token = None if event.token in stop_ids else event.token
        text = "" if token is None else texts[row]
        if reason is not None:
            text += writers[row].finish()
            if writers[row].ended:  # characters that stay unfinished may complete one, too
                reason = "stop"
        yield Piece(row, token, text, reason)

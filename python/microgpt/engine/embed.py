"""Texts as vectors: an encoder's hidden states, pooled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from .. import ops
from ..autograd import no_grad
from ..errors import ConfigError, NonFiniteError, ShapeError, TokenizerError
from ..models.decoder import Decoder
from ..models.pooling import Pooling
from ..nn.context import Ctx, Layout
from ..tokenizers.base import Tokenizer

TOKENS = 4096  # computed at once; bounds the memory of activations


def embed(
    decoder: Decoder, tokenizer: Tokenizer, pooling: Pooling | None, texts: Sequence[str], truncate: bool
) -> npt.NDArray[np.float32]:
    """See LanguageModel.embed. A row does not depend on the other texts, bit for bit."""
    if pooling is None and decoder.config.causal:
        raise ConfigError(
            "embed: a decoder whose files state no pooling (modules.json); its hidden states predict the next token"
        )
    pooling = pooling or Pooling()
    if pooling.others:
        raise ConfigError(f"embed: the model's files ask for what is not supported: {', '.join(pooling.others)}")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TokenizerError("embed: expected a list of strings")
    longest = min(pooling.max_tokens or decoder.config.max_positions, decoder.config.max_positions)
    before, after = tokenizer.frame
    rows = []
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text.lower() if pooling.lower_case else text)
        room = longest - len(before) - len(after)
        if len(ids) > room and not truncate:
            raise ShapeError(
                f"text {number}: expected at most {longest} tokens, got {len(ids) + longest - room}; "
                "truncate=True takes the first ones"
            )
        rows.append([*before, *ids[: max(room, 0)], *after])
        if not 1 <= len(rows[-1]) <= longest:
            raise ShapeError(f"text {number}: expected 1 to {longest} tokens, got {len(rows[-1])}")
    found = np.empty((len(rows), decoder.config.width), np.float32)
    first = 0
    while first < len(rows):
        last, tokens = first + 1, len(rows[first])
        while last < len(rows) and tokens + len(rows[last]) <= TOKENS:
            tokens, last = tokens + len(rows[last]), last + 1
        lengths = [len(row) for row in rows[first:last]]
        with no_grad():
            flat = np.concatenate([np.asarray(row, np.int32) for row in rows[first:last]])
            hidden = decoder.hidden(k.from_numpy(flat), Ctx(Layout.packed(lengths)))
            rounded = ops.cast(hidden, "float32").numpy()
        ends = np.cumsum(lengths)
        for row, (end, length) in enumerate(zip(ends, lengths, strict=True), first):
            found[row] = pooling(rounded[end - length : end])
        first = last
    if not np.isfinite(found).all():
        raise NonFiniteError("embed: the model's hidden states are not finite")
    return found

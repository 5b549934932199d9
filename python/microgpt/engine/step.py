"""One-token steps of sequences that go on together: recorded once for each number of them, and replayed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .. import _kernels as k
from ..autograd import no_grad
from ..models.decoder import Decoder
from ..nn.context import Ctx, Layout
from ..program import Program
from ..state.contiguous import ContiguousStates
from ..tensors import Tensor
from .sampler import Draws

Array = k.Array


class _Step:
    """The recorded step of so many sequences, and the buffers that it reads."""

    def __init__(self, model: Decoder, states: ContiguousStates, count: int, draws: Draws | None) -> None:
        # One buffer: between two steps whatever Python touches comes from memory, which weights have gone through.
        fed = k.empty((5 * count,), "int32")
        self.fed = fed.numpy()
        layout = Layout(count, count, states.capacity)
        tokens, places, layout.k_start, layout.k_len, layout.positions = (
            fed.view((count,), at) for at in range(0, 5 * count, count)
        )
        layout.q_start.copy_from(np.arange(count + 1, dtype=np.int32))

        drawn = k.empty((count,), "int32")

        def run() -> tuple[Tensor, Array]:  # knows nothing of the step: a cycle would keep the states until collected
            with no_grad(), states.placed(places):
                logits = model.logits(model.hidden(tokens, Ctx(layout, states=states)))
            if draws is not None:
                draws.kernel(logits.data, drawn)
            return logits, drawn

        self.program = Program(run)


class Steps:
    """Advances sequences of `states` by a token each; the same bits as forward_cached(). With `draws` the token that
    follows is drawn inside the step."""

    def __init__(self, model: Decoder, states: ContiguousStates, draws: Draws | None = None) -> None:
        self.model = model
        self.states = states
        self.draws = draws
        self._steps: dict[int, _Step] = {}

    def fits(self, rows: Sequence[int]) -> bool:
        """Whether a step of these sequences can be recorded: recurrent layers advance all or none."""
        return not self.states.recurrent_layers or list(rows) == list(range(len(self.states.lengths)))

    def run(self, rows: Sequence[int], tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Token i goes to sequence rows[i]; logits (n, V), valid until the next step. Raises ShapeError for a full
        cache."""
        return self._run(rows, tokens)[0].numpy()

    def draw(self, rows: Sequence[int], tokens: Sequence[int]) -> npt.NDArray[np.int32]:
        """Token i goes to sequence rows[i]; the tokens that follow (n), -1 where none can be drawn."""
        return self._run(rows, tokens)[1].numpy()

    def _run(self, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Array]:
        count = len(rows)
        if self.draws is not None:
            self.draws.feed(rows)
        step = self._steps.get(count)
        if step is None:
            step = self._steps[count] = _Step(self.model, self.states, count, self.draws)
        new = [0] * len(self.states.lengths)
        for row in rows:
            new[row] = 1
        self.states.begin(new)
        starts, past = ([each[row] for row in rows] for each in (self.states.rows, self.states.lengths))
        places = [start + length for start, length in zip(starts, past, strict=True)]
        step.fed[:] = [*tokens, *places, *starts, *(length + 1 for length in past), *past]
        found = step.program()
        self.states.commit()
        return found

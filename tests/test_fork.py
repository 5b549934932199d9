"""A forked child computes, on a team of its own."""

from __future__ import annotations

import os
import signal
import warnings

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import ops
from microgpt.program import Program


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("trial", range(3))
def test_a_forked_child_computes(trial: int) -> None:
    """The team's threads are gone in a child; it starts serial. The alarm ends a child that hangs."""
    x, weight = k.from_numpy(normal(200, 129)), k.from_numpy(normal(129, 129))
    k.set_num_threads(2)
    program = Program(lambda: ops.linear(ops.linear(x, weight), weight))
    want = program().numpy().tobytes()
    with warnings.catch_warnings():  # Python 3.12 warns of fork beside threads: that is the test
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            eager = ops.linear(ops.linear(x, weight), weight).numpy().tobytes()
            os._exit(0 if eager == want and program().numpy().tobytes() == want else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), f"the child was ended by signal {os.WTERMSIG(status)}"
    assert os.WEXITSTATUS(status) == 0
    assert program().numpy().tobytes() == want

"""A call beside a block: its result, and which of two exceptions is raised."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from microgpt.system import Beside


def fail(error: BaseException) -> Any:
    raise error


def test_runs_beside_the_block():
    begun, ended = threading.Event(), threading.Event()

    def call() -> int:
        begun.set()
        assert ended.wait(60)  # what the block does
        return 3

    with Beside(call) as found:
        assert begun.wait(60)
        ended.set()
    assert found() == 3


def test_the_calls_exception_is_raised_where_the_block_ends():
    reached = []
    with pytest.raises(ValueError, match="of the call"), Beside(lambda: fail(ValueError("of the call"))):
        reached.append(1)
    assert reached == [1]


def test_the_calls_exception_precedes_the_blocks_but_not_an_interrupt():
    with pytest.raises(ValueError, match="of the call"), Beside(lambda: fail(ValueError("of the call"))):
        raise KeyError("of the block")
    with pytest.raises(KeyError, match="of the block"), Beside(lambda: 3):
        raise KeyError("of the block")
    with pytest.raises(KeyboardInterrupt), Beside(lambda: fail(ValueError("of the call"))):
        raise KeyboardInterrupt


def test_where_there_is_no_thread_the_call_comes_first(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda self: fail(RuntimeError("can't start new thread")))
    done = []
    with Beside(lambda: done.append("call")):
        done.append("block")
    assert done == ["call", "block"]
    with pytest.raises(ValueError, match="of the call"), Beside(lambda: fail(ValueError("of the call"))):
        done.append("never")
    assert done == ["call", "block"]

"""Strict mode for every test: warnings are errors (pyproject.toml), nothing left switched on, a stack at a crash."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

faulthandler.enable()
# The same examples in every run; long runs draw new ones.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=60, database=None)
settings.register_profile("soak", deadline=None, max_examples=3000, database=None)
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job; tests send signals
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr == "soak":
        settings.load_profile("soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in config.option.markexpr:
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped").strip(": ")
        assert reason and reason != "unconditional skip", f"{report.nodeid}: a skipped test says what is missing"


@pytest.fixture(autouse=True)
def runtime_as_found() -> Iterator[None]:
    """Threads and instruction set as they were; a test that leaves a recording or no_grad behind fails."""
    from microgpt import _kernels as k
    from microgpt.autograd import is_grad_enabled

    threads, isa = k.num_threads(), k.isa()
    yield
    if k.num_threads() != threads:
        k.set_num_threads(threads)
    if k.isa() != isa:
        k.set_isa(isa)
    assert not k.recording(), "the test left this thread recording"
    assert is_grad_enabled(), "the test left no_grad on"

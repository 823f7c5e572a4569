"""What holds for every test: no descriptor is left open, a hang ends, and under CI nothing is skipped.

``SOCKMAP_LB_REQUIRE_ALL=1`` turns every skip, of a test or of a whole module, into a failure: where it is
set, a kernel without sockmap, a missing program or a missing privilege is an error of the machine.
"""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest
import uvloop
from hypothesis import settings as hypothesis_settings
from pytest_timeout import Settings

REQUIRE_ALL = os.environ.get("SOCKMAP_LB_REQUIRE_ALL") == "1"

# The machine may be busy: a slow example is not a wrong one.
hypothesis_settings.register_profile("sockmap-lb", deadline=None)
hypothesis_settings.load_profile("sockmap-lb")

# The first loop of a process opens libuv's signal pipe, which stays: it is no leak of the first test.
uvloop.new_event_loop().close()


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        return f"{path}:{line}: {reason}"
    return str(report.longrepr)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a failure of a skip; an expected failure (xfail) is no skip."""
    if REQUIRE_ALL and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.longrepr = f"SOCKMAP_LB_REQUIRE_ALL=1 allows no skip: {_reason(report)}"
        report.outcome = "failed"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


class TimedOut(SystemExit):
    """The test ran out of time.

    pytest-timeout raises an exception of its own, which uvloop logs and forgets when it strikes inside a
    callback: the test would go on, and pass. SystemExit leaves either loop, and pytest counts it as a
    failure.
    """


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(settings: Settings) -> bool:
    def strike(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise TimedOut(f"the test took longer than {settings.timeout} s")

    signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer() -> bool:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return True


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Spare the collection after each test the walk over what the imports made, which live to the end."""
    gc.collect()
    gc.freeze()


def _open_fds() -> set[tuple[int, str]]:
    """Return number and target of every open descriptor, less the one that reads the list."""
    fds = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            fds.add((int(entry.name), str(entry.readlink())))
        except FileNotFoundError:
            continue
    return fds


@pytest.fixture(autouse=True)
def _no_fd_leak() -> Iterator[None]:
    """Fail a test that leaves descriptors open.

    As the first fixture of a test it is the last to end: what the other fixtures of the test close is closed
    by then. Descriptors of fixtures with a wider scope were open before.
    """
    before = _open_fds()
    yield
    gc.collect()
    leaked = sorted(_open_fds() - before)
    if leaked:
        pytest.fail("left open: " + ", ".join(f"{fd} -> {target}" for fd, target in leaked), pytrace=False)

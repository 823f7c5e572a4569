"""The short forms of ``slow_backend`` and ``slow_clients``."""

from collections.abc import Callable

from tests.e2e.chaos import slow_backend, slow_clients
from tests.e2e.lab import Lab


def test_a_backend_that_does_not_read(lab: Lab) -> None:
    """Without a bound 800 MiB would wait, which is more than bound and noise."""
    report = slow_backend.measure(lab, seconds=3.0, most=8 << 20)
    assert not report.objections, f"{report.objections}\n{report}"
    assert report.sent > 10 << 20


def test_clients_that_do_not_read(lab: Lab, need: Callable[..., None]) -> None:
    need("gcc")
    report = slow_clients.measure(lab, seconds=1.5, most=2 << 20)
    assert not report.objections, f"{report.objections}\n{report}"
    assert report.waiting > slow_clients.SLOW

"""The short forms of ``killed``, ``many`` and ``reloads``."""

from collections.abc import Callable

import pytest

from tests.e2e.chaos import killed, many, reloads
from tests.e2e.lab import Lab


def test_a_backend_that_is_killed_under_load(lab: Lab) -> None:
    report = killed.measure(lab, seconds=1.0)
    assert not report.objections, f"{report.objections}\n{report}"
    assert report.requests > 1000
    assert report.failed, "the killed backend had nothing to do"


def test_many_clients(lab: Lab, need: Callable[..., None]) -> None:
    need("gcc", "bpftool")
    report = many.measure(lab, held=1000, churned=3000)
    assert not report.objections, f"{report.objections}\n{report}"


@pytest.mark.parametrize("kind", reloads.KINDS)
def test_reloads_under_load(lab: Lab, kind: str) -> None:
    report = reloads.measure(lab, kind, seconds=5.0, reloads=10)
    assert not report.objections, f"{report.objections}\n{report}"

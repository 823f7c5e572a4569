"""Waiting for what no event announces: a condition is looked at again until it holds or time is up."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

# How many times longer than on a busy machine everything may take: more than 1 without KVM.
PATIENCE = float(os.environ.get("SOCKMAP_LB_PATIENCE", "1"))
# Seconds for what takes milliseconds on an idle machine: a test that waits longer has found something.
LIMIT = 10.0 * PATIENCE
_INTERVAL = 0.005

T = TypeVar("T")


def eventually(look: Callable[[], T], *, limit: float = LIMIT, what: str = "") -> T:
    """Return the first true thing that ``look`` returns; an AssertionError says what it returned last."""
    end = time.monotonic() + limit
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {limit:g} s: {what or look} (last: {seen!r})"
        time.sleep(_INTERVAL)
    return seen


def eventually_equal(look: Callable[[], object], wanted: object, *, limit: float = LIMIT) -> None:
    """Wait until ``look`` returns what is wanted; an AssertionError says what it returned last."""
    end = time.monotonic() + limit
    while (seen := look()) != wanted:
        assert time.monotonic() < end, f"within {limit:g} s {seen!r} did not become {wanted!r}"
        time.sleep(_INTERVAL)

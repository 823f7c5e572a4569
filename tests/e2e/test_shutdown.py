"""SIGTERM, in an order that others can follow: not ready, then closed, then empty, then gone."""

import errno
import time
from signal import Signals
from typing import Any

import pytest

from tests.e2e.balancer import Balancer
from tests.e2e.crowd import Crowd
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import PATIENCE, eventually, eventually_equal

DELAY = 3.0 * PATIENCE  # seconds: a busy machine does a few exchanges within it
AT_ONCE = 3.0 * PATIENCE
STILL_OPEN = (503, "not ready\nshutting down: new clients are still served\n")


def refuses(balancer: Balancer, listener: str) -> bool:
    try:
        balancer.connect(listener).close()
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False


@pytest.mark.parametrize("pool", [{}, {"connections": "shared"}], ids=["per_client", "shared"])
def test_in_order_under_load(lab: Lab, pool: dict[str, Any]) -> None:
    """Clients leave when they see that it is not ready; none of them meets an error."""
    backends, slow = [lab.backend("a"), lab.backend("b")], lab.backend("c", holding=True)
    tree = lab.tree(backends, runtime={"shutdown_delay": f"{DELAY * 1e3:.0f}ms"}, **pool)
    other = lab.tree([slow])
    tree["listeners"].append(other["listeners"][0] | {"name": "slow", "pool": "slow"})
    tree["pools"].append(other["pools"][0] | {"name": "slow"})
    balancer = lab.balancer(tree).wait_ready()
    waiting = balancer.connect("slow")
    waiting.send(message(7))
    eventually(lambda: slow.received)
    with Crowd(balancer, 10) as crowd:
        eventually(lambda: sum(len(backend.received) for backend in backends) > 500)
        since = time.monotonic()
        balancer.process.signal(Signals.SIGTERM)
        eventually_equal(lambda: balancer.get("/readyz?verbose"), STILL_OPEN)
        not_ready = time.monotonic() - since
        assert read_answer(balancer.connect().ask(message(1))[0]).number == 1, "a client that comes late"
        late = time.monotonic() - since
        assert balancer.status()["state"] == "leaving"
        before = sum(len(backend.received) for backend in backends)
        eventually(lambda: sum(len(backend.received) for backend in backends) > before + 100)
    left = time.monotonic() - since
    assert left < DELAY, "this machine is too slow for the test"
    assert len(crowd.answers) == crowd.asked
    eventually(lambda: refuses(balancer, "rpc") and refuses(balancer, "slow"))
    closed = time.monotonic() - since
    assert closed >= DELAY
    assert balancer.get("/readyz?verbose") == (503, "not ready\ndraining\n")
    assert balancer.metrics().value("backend_outstanding_messages") == 1
    assert balancer.metrics().seen("reason", "dropped_messages_total") == {}
    slow.release()
    assert [read_answer(data).number for data in waiting.answers_to_the_end()] == [7]
    ended = balancer.wait()
    assert (ended.code, ended.seconds < AT_ONCE) == (0, True)
    print(  # noqa: T201 - for those who want to see the order
        f"\nnot ready after {not_ready * 1e3:.0f} ms, a new client served after {late * 1e3:.0f} ms,"
        f" {crowd.asked} requests without an error until {left:.2f} s, closed after {closed:.2f} s,"
        f" exit 0 {ended.seconds:.2f} s after the last answer"
    )


def test_no_delay_by_default(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    assert balancer.stop().seconds < AT_ONCE


@pytest.mark.parametrize("second", [Signals.SIGTERM, Signals.SIGINT])
def test_a_second_signal_does_not_wait(lab: Lab, second: Signals) -> None:
    balancer = lab.serve([lab.backend("a")], runtime={"shutdown_delay": "5m"})
    balancer.process.signal(Signals.SIGTERM)
    eventually_equal(lambda: balancer.get("/readyz?verbose"), STILL_OPEN)
    ended = balancer.stop(second)
    assert (ended.code, ended.seconds < AT_ONCE) == (0, True)

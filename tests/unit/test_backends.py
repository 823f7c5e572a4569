import errno
from ipaddress import IPv4Address

import pytest

from lb import config
from lb.backends import Backend, Health, backoff, connect_failure

ADDRESS = config.Address(IPv4Address("127.0.0.1"), 9000)


def make(*, rise: int = 2, fall: int = 3) -> tuple[Backend, list[Health]]:
    check = config.HealthCheck(rise=rise, fall=fall)
    backend = Backend("pool", config.Backend("a", ADDRESS, 5), check, index=0)
    changes: list[Health] = []
    backend.on_change.append(lambda changed: changes.append(changed.health))
    return backend, changes


def test_the_first_result_decides() -> None:
    backend, changes = make()
    usable = [backend.usable]
    backend.failed("refused")
    usable.append(backend.usable)
    assert usable == [True, False]
    assert changes == [Health.DOWN]


def test_fall_and_rise_count_results_in_a_row() -> None:
    backend, changes = make(rise=2, fall=3)
    backend.connected()
    for _ in range(2):
        backend.failed("timeout")
        backend.failed("timeout")
        backend.connected()
    assert changes == [Health.UP]
    for _ in range(3):
        backend.failed("timeout")
    assert changes == [Health.UP, Health.DOWN]
    backend.connected()
    backend.failed("timeout")
    backend.connected()
    assert backend.health is Health.DOWN
    backend.connected()
    assert changes == [Health.UP, Health.DOWN, Health.UP]


def test_failures_are_counted_by_reason() -> None:
    backend, _ = make()
    for code in (errno.ECONNREFUSED, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EMFILE, errno.EXDEV):
        backend.failed(connect_failure(code))
    assert backend.connect_failures == {"refused": 2, "unreachable": 1, "no_descriptor": 1, "exdev": 1}


@pytest.mark.parametrize("attempt", [0, 1, 3, 20, 5000])
def test_backoff_doubles_up_to_its_limit(attempt: int) -> None:
    ceiling = min(5.0, 0.1 * 2.0 ** min(attempt, 10))
    assert all(ceiling / 2 <= backoff(attempt) <= ceiling for _ in range(100))

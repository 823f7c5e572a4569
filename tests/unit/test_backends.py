import errno
from ipaddress import IPv4Address

import pytest

from lb import config
from lb.backends import AdminState, Backend, Health, backoff, connect_failure

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


def test_who_is_taken_out_is_not_usable_whatever_its_health() -> None:
    backend, changes = make()
    backend.connected()
    for state, usable in ((AdminState.DRAIN, False), (AdminState.READY, True), (AdminState.READY, True)):
        backend.administer(state)
        assert backend.usable is usable
    assert changes == [Health.UP] * 3, "told once for each change"


def test_nothing_is_known_of_a_backend_in_maintenance() -> None:
    backend, _ = make(fall=1, rise=2)
    backend.failed("refused")
    backend.administer(AdminState.MAINT)
    assert backend.health is Health.UNKNOWN
    backend.failed("refused")
    assert backend.health is Health.UNKNOWN
    backend.administer(AdminState.READY)
    assert backend.usable, "it is tried"
    backend.failed("refused")
    assert not backend.usable


def test_connections_end_where_they_are_not_wanted() -> None:
    backend, _ = make(fall=1)
    seen = [backend.dismissed]
    backend.serving = False  # its level is not needed
    seen.append(backend.dismissed)
    backend.failed("refused")  # what is left of one that is down is not cut
    seen.append(backend.dismissed)
    backend.administer(AdminState.DRAIN)
    seen.append(backend.dismissed)
    assert seen == [False, True, False, True]


def test_weight() -> None:
    backend, changes = make()
    for weight, now in ((3, 3), (3, 3), (0, 0), (None, 5)):
        backend.set_weight(weight)
        assert (backend.weight, backend.effective_weight) == (now, now)
    assert len(changes) == 3

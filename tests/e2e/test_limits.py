"""Too many clients: some are turned away, none is forgotten, and the rest do not notice."""

from pathlib import Path

import pytest

from tests.e2e.balancer import Balancer
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal


def descriptors(balancer: Balancer) -> int:
    return len(list(Path(f"/proc/{balancer.pid}/fd").iterdir()))


def is_served(client: Client) -> bool:
    try:
        return read_answer(client.ask(message(1))[0]).number == 1
    except (ConnectionResetError, BrokenPipeError):
        return False


class TestMaxConnections:
    def test_some_are_turned_away_and_served_later(self, lab: Lab) -> None:
        """A client takes 4 of 66 sockets: the 17th gets 2, which it must give back."""
        balancer = lab.serve([lab.backend(name) for name in "abc"], runtime={"max_connections": 66})
        assert balancer.status()["max_sockets"] == 66
        most = 16
        for _ in range(3):
            before = balancer.metrics().value("refused_connections_total", reason="max_connections")
            clients = [balancer.connect() for _ in range(most)]
            assert all(is_served(client) for client in clients)
            for _ in range(5):
                assert balancer.turns_away()
            assert all(is_served(client) for client in clients), "the others stay"
            metrics = balancer.metrics()
            assert metrics.value("refused_connections_total", reason="max_connections") == before + 5
            assert metrics.value("client_connections") == most
            for client in clients:
                client.close()
            eventually_equal(lambda: balancer.status()["sockets"], 0)

    def test_a_client_that_leaves_makes_room(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend()], runtime={"max_connections": 64})
        most = balancer.status()["max_sockets"] // 2
        clients = [balancer.connect() for _ in range(most)]
        assert all(is_served(client) for client in clients)
        assert balancer.turns_away()
        clients.pop().close()

        def comes_in() -> bool:
            try:
                return is_served(balancer.connect())
            except ConnectionResetError:
                return False

        eventually(comes_in, what="there is room again")


class TestDescriptors:
    """The limit falls while the balancer serves: accept and connect fail with EMFILE."""

    def test_the_accept_loop_goes_on(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend("a")])
        clients = [balancer.connect() for _ in range(10)]
        assert all(is_served(client) for client in clients)
        limit(lab, balancer, descriptors(balancer))
        waiting = [balancer.connect() for _ in range(20)]
        balancer.process.stderr.wait_for("accept: Too many open files; trying again")
        assert all(is_served(client) for client in clients), "who is there stays"
        for client in clients:
            client.close()
        assert any(is_served(client) for client in waiting)
        limit(lab, balancer, 1000)
        eventually(lambda: is_served(balancer.connect()), what="new clients are served")
        metrics = balancer.metrics()
        assert metrics.value("backend_up") == 1
        assert metrics.value("backend_weight") == 1

    def test_connects_that_fail_for_us_are_not_the_backends_fault(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend(name) for name in "abc"])
        resident = balancer.connect()
        assert is_served(resident)
        base = descriptors(balancer)
        # Room for a client and one more, but not for its three upstreams.
        limit(lab, balancer, base + 2)
        for _ in range(10):
            client = balancer.connect()
            eventually(lambda: descriptors(balancer) > base, what="the client is accepted")
            assert is_served(resident)
            client.close()
            eventually(lambda: descriptors(balancer) <= base, what="the client is forgotten")
        limit(lab, balancer, 1000)
        metrics = balancer.metrics()
        assert metrics.value("backend_connect_failures_total", reason="no_descriptor") >= 10
        assert metrics.value("backend_up") == 3
        assert metrics.value("backend_weight") == 3
        assert is_served(resident)
        eventually(lambda: is_served(balancer.connect()), what="new clients are served")


def limit(lab: Lab, balancer: Balancer, count: int) -> None:
    """Changes the soft limit, as the user whose process it is."""
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    done = lab.run(*as_nobody, "prlimit", "--pid", str(balancer.pid), f"--nofile={count}:")
    assert done.code == 0, done.err


class TestChurn:
    @pytest.mark.parametrize("answered", [True, False])
    def test_everything_is_given_back(self, lab: Lab, answered: bool) -> None:
        """However clients end, and in the middle of whatever they are."""
        backends = [lab.backend(name) for name in "abc"]
        balancer = lab.serve(backends)
        for _ in range(3):  # the first cycles may open what stays
            assert is_served(balancer.connect())
        base = None
        for cycle in range(3):
            for number in range(300):
                client = balancer.connect()
                if answered:
                    assert is_served(client)
                end(client, number)
            balancer.close_clients()
            eventually_equal(lambda: balancer.status()["sockets"], 0)
            eventually_equal(lambda: balancer.status()["listeners"][0]["clients"], 0)
            eventually_equal(lambda: balancer.metrics().value("backend_connections"), 0)
            eventually(lambda: not any(backend.connections for backend in backends))
            if base is None:
                base = descriptors(balancer)
            eventually(lambda base=base: descriptors(balancer) <= base, what=f"cycle {cycle}: {base} fds")  # type: ignore[misc]
        metrics = balancer.metrics()
        assert metrics.value("backend_outstanding_messages") == 0
        assert metrics.value("buffered_bytes") == 0
        assert metrics.value("client_connections") == 0
        assert metrics.value("refused_connections_total") == 0
        assert metrics.value("client_connections_total") == 903


def end(client: Client, number: int) -> None:
    """In one of four ways."""
    match number % 4:
        case 0:
            client.close()
        case 1:
            client.reset()
        case 2:
            client.send(message(1), message(2))
            client.half_close()
            assert len(client.answers_to_the_end()) == 2
        case _:
            client.send(message(1))
            client.close()

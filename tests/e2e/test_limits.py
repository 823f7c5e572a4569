"""Too many clients: some are turned away, none is forgotten, and the rest do not notice."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from tests.e2e.balancer import Balancer, Tree, dump, read_endpoint, show
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal
from tests.e2e.processes import SOCKMAP_LB

RATES: Tree = {
    "rate": {"messages_per_second": 7},
    "rate_per_address": {"messages_per_second": 5, "burst": 2, "over": "deny"},
}


def descriptors(balancer: Balancer) -> int:
    return len(list(Path(f"/proc/{balancer.pid}/fd").iterdir()))


def is_served(client: Client) -> bool:
    try:
        return read_answer(client.ask(message(1))[0]).number == 1
    except (ConnectionResetError, BrokenPipeError):
        return False


def comes_in(connect: Callable[[], Client]) -> bool:
    """Whether a new client is served; one that is turned away may hear of it before connect() returns."""
    try:
        return is_served(connect())
    except ConnectionResetError:
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
        eventually(lambda: comes_in(balancer.connect), what="there is room again")


class TestListener:
    """A listener's own limits. Others are turned away at the door; who is inside stays."""

    @staticmethod
    def serve(lab: Lab, limits: Tree, **settings: Any) -> Balancer:
        tree = lab.tree([lab.backend()], **settings)
        tree["listeners"][0]["limits"] = limits
        return lab.balancer(tree).wait_ready()

    def test_reasons_are_there_from_the_start(self, lab: Lab) -> None:
        refused = lab.serve([lab.backend()]).metrics().by("reason", "refused_connections_total")
        reasons = (
            "max_clients",
            "max_clients_per_address",
            "max_connections",
            "no_backend",
            "no_memory",
            "half_closed",
            "untrusted_proxy",
            "proxy_header",
            "proxy_timeout",
        )
        assert refused == dict.fromkeys(reasons, 0)

    def test_max_clients(self, lab: Lab) -> None:
        balancer = self.serve(lab, {"max_clients": 5})
        for cycle in range(1, 4):
            clients = [balancer.connect() for _ in range(5)]
            assert all(is_served(client) for client in clients)
            for _ in range(3):
                assert balancer.turns_away()
            assert all(is_served(client) for client in clients)
            metrics = balancer.metrics()
            assert metrics.seen("reason", "refused_connections_total") == {"max_clients": 3 * cycle}
            assert metrics.value("client_connections") == 5
            assert "5 of 5" in lab.run(*SOCKMAP_LB, "status", "--admin", show(balancer.admin)).out
            leave(balancer, clients, cycle)
            eventually_equal(lambda: balancer.metrics().value("client_connections"), 0)
        assert is_served(balancer.connect())

    def test_max_clients_per_address(self, lab: Lab) -> None:
        """One greedy address does not keep others out."""
        balancer = self.serve(lab, {"max_clients_per_address": 2, "max_clients": 5})
        addresses = ["127.0.0.2", "127.0.0.3"]
        for cycle in range(1, 4):
            clients = [come_from(lab, balancer, address) for address in addresses for _ in range(2)]
            assert all(is_served(client) for client in clients)
            for address in addresses:
                assert not comes_in(partial(come_from, lab, balancer, address))
            last = come_from(lab, balancer, "127.0.0.4")
            assert is_served(last)
            assert not comes_in(partial(come_from, lab, balancer, "127.0.0.5"))
            refused = balancer.metrics().seen("reason", "refused_connections_total")
            assert refused == {"max_clients_per_address": 2 * cycle, "max_clients": cycle}
            assert balancer.status()["listeners"][0]["addresses"] == 3
            leave(balancer, [*clients, last], cycle)
            eventually_equal(lambda: balancer.status()["listeners"][0]["addresses"], 0)

    def test_an_address_of_ipv6(self, lab: Lab) -> None:
        lab.here.add_address("fd00::5/128", "lo")
        balancer = self.serve(lab, {"max_clients_per_address": 1}, address="[::]:0")
        first = come_from(lab, balancer, "::1")
        assert is_served(first)
        assert not comes_in(partial(come_from, lab, balancer, "::1"))
        assert is_served(come_from(lab, balancer, "fd00::5"))
        first.close()
        eventually(lambda: comes_in(partial(come_from, lab, balancer, "::1")), what="there is room again")

    def test_clients_that_are_not_served_leave_no_trace(self, lab: Lab) -> None:
        """No backend is up: every client counts for a moment only."""
        tree = lab.tree([("127.0.0.1", lab.here.reserve("127.0.0.1"))])
        tree["listeners"][0]["limits"] = {"max_clients_per_address": 1}
        balancer = lab.balancer(tree)
        for count in range(1, 10):
            assert balancer.turns_away()
            refused = balancer.metrics().seen("reason", "refused_connections_total")
            assert refused == {"no_backend": count}

    def test_a_relayed_client_counts_until_it_has_its_answers(self, lab: Lab) -> None:
        backend = lab.backend(holding=True)
        tree = lab.tree([backend])
        tree["listeners"][0]["limits"] = {"max_clients": 1}
        balancer = lab.balancer(tree).wait_ready()
        relayed = balancer.connect_while_it_stands_still(message(1))
        eventually(lambda: backend.received)
        assert balancer.turns_away()
        backend.release()
        assert len(relayed.answers_to_the_end()) == 1
        eventually(lambda: comes_in(balancer.connect), what="there is room again")

    def test_idle(self, lab: Lab) -> None:
        """A listener's own time to be silent goes before its pool's, whichever is longer."""
        tree = lab.tree([lab.backend()], timeouts={"idle": "2s"})
        (rpc,) = tree["listeners"]
        tree["listeners"] += [
            rpc | {"name": "hasty", "limits": {"idle": "200ms"}},
            rpc | {"name": "patient", "limits": {"idle": "1h"}},
        ]
        balancer = lab.balancer(tree).wait_ready()
        since = time.monotonic()
        clients = {name: balancer.connect(name) for name in ("rpc", "hasty", "patient")}
        assert clients["hasty"].answers_to_the_end() == []
        assert time.monotonic() - since < 2
        assert clients["rpc"].answers_to_the_end() == []
        assert time.monotonic() - since > 2
        assert is_served(clients["patient"])

    def test_status(self, lab: Lab) -> None:
        tree = lab.tree([lab.backend()], timeouts={"idle": "7s"})
        (rpc,) = tree["listeners"]
        limits = {"max_clients": 9, "max_clients_per_address": 3, "idle": "90s"} | RATES
        tree["listeners"].append(rpc | {"name": "other", "limits": limits})
        plain, other = lab.balancer(tree).status()["listeners"]
        assert plain["limits"] == {
            "max_clients": None,
            "max_clients_per_address": None,
            "idle_seconds": 7.0,
            "rate": None,
            "rate_per_address": None,
        }
        assert other["limits"] == {
            "max_clients": 9,
            "max_clients_per_address": 3,
            "idle_seconds": 90.0,
            "rate": {"messages_per_second": 7, "burst": 7, "over": "wait"},
            "rate_per_address": {"messages_per_second": 5, "burst": 2, "over": "deny"},
        }


def come_from(lab: Lab, balancer: Balancer, address: str) -> Client:
    """A client with this address."""
    sock = lab.here.open(address)
    client = Client(sock)
    balancer.clients.append(client)
    sock.bind((address, 0))
    host = "::1" if ":" in address else "127.0.0.1"
    sock.connect((host, balancer.listeners["rpc"][1]))
    return client


def leave(balancer: Balancer, clients: list[Client], cycle: int) -> None:
    """In another way each time."""
    for client in clients:
        match cycle % 3:
            case 0:
                client.close()
            case 1:
                client.reset()
            case _:
                client.half_close()
                assert client.answers_to_the_end() == []
        balancer.clients.remove(client)
        client.close()


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

    def test_room_comes_back_when_clients_leave(self, lab: Lab) -> None:
        """The limit stays: there are descriptors for ten clients and no more."""
        balancer = lab.serve([lab.backend("a")])
        most = 10
        clients = [balancer.connect() for _ in range(most)]
        assert all(is_served(client) for client in clients)
        limit(lab, balancer, descriptors(balancer))
        complaint = "accept: Too many open files; trying again"
        for episode in range(1, 4):
            waiting = balancer.connect()
            eventually_equal(lambda: balancer.log.count(complaint), episode)
            time.sleep(0.5)  # it tries several times, and says so once
            assert balancer.log.count(complaint) == episode
            assert all(is_served(client) for client in clients)
            for client in clients:
                client.close()
            assert is_served(waiting)
            waiting.close()
            eventually_equal(lambda: balancer.status()["sockets"], 0)
            clients = [balancer.connect() for _ in range(most)]
            assert all(is_served(client) for client in clients)
        limit(lab, balancer, 1000)  # a scrape needs a descriptor too
        assert balancer.metrics().value("refused_connections_total") == 0
        assert balancer.metrics().value("backend_connect_failures_total") == 0

    def test_fewer_from_the_start(self, lab: Lab) -> None:
        """The balancer takes what its descriptors allow, so that it never lacks one."""
        tree = lab.tree([lab.backend()])
        path = lab.folder / "lb.yaml"
        path.write_text(dump(tree), encoding="utf-8")
        process = lab.start("prlimit", "--nofile=192:192", *SOCKMAP_LB, "run", "-c", str(path))
        process.stderr.wait_for("max_connections is 64 instead of 1024: the process may have 192 descriptors")
        endpoint = read_endpoint(process.stderr.wait_for(r" listener rpc: (\S+),", limit=30)[1])

        def connect() -> Client:
            return stack.enter_context(Client(lab.here.connect(endpoint)))

        for _ in range(3):
            with ExitStack() as stack:
                for _ in range(32):
                    eventually(lambda: comes_in(connect), what="there is room (again)")
                for _ in range(10):
                    assert not comes_in(connect)
        process.signal(Signals.SIGTERM)
        assert process.wait() == 0
        assert "Too many open files" not in process.stderr.text
        assert "Traceback" not in process.stderr.text

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

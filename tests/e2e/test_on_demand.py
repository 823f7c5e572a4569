"""Upstreams that are connected when a message needs them."""

import copy
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, show
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.namespaces import Endpoint
from tests.e2e.polling import eventually, eventually_equal
from tests.e2e.traffic import traffic

BY_BODY = {"balance": "hash", "hash": {"field": {"offset": 8, "width": 4}}, "max_load": "none"}
FIFO = {"length": {"offset": 0, "width": 4, "adjust": 4}, "id": {"offset": 4, "width": 4}, "ordering": "fifo"}
BALANCES: dict[str, dict[str, Any]] = {
    "round_robin": {"balance": "round_robin"},
    "least_outstanding": {"balance": "least_outstanding"},
    "random": {"balance": "random"},
    "hash": BY_BODY,
}


def serve(lab: Lab, backends: Sequence[Backend | Endpoint], **settings: Any) -> Balancer:
    """With all backends up, and what looked whether they are gone."""
    balancer = lab.serve(backends, **({"connect": "on_demand"} | settings))
    for backend in backends:
        if isinstance(backend, Backend):
            eventually(lambda: not backend.connections)  # noqa: B023
    return balancer


def answerers(client: Client, numbers: Sequence[int] = range(40)) -> list[str]:
    """Who answers each of these, one after the other; the number is what hashed pools go by."""
    return [read_answer(*client.ask(message(each, each.to_bytes(4, "big")))).backend for each in numbers]


def connected(balancer: Balancer) -> float:
    return balancer.metrics().value("backend_connections")


def nothing_dropped(balancer: Balancer) -> bool:
    return not balancer.metrics().seen("reason", "dropped_messages_total")


@contextmanager
def deaf(lab: Lab, endpoint: Endpoint) -> Iterator[None]:
    """Nobody at an address answers a SYN."""
    with lab.here.listen(*endpoint) as sock:
        sock.listen(0)
        with lab.here.connect(endpoint):
            yield


def test_one_message_makes_one_connection(lab: Lab) -> None:
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends)
    before = sum(backend.accepted for backend in backends)
    idle = [balancer.connect() for _ in range(5)]
    eventually_equal(lambda: balancer.metrics().value("client_connections"), 5)
    assert len(idle[0].ask(message(1))) == 1
    assert connected(balancer) == 1
    assert balancer.status()["sockets"] == 6
    assert sum(backend.accepted for backend in backends) - before == 1
    assert balancer.metrics().value("pauses_total", reason="connect") == 1
    assert nothing_dropped(balancer)


@pytest.mark.parametrize("kind", BALANCES)
def test_all_backends_get_their_share(lab: Lab, kind: str) -> None:
    """The same as when all were connected before."""
    backends = [lab.backend(name) for name in "abc"]
    shares = []
    for connect in ("eager", "on_demand"):
        balancer = serve(lab, backends, connect=connect, batch=1, **BALANCES[kind])
        with balancer.connect() as client:
            shares.append(Counter(answerers(client, range(300))))
            assert connected(balancer) == 3
        assert balancer.metrics().value("pauses_total", reason="connect") == (
            3 if connect == "on_demand" else 0
        )
    eager, on_demand = shares
    assert on_demand.keys() == set("abc")
    if kind == "hash":
        assert on_demand == eager
    for name in "abc":
        assert abs(on_demand[name] - eager[name]) <= (80 if kind == "random" else 6)


@pytest.mark.parametrize("balance", ["round_robin", "least_outstanding"])
def test_clients_that_come_at_once_do_not_all_choose_the_same(lab: Lab, balance: str) -> None:
    """Although none of their messages is on its way when the others choose."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, balance=balance)
    clients = [balancer.connect() for _ in range(60)]
    eventually_equal(lambda: balancer.metrics().value("client_connections"), len(clients))
    with balancer.standing_still():
        for number, client in enumerate(clients):
            client.send(message(number))
    found = Counter(read_answer(*client.answers(1)).backend for client in clients)
    assert all(10 <= found[name] <= 30 for name in "abc"), found
    assert connected(balancer) == len(clients)


def test_a_pipeline_on_a_fresh_connection(lab: Lab) -> None:
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, balance="round_robin", batch=4)
    for start in range(0, 5000, 500):
        with balancer.connect() as client:
            answers = client.ask(*(message(number) for number in range(start, start + 500)))
            assert sorted(read_answer(each).number for each in answers) == list(range(start, start + 500))
    assert all(len(backend.received) > 1000 for backend in backends)
    assert nothing_dropped(balancer)


@pytest.mark.parametrize("settings", [BALANCES["round_robin"], BY_BODY], ids=["round_robin", "hash"])
def test_a_large_message_that_comes_piece_by_piece(lab: Lab, settings: dict[str, Any]) -> None:
    """The hash is by what is in none of the first pieces: all are connected then, and none is closed."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, **settings)
    for number in range(6):
        data = message(number, number.to_bytes(4, "big") + bytes(300_000))
        with balancer.connect() as client:
            client.send(data[:5])
            eventually(lambda: connected(balancer) > 0)
            for start in range(5, len(data), 50_000):
                client.send(data[start : start + 50_000])
            assert read_answer(*client.answers(1)).asked == data[8:]
        eventually_equal(lambda: connected(balancer), 0)
    assert nothing_dropped(balancer)


def test_hashed_by_what_has_not_arrived(lab: Lab) -> None:
    """Whose the message is turns out when it cannot wait any more: it is its key's backend's all the same."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, **BY_BODY)
    numbers = range(12)
    owners = answerers(balancer.connect(), numbers)
    for number, owner in zip(numbers, owners, strict=True):
        data = message(number, number.to_bytes(4, "big"))
        with balancer.connect() as client:
            client.send(data[:9])
            eventually_equal(lambda: connected(balancer), 6)
            client.send(data[9:])
            assert read_answer(*client.answers(1)).backend == owner
        eventually_equal(lambda: connected(balancer), 3)


def test_in_order(lab: Lab) -> None:
    """A client is bound to the upstream that owes it answers."""
    backends = [lab.backend(name, delay=0.001) for name in "abc"]
    for settings in ({"balance": "round_robin"}, BY_BODY):
        balancer = serve(lab, backends, protocol="ordered", protocols={"ordered": FIFO}, **settings)
        with balancer.connect() as client:
            for start in range(0, 200, 20):
                numbers = range(start, start + 20)
                answers = client.ask(*(message(number, number.to_bytes(4, "big")) for number in numbers))
                assert [read_answer(answer).number for answer in answers] == list(numbers)
            assert connected(balancer) == 3
        assert nothing_dropped(balancer)


def test_a_backend_that_refuses(lab: Lab) -> None:
    """The message goes elsewhere."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, balance="round_robin")
    backends[1].close()
    for number in range(9):
        with balancer.connect() as client:
            assert read_answer(*client.ask(message(number))).backend in "ac"
    metrics = balancer.metrics()
    assert metrics.value("backend_connect_failures_total", backend="b", reason="refused") >= 3
    assert metrics.by("backend", "backend_up") == {"a": 1, "b": 0, "c": 1}
    assert nothing_dropped(balancer)


def test_a_backend_that_does_not_answer_the_handshake(lab: Lab) -> None:
    backends = [lab.backend(name) for name in "ab"]
    balancer = serve(lab, backends, balance="round_robin", timeouts={"connect": "300ms"})
    endpoint = backends[1].endpoint
    backends[1].close()
    with deaf(lab, endpoint):
        for number in range(4):
            with balancer.connect() as client:
                assert read_answer(*client.ask(message(number))).backend == "a"
        failures = balancer.metrics().value("backend_connect_failures_total", backend="b", reason="timeout")
    assert failures >= 1
    assert nothing_dropped(balancer)


def test_when_none_can_be_connected_to(lab: Lab) -> None:
    """Its message waits for ``queue``, and then the client is told."""
    backends = [lab.backend(name) for name in "ab"]
    balancer = serve(lab, backends, timeouts={"queue": "1s"})
    client, later = balancer.connect(), balancer.connect()
    eventually_equal(lambda: balancer.metrics().value("client_connections"), 2)
    for backend in backends:
        backend.close()
    client.send(message(1))
    assert client.is_reset()
    eventually_equal(lambda: balancer.metrics().value("dropped_messages_total", reason="no_backend"), 1)
    eventually_equal(lambda: balancer.metrics().value("backend_up"), 0)
    later.send(message(2))
    lab.backend("a", endpoint=backends[0].endpoint)
    assert read_answer(*later.answers(1)).number == 2


def test_no_slot_for_the_connection(lab: Lab) -> None:
    """It counts as a failure to connect, and the message waits until there is one."""
    backend = lab.backend("a")
    balancer = serve(lab, [backend], runtime={"max_connections": 64})
    clients = [balancer.connect() for _ in range(64)]
    eventually_equal(lambda: balancer.metrics().value("client_connections"), 64)
    clients[0].send(message(1))
    eventually(
        lambda: balancer.metrics().value("backend_connect_failures_total", backend="a", reason="no_slot")
    )
    assert balancer.metrics().value("backend_up") == 1
    clients.pop().close()
    assert len(clients[0].answers(1)) == 1


@pytest.mark.parametrize("state", ["drain", "maint"])
def test_a_backend_is_taken_out_while_its_places_are_vacant(lab: Lab, state: str) -> None:
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, balance="round_robin")
    fresh, used = balancer.connect(), balancer.connect()
    assert set(answerers(used)) == set("abc")
    balancer.post(f"/backends/workers/b/{state}")
    assert set(answerers(fresh)) == set(answerers(used)) == set("ac")
    eventually(lambda: not backends[1].connections)
    balancer.post("/backends/workers/b/ready")
    for client in (fresh, used):
        eventually(lambda: "b" in answerers(client))  # noqa: B023
    assert nothing_dropped(balancer)


def test_backends_come_and_go_by_reload(lab: Lab) -> None:
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends[:2], balance="round_robin")
    fresh, used = balancer.connect(), balancer.connect()
    assert set(answerers(used)) == set("ab")
    more = copy.deepcopy(balancer.tree)
    more["pools"][0]["backends"].append({"name": "c", "address": show(backends[2].endpoint)})
    assert balancer.reload(more)[0] == 200
    for client in (fresh, used):
        eventually(lambda: set(answerers(client)) == set("abc"))  # noqa: B023
    unused = balancer.connect()
    fewer = copy.deepcopy(more)
    del fewer["pools"][0]["backends"][0]
    assert balancer.reload(fewer)[0] == 200
    for client in (fresh, used, unused):
        eventually(lambda: set(answerers(client)) == set("bc"))  # noqa: B023
    eventually(lambda: not backends[0].connections)
    eventually(lambda: "backend workers/a has left" in balancer.log)
    assert nothing_dropped(balancer)


def test_the_key_changes_by_reload(lab: Lab) -> None:
    """For clients and backends that come; who is there is not cut off."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, balance="round_robin")
    client = balancer.connect()
    answerers(client, range(1))
    tree = copy.deepcopy(balancer.tree)
    tree["pools"][0]["connect"] = "eager"
    assert balancer.reload(tree)[0] == 200
    balancer.connect()
    eventually_equal(lambda: connected(balancer), 4)
    assert set(answerers(client)) == set("abc")


def test_clients_that_leave_while_their_upstream_is_connected(lab: Lab) -> None:
    """By RST, by FIN, and silently held up by a backend that never answers."""
    backends = [lab.backend(name) for name in "a"]
    balancer = serve(lab, backends, timeouts={"connect": "400ms", "queue": "1s", "drain": "1s"})
    endpoint = backends[0].endpoint
    backends[0].close()
    with deaf(lab, endpoint):
        clients = [balancer.connect() for _ in range(3)]
        for client in clients:
            client.send(message(1))
        eventually_equal(lambda: connected(balancer), 3)
        clients[0].reset()
        eventually_equal(lambda: balancer.metrics().value("client_connections"), 2)
        clients[1].half_close()
        assert clients[1].is_reset()
        assert clients[2].is_reset()
        eventually_equal(lambda: balancer.status()["sockets"], 0)
    assert balancer.metrics().value("dropped_messages_total") == 3


@pytest.mark.parametrize("settings", [BALANCES["round_robin"], BY_BODY], ids=["round_robin", "hash"])
def test_a_client_that_says_all_and_closes_its_side(lab: Lab, settings: dict[str, Any]) -> None:
    """Before it can be mapped, and at any time after that."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, **settings)
    owners = dict(enumerate(answerers(balancer.connect(), range(20))))
    mine = [number for number, owner in owners.items() if owner == owners[0]]
    data = [message(number, number.to_bytes(4, "big")) for number in mine]
    early = balancer.connect_while_it_stands_still(*data)
    assert sorted(read_answer(each).number for each in early.answers_to_the_end()) == mine
    for _ in range(30):
        client = balancer.connect()
        client.send(*data)
        client.half_close()
        answers = [read_answer(each) for each in client.answers_to_the_end()]
        assert sorted(each.number for each in answers) == mine
        if "hash" in settings:
            assert {each.backend for each in answers} == {owners[0]}
    assert nothing_dropped(balancer)


def test_a_backend_that_closes_idle_connections(lab: Lab) -> None:
    backend = lab.backend("a")
    balancer = serve(lab, [backend])
    client = balancer.connect()
    for number in range(5):
        assert len(client.ask(message(number))) == 1
        backend.finish()
        eventually_equal(lambda: connected(balancer), 0)
    assert nothing_dropped(balancer)


@pytest.mark.parametrize("settings", [BALANCES["round_robin"], BY_BODY], ids=["round_robin", "hash"])
def test_the_only_upstream_is_lost_while_a_message_comes_in(lab: Lab, settings: dict[str, Any]) -> None:
    """It cannot wait any more, so another one is connected before it is whole."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, **settings)
    client = balancer.connect()
    data = message(1, bytes(300_000))
    client.send(data[:100_000])
    eventually_equal(lambda: [len(each.connections) for each in backends].count(1), 1)
    first = next(backend for backend in backends if backend.connections)
    first.finish()
    eventually(lambda: any(each.connections for each in backends if each is not first))
    balancer.metrics()  # the balancer has looked at its events by then
    client.send(data[100_000:])
    assert read_answer(*client.answers(1)).asked == data[8:]
    assert nothing_dropped(balancer)


def test_a_shutdown_while_a_message_waits(lab: Lab) -> None:
    backend = lab.backend("a")
    balancer = serve(lab, [backend], timeouts={"connect": "5s", "drain": "1s"})
    client = balancer.connect()
    eventually_equal(lambda: balancer.metrics().value("client_connections"), 1)
    endpoint = backend.endpoint
    backend.close()
    with deaf(lab, endpoint):
        client.send(message(1))
        eventually_equal(lambda: connected(balancer), 1)
        ended = balancer.stop()
    assert ended.code == 0
    assert ended.seconds < 4


def test_levels(lab: Lab) -> None:
    """Reserves are places only while they serve."""
    backends = [lab.backend(name) for name in "ab"]
    tree = lab.tree(backends, connect="on_demand")
    tree["pools"][0]["backends"][1]["priority"] = 1
    balancer = lab.balancer(tree).wait_ready()
    client = balancer.connect()
    assert set(answerers(client)) == {"a"}
    balancer.post("/backends/workers/a/drain")
    assert set(answerers(client)) == {"b"}
    balancer.post("/backends/workers/a/ready")
    eventually(lambda: set(answerers(client)) == {"a"})
    assert nothing_dropped(balancer)


def test_a_pool_that_is_larger_than_a_route(lab: Lab) -> None:
    backend = lab.backend("a")
    tree = lab.tree([backend], balance="round_robin", batch=1, connect="on_demand")
    names = [f"b{number}" for number in range(40)]
    tree["pools"][0]["backends"] = [{"name": name, "address": show(backend.endpoint)} for name in names]
    balancer = lab.balancer(tree).wait_ready()
    client = balancer.connect()
    answerers(client, range(200))
    assert connected(balancer) == 32


def test_under_load(lab: Lab) -> None:
    """A backend is taken out, and comes back, while messages find some of their upstreams and not others."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = serve(lab, backends, balance="round_robin")
    socks: list[socket.socket] = [balancer.where.connect(balancer.listeners["rpc"]) for _ in range(8)]
    with traffic(socks) as running:
        running.proceed(500)
        for name in "ab":
            balancer.post(f"/backends/workers/{name}/drain")
            running.proceed(500)
            balancer.post(f"/backends/workers/{name}/ready")
            running.proceed(500)
    assert nothing_dropped(balancer)

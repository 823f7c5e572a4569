"""Backends by name: a real name server, whose answers change while the balancer serves."""

import json
from functools import partial

import pytest

from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal
from tests.e2e.processes import SOCKMAP_LB
from tests.e2e.zone import BROKEN, ZONE, Zone

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"


def backends(lab: Lab, *hosts: str, holding: bool = False) -> dict[str, Backend]:
    """A backend at each address, all at the same port."""
    port = lab.here.reserve("127.0.0.1")
    return {host: lab.backend(host, endpoint=(host, port), holding=holding) for host in hosts}


def tree_of(
    lab: Lab,
    there: dict[str, Backend],
    *,
    host: str = f"rpc.{ZONE}",
    resolve: Tree | None = None,
    **how: object,
) -> Tree:
    """One backend by name in the pool, at the port of all backends."""
    (port,) = {backend.endpoint[1] for backend in there.values()}
    tree = lab.tree([], **how)
    tree["pools"][0]["backends"] = [{"name": "a", "address": f"{host}:{port}", "weight": 2}]
    tree["pools"][0]["resolve"] = {"interval": "1s", "timeout": "500ms"} | (resolve or {})
    return tree


def serving(balancer: Balancer) -> list[str]:
    """Names of the backends that are up."""
    (pool,) = balancer.status()["pools"]
    return sorted(backend["name"] for backend in pool["backends"] if backend["health"] == "up")


def addresses(balancer: Balancer) -> list[str]:
    (name,) = balancer.status()["pools"][0]["names"]
    return name["addresses"]


def looks(balancer: Balancer, result: str) -> float:
    return balancer.metrics().value("dns_lookups_total", pool="workers", backend="a", result=result)


def looked(balancer: Balancer, result: str, before: float) -> bool:
    return looks(balancer, result) > before


def serves(balancer: Balancer, *hosts: str) -> None:
    eventually_equal(partial(serving, balancer), sorted(f"a@{host}" for host in hosts))
    assert addresses(balancer) == list(hosts)


def answered_by(client: Client, count: int = 30) -> set[str]:
    """Who answers so many questions, one after the other."""
    return {read_answer(client.ask(message(number, b"?"))[0]).backend for number in range(count)}


def test_each_address_is_a_backend(lab: Lab) -> None:
    there = backends(lab, A, B)
    Zone(lab, rpc=[B, A])
    balancer = lab.balancer(tree_of(lab, there, balance="round_robin"))
    serves(balancer, A, B)
    assert balancer.get("/readyz") == (200, "ready\n")
    client = balancer.connect()
    eventually_equal(partial(answered_by, client), {A, B})
    metrics = balancer.metrics()
    assert metrics.by("backend", "backend_weight") == {f"a@{A}": 2, f"a@{B}": 2}
    assert metrics.value("dns_addresses", pool="workers", backend="a") == 2
    assert looks(balancer, "found") >= 1
    (name,) = balancer.status()["pools"][0]["names"]
    assert (name["name"], name["result"]) == ("a", "found")


@pytest.mark.parametrize("connections", ["per_client", "shared"])
def test_backends_follow_the_addresses(lab: Lab, connections: str) -> None:
    """A client that is there all the time, and never without an answer."""
    there = backends(lab, A, B, C)
    zone = Zone(lab, rpc=[A])
    resolve = {"max_addresses": 8}
    balancer = lab.balancer(
        tree_of(lab, there, resolve=resolve, connections=connections, balance="round_robin")
    )
    serves(balancer, A)
    client = balancer.connect()
    assert answered_by(client) == {A}
    for hosts in ([A, B], [B, C], [C], [A, B, C], [A]):
        zone.set(rpc=hosts)
        eventually_equal(partial(answered_by, client), set(hosts))
        serves(balancer, *hosts)
    eventually_equal(lambda: [len(there[host].connections) for host in (B, C)], [0, 0])
    metrics = balancer.metrics()
    assert metrics.seen("reason", "dropped_messages_total") == {}
    assert metrics.value("datapath_messages_total", path="userspace") == 0


def test_what_is_outstanding_is_answered(lab: Lab) -> None:
    there = backends(lab, A, B, holding=True)
    zone = Zone(lab, rpc=[A])
    balancer = lab.balancer(tree_of(lab, there))
    serves(balancer, A)
    client = balancer.connect()
    client.send(*(message(number, b"?") for number in range(5)))
    eventually(lambda: len(there[A].received) == 5)
    zone.set(rpc=[B])
    serves(balancer, B)
    client.send(message(5, b"?"))
    eventually(lambda: len(there[B].received) == 1)
    there[A].release()
    there[B].release()
    assert sorted(read_answer(answer).number for answer in client.answers(6)) == list(range(6))
    eventually(lambda: not there[A].connections, what="connections to who has left end")
    assert balancer.metrics().seen("reason", "dropped_messages_total") == {}


@pytest.mark.parametrize("why", ["no_name", "no_address", "unavailable"])
def test_what_cannot_be_said_changes_nothing(lab: Lab, why: str) -> None:
    there = backends(lab, A, B)
    zone = Zone(lab, rpc=[A, B])
    balancer = lab.balancer(tree_of(lab, there, resolve={"timeout": "5s"}, balance="round_robin"))
    serves(balancer, A, B)
    client = balancer.connect()
    if why == "no_name":
        zone.set(other=[A])
    elif why == "no_address":
        zone.set(rpc=[])
    else:
        zone.fall_silent()
    before = looks(balancer, why)
    eventually(partial(looked, balancer, why, before + 1))
    if why == "unavailable":
        zone.speak()
    serves(balancer, A, B)
    eventually_equal(partial(answered_by, client), {A, B})
    balancer.process.stderr.wait_for(rf"rpc\.{ZONE}: {why.replace('_', ' ')}; its 2 addresses stay")
    zone.set(rpc=[B])
    serves(balancer, B)
    balancer.process.stderr.wait_for(rf"rpc\.{ZONE} is found again, addresses: ")


def test_a_name_server_that_is_silent_stops_nobody(lab: Lab) -> None:
    """Clients come and go, and their sockets become free again, while the resolver waits."""
    there = backends(lab, A)
    zone = Zone(lab, rpc=[A])
    tree = tree_of(lab, there, runtime={"max_connections": 64})
    (configured,) = tree["pools"][0]["backends"]
    # Names are asked for in 20 threads from here on, more than the pool of the loop has.
    tree["pools"][0]["backends"] += [
        configured | {"name": f"b{i}", "address": f"n{i}.{ZONE}:1"} for i in range(20)
    ]
    tree["pools"][0]["resolve"]["max_addresses"] = 2
    zone.fall_silent()
    balancer = lab.balancer(tree)
    assert balancer.turns_away()
    zone.speak()
    eventually_equal(partial(serving, balancer), [f"a@{A}"])
    zone.fall_silent()
    before = balancer.metrics().value("dns_lookups_total", result="timeout")
    eventually(
        lambda: balancer.metrics().value("dns_lookups_total", result="timeout") > before + 20,
        what="all names wait",
    )
    for _ in range(3):
        clients = [balancer.connect() for _ in range(32)]
        assert all(answered_by(client, 2) == {A} for client in clients)
        for client in clients:
            client.close()
        eventually_equal(lambda: balancer.status()["sockets"], 0)
    ended = balancer.stop()
    assert ended.seconds < 10
    zone.speak()


@pytest.mark.parametrize(("host", "why"), [(f"rpc.{ZONE}", "no name"), (f"rpc.{BROKEN}", "unavailable")])
def test_a_name_that_nobody_knows_does_not_stop_the_start(lab: Lab, host: str, why: str) -> None:
    there = backends(lab, A)
    zone = Zone(lab)
    balancer = lab.balancer(tree_of(lab, there, host=host))
    line = f"pool workers: no backend is up ({host}: {why})"
    eventually_equal(lambda: balancer.get("/readyz?verbose"), (503, f"not ready\n{line}\n"))
    assert balancer.turns_away()
    assert balancer.metrics().value("refused_connections_total", reason="no_backend") == 1
    if host.endswith(BROKEN):
        return
    zone.set(rpc=[A])
    serves(balancer, A)
    assert balancer.get("/readyz") == (200, "ready\n")
    assert answered_by(balancer.connect()) == {A}


@pytest.mark.parametrize(
    ("family", "expected"),
    [("auto", [A]), ("both", [A, "::1"]), ("ipv6", ["::1"]), ("ipv4", [A])],
)
def test_address_families(lab: Lab, family: str, expected: list[str]) -> None:
    there = backends(lab, A, "::1")
    Zone(lab, rpc=[A, "::1"])
    balancer = lab.balancer(tree_of(lab, there, resolve={"family": family}, balance="round_robin"))
    serves(balancer, *expected)
    eventually_equal(partial(answered_by, balancer.connect()), set(expected))


def test_too_many_addresses(lab: Lab) -> None:
    """The lowest ones are used, whoever asks, and in whatever order they are told."""
    there = backends(lab, A, B, C)
    zone = Zone(lab, rpc=[C, B, A])
    balancer = lab.balancer(tree_of(lab, there, resolve={"max_addresses": 2}))
    serves(balancer, A, B)
    balancer.process.stderr.wait_for(rf"rpc\.{ZONE} has 3 addresses; the first 2 are used")
    zone.set(rpc=[C, B])
    serves(balancer, B, C)


def test_balancers_agree_on_hashes(lab: Lab) -> None:
    there = backends(lab, A, B, C)
    zone = Zone(lab, rpc=[A, B, C])
    how: Tree = {"balance": "hash", "hash": {"field": {"offset": 8, "width": 4}}}
    first = lab.balancer(tree_of(lab, there, **how))
    serves(first, A, B, C)
    zone.set(rpc=[C])
    second = lab.balancer(tree_of(lab, there, **how))
    serves(second, C)
    zone.set(rpc=[B, A, C])
    serves(second, A, B, C)
    serves(first, A, B, C)
    questions = [message(number, number.to_bytes(4, "big")) for number in range(200)]

    def who(balancer: Balancer) -> dict[int, str]:
        answers = map(read_answer, balancer.connect().ask(*questions))
        return {answer.number: answer.backend for answer in answers}

    eventually(lambda: who(first) == who(second), what="both send each key to the same backend")
    assert set(who(first).values()) == {A, B, C}


def test_commands_take_a_backend_by_its_address(lab: Lab) -> None:
    there = backends(lab, A, "::1")
    Zone(lab, rpc=[A, "::1"])
    balancer = lab.balancer(tree_of(lab, there, resolve={"family": "both"}, balance="round_robin"))
    serves(balancer, A, "::1")
    admin = f"{balancer.admin[0]}:{balancer.admin[1]}"
    done = lab.run(*SOCKMAP_LB, "drain", "--admin", admin, "workers/a@::1")
    assert done.code == 0, done.err
    client = balancer.connect()
    assert answered_by(client) == {A}
    before = looks(balancer, "found")
    eventually(partial(looked, balancer, "found", before + 1))
    assert answered_by(client) == {A}, "a look at the name does not bring it back"
    done = lab.run(*SOCKMAP_LB, "status", "--admin", admin, "--json")
    assert [name["addresses"] for name in json.loads(done.out)["pools"][0]["names"]] == [[A, "::1"]]


def test_names_of_the_hosts_file(lab: Lab) -> None:
    there = backends(lab, A, B)
    lab.here.write_etc("hosts", f"{A} rpc.hosts\n{B} rpc.hosts\n")
    lab.here.write_etc("nsswitch.conf", "hosts: files\n")
    balancer = lab.balancer(tree_of(lab, there, host="rpc.hosts", balance="round_robin"))
    serves(balancer, A, B)


def test_names_beside_addresses(lab: Lab) -> None:
    there = backends(lab, A, B)
    zone = Zone(lab, rpc=[A])
    tree = tree_of(lab, there, balance="round_robin")
    other = lab.backend("other")
    tree["pools"][0]["backends"].append({"name": "b", "address": f"{other.endpoint[0]}:{other.endpoint[1]}"})
    balancer = lab.balancer(tree)
    eventually_equal(partial(serving, balancer), [f"a@{A}", "b"])
    zone.set(rpc=[B])
    eventually_equal(partial(serving, balancer), [f"a@{B}", "b"])
    eventually_equal(partial(answered_by, balancer.connect()), {B, "other"})


class TestReload:
    """What is known of names outlives a reload, whatever the name server says meanwhile."""

    @pytest.mark.parametrize("connections", ["per_client", "shared"])
    def test_backends_by_name_stay(self, lab: Lab, connections: str) -> None:
        there = backends(lab, A, B)
        zone = Zone(lab, rpc=[A, B])
        tree = tree_of(
            lab, there, connections=connections, balance="round_robin", resolve={"max_addresses": 8}
        )
        balancer = lab.balancer(tree)
        serves(balancer, A, B)
        client = balancer.connect()
        eventually_equal(partial(answered_by, client), {A, B})
        before = balancer.metrics().by("backend", "messages_total")
        accepted = {host: list(backend.connections) for host, backend in there.items()}
        zone.fall_silent()
        for key, value in (("weight", 7), ("max_outstanding", 100), ("priority", 1)):
            tree["pools"][0]["backends"][0][key] = value
            code, done = balancer.reload(tree)
            assert code == 200, done
            assert serving(balancer) == [f"a@{A}", f"a@{B}"]
        tree["pools"][0]["resolve"]["timeout"] = "400ms"
        assert balancer.reload(tree)[0] == 200
        serves(balancer, A, B)
        metrics = balancer.metrics()
        assert metrics.by("backend", "backend_weight") == {f"a@{A}": 7, f"a@{B}": 7}
        assert answered_by(client) == {A, B}
        after = balancer.metrics().by("backend", "messages_total")
        assert all(after[name] > count for name, count in before.items())
        for host, backend in there.items():
            assert set(accepted[host]) <= set(backend.connections), "the connections are those of before"
        zone.speak()
        zone.set(rpc=[B])
        serves(balancer, B)

    def test_another_host(self, lab: Lab) -> None:
        there = backends(lab, A, B, C)
        zone = Zone(lab, rpc=[A, B], other=[B, C])
        tree = tree_of(lab, there, balance="round_robin")
        balancer = lab.balancer(tree)
        serves(balancer, A, B)
        client = balancer.connect()
        tree["pools"][0]["backends"][0]["address"] = f"nobody.{ZONE}:{there[A].endpoint[1]}"
        assert balancer.reload(tree)[0] == 200
        before = looks(balancer, "no_name")
        eventually(partial(looked, balancer, "no_name", before + 1))
        assert serving(balancer) == [f"a@{A}", f"a@{B}"], "until the new host is found"
        assert answered_by(client) == {A, B}
        zone.set(nobody=[B, C])
        serves(balancer, B, C)
        eventually_equal(partial(answered_by, client), {B, C})
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {}

    def test_names_come_and_go(self, lab: Lab) -> None:
        there = backends(lab, A, B)
        Zone(lab, rpc=[A])
        tree = tree_of(lab, there, balance="round_robin")
        port = there[A].endpoint[1]
        named = tree["pools"][0]["backends"]
        plain = [{"name": "a", "address": f"{B}:{port}"}]
        resolve = tree["pools"][0].pop("resolve")
        tree["pools"][0]["backends"] = plain
        balancer = lab.balancer(tree)
        eventually_equal(partial(serving, balancer), ["a"])
        client = balancer.connect()
        assert answered_by(client) == {B}
        tree["pools"][0] |= {"backends": named, "resolve": resolve}
        assert balancer.reload(tree)[0] == 200
        serves(balancer, A)
        eventually_equal(partial(answered_by, client), {A})
        tree["pools"][0]["backends"] = plain
        del tree["pools"][0]["resolve"]
        assert balancer.reload(tree)[0] == 200
        eventually_equal(partial(serving, balancer), ["a"])
        eventually_equal(partial(answered_by, client), {B})
        assert balancer.status()["pools"][0]["names"] == []
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {}

"""Another configuration while clients are served: what changes, what stays, and what is refused."""

import copy
import socket
import threading
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from tests.e2e.balancer import Balancer, Tree, dump, show
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal
from tests.e2e.processes import SOCKMAP_LB
from tests.e2e.traffic import traffic

KINDS: dict[str, dict[str, Any]] = {
    "per_client": {"balance": "round_robin"},
    "on_demand": {"balance": "round_robin", "connect": "on_demand"},
    "shared": {"balance": "round_robin", "connections": "shared"},
    "hash": {"balance": "hash", "hash": {"field": {"offset": 8, "width": 4}}},
}


def changed(tree: Tree, **pool: Any) -> Tree:
    """A copy with other settings of the pool."""
    other = copy.deepcopy(tree)
    other["pools"][0].update(pool)
    return other


def connections(balancer: Balancer, count: int, listener: str = "rpc") -> list[socket.socket]:
    return [balancer.where.connect(balancer.listeners[listener]) for _ in range(count)]


def one(lab: Lab, balancer: Balancer, listener: str = "rpc") -> str:
    """Who answers a new client's only request."""
    del lab
    with balancer.connect(listener) as client:
        (answer,) = client.ask(message(1))
    return read_answer(answer).backend


def reload_metrics(balancer: Balancer) -> tuple[float, float]:
    metrics = balancer.metrics()
    return (
        metrics.value("config_last_reload_successful"),
        metrics.value("config_last_reload_success_timestamp_seconds"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_backends_under_load(lab: Lab, kind: str) -> None:
    """Nothing is lost, nobody is cut off, and counters of what stays go on."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = lab.serve(backends[:2], **KINDS[kind])
    first = balancer.tree
    with traffic(connections(balancer, 4)) as running:
        running.proceed()
        counted = balancer.metrics().value("messages_total", backend="a")
        pid = balancer.pid
        more = copy.deepcopy(first)
        more["pools"][0]["backends"].append({"name": "c", "address": show(backends[2].endpoint), "weight": 3})
        more["pools"][0]["backends"][0]["weight"] = 2
        code, answer = balancer.reload(more)
        assert code == 200, answer
        assert (code, answer["changed"]) == (
            200,
            {
                "pools_changed": ["workers"],
                "backends_added": ["workers/c"],
                "backends_changed": ["workers/a"],
            },
        )
        eventually(lambda: running.by["c"] > 20)
        assert balancer.metrics().by("backend", "backend_weight") == {"a": 2, "b": 1, "c": 3}
        running.proceed()

        fewer = changed(more, backends=more["pools"][0]["backends"][:2])
        code, answer = balancer.reload(fewer)
        assert (code, answer["changed"]["backends_removed"]) == (200, ["workers/c"])
        eventually(lambda: not backends[2].connections, what="the removed backend has no connections")
        asked = len(backends[2].received)
        running.proceed(500)
        assert len(backends[2].received) == asked
        assert balancer.metrics().value("messages_total", backend="a") >= counted
        assert balancer.metrics().by("backend", "backend_up") == {"a": 1, "b": 1}
        assert balancer.pid == pid
    assert not balancer.metrics().seen("reason", "dropped_messages_total")


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_whose_address_changes(lab: Lab, kind: str) -> None:
    backends = [lab.backend(name) for name in ("a", "b", "elsewhere")]
    balancer = lab.serve(backends[:2], **KINDS[kind])
    moved = copy.deepcopy(balancer.tree)
    moved["pools"][0]["backends"][0]["address"] = show(backends[2].endpoint)
    with traffic(connections(balancer, 3)) as running:
        running.proceed()
        code, answer = balancer.reload(moved)
        assert (code, answer["changed"]["backends_replaced"]) == (200, ["workers/a"])
        eventually(lambda: running.by["elsewhere"] > 20 and not backends[0].connections)
        running.proceed()
    assert not balancer.metrics().seen("reason", "dropped_messages_total")


def test_what_is_outstanding_on_a_removed_backend_is_answered(lab: Lab) -> None:
    staying, leaving = lab.backend("a"), lab.backend("b", holding=True)
    balancer = lab.serve([staying, leaving], balance="round_robin", batch=1)
    client = balancer.connect()
    client.send(*(message(number) for number in range(4)))
    eventually(lambda: len(leaving.received) == 2)
    assert (
        balancer.reload(changed(balancer.tree, backends=balancer.tree["pools"][0]["backends"][:1]))[0] == 200
    )
    client.send(*(message(number) for number in range(4, 8)))
    eventually(lambda: len(staying.received) == 6)
    leaving.release()
    assert sorted(read_answer(data).number for data in client.answers(8)) == list(range(8))
    eventually(lambda: not leaving.connections)


def test_listeners_come_and_go(lab: Lab) -> None:
    """Who is connected to one that goes is served on, and drained when the drain timeout has passed."""
    backend = lab.backend("a")
    balancer = lab.serve([backend], timeouts={"drain": "1s"})
    first = balancer.tree
    two = copy.deepcopy(first)
    two["listeners"].append({"name": "more", "address": "127.0.0.1:0", "pool": "workers"})
    with traffic(connections(balancer, 2)) as running:
        assert balancer.reload(two)[1]["changed"] == {"listeners_added": ["more"]}
        port = balancer.listeners["more"]
        assert one(lab, balancer, "more") == "a"
        assert set(balancer.metrics().by("listener", "client_connections")) == {"rpc", "more"}
        staying = balancer.connect("more")
        staying.ask(message(1))

        assert balancer.reload(first)[1]["changed"] == {"listeners_removed": ["more"]}
        with pytest.raises(ConnectionRefusedError):
            balancer.where.connect(port)
        assert len(staying.ask(message(2))) == 1
        assert staying.answers_to_the_end() == []
        running.proceed()
    assert not balancer.metrics().seen("reason", "dropped_messages_total")


def test_another_protocol_takes_over_the_socket(lab: Lab) -> None:
    """No connect is refused; who was there speaks the old protocol to the end."""
    backend = lab.backend("a")
    balancer = lab.serve([backend])
    old = balancer.connect()
    old.ask(message(1))
    port = balancer.listeners["rpc"]
    other = copy.deepcopy(balancer.tree)
    other["protocols"] = {"short": {"length": {"offset": 0, "width": 2, "adjust": 2}, "max_message": "4KiB"}}
    other["listeners"][0]["protocol"] = "short"
    stop = threading.Event()
    refused: list[OSError] = []

    def knock() -> None:
        while not stop.is_set():
            try:
                balancer.where.connect(port).close()
            except OSError as error:
                refused.append(error)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        code, answer = balancer.reload(other)
    finally:
        stop.set()
        knocking.join()
    assert (code, answer["changed"]) == (200, {"listeners_replaced": ["rpc"]})
    assert not refused
    assert balancer.listeners["rpc"] == port
    assert len(old.ask(message(2, b"longer than before"))) == 1
    with balancer.where.connect(port) as new:
        new.sendall(b"\0\1x" * 2)  # two messages of the new protocol, and none of the old one
        eventually_equal(lambda: balancer.metrics().value("messages_total"), 2)
    assert balancer.status()["listeners"][0]["protocol"] == "short"
    assert balancer.status()["listeners"][0]["accepted"] >= 2


@pytest.mark.parametrize(
    "settings",
    [{"connections": "shared"}, {"balance": "random"}, KINDS["hash"]],
    ids=["shared", "random", "hash"],
)
def test_a_pool_that_is_replaced(lab: Lab, settings: dict[str, Any]) -> None:
    """Its clients go on with the old one, new ones have the new one; the old one is gone with them."""
    backend = lab.backend("a")
    balancer = lab.serve([backend])
    base = balancer.status()["sockets"]
    old = balancer.connect()
    old.ask(message(1))
    code, answer = balancer.reload(changed(balancer.tree, **settings))
    assert (code, answer["changed"]) == (200, {"pools_replaced": ["workers"], "listeners_replaced": ["rpc"]})
    with traffic(connections(balancer, 3)) as running:
        running.proceed()
        assert len(old.ask(message(2))) == 1
        old.close()
        balancer.clients.clear()
        running.proceed()
    balancer.process.stderr.wait_for("pool workers is gone")
    shared = 2 if settings.get("connections") == "shared" else 0
    eventually_equal(lambda: balancer.status()["sockets"], base + shared)
    assert not balancer.metrics().seen("reason", "dropped_messages_total")


def test_limits_and_timeouts_apply_to_who_is_there(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    client = balancer.connect()
    client.ask(message(1))
    other = changed(balancer.tree)
    other["listeners"][0]["limits"] = {
        "max_clients": 1,
        "rate": {"messages_per_second": 5, "burst": 1, "over": "deny"},
    }
    assert balancer.reload(other)[1]["changed"] == {"listeners_changed": ["rpc"]}
    assert balancer.turns_away()
    client.send(*(message(number) for number in range(10)))
    eventually(lambda: balancer.metrics().value("dropped_messages_total", reason="rate_limited") > 0)
    del other["listeners"][0]["limits"]
    assert balancer.reload(other)[0] == 200
    before = balancer.metrics().value("dropped_messages_total", reason="rate_limited")
    client.send(*(message(number) for number in range(100, 150)))
    eventually(lambda: balancer.metrics().value("messages_total") >= 51)
    assert balancer.metrics().value("dropped_messages_total", reason="rate_limited") == before

    other["pools"][0]["timeouts"] = {"drain": "5s", "idle": "500ms"}
    assert balancer.reload(other)[1]["changed"] == {"pools_changed": ["workers"]}
    eventually(lambda: balancer.metrics().value("client_connections") == 0, limit=30)


def test_rules_change_for_who_is_there(lab: Lab) -> None:
    """Also where the backend that a rule names has another address, and so another number."""
    backends = [lab.backend(name) for name in ("a", "b", "elsewhere")]
    tree = lab.tree(backends[:2])
    rules = [{"match": {"offset": 8, "width": 1, "equals": 120}, "then": {"backend": "workers/b"}}]
    tree["listeners"][0]["rules"] = rules
    balancer = lab.balancer(tree).wait_ready()
    client = balancer.connect()

    def asked(body: bytes) -> str:
        (answer,) = client.ask(message(1, body))
        return read_answer(answer).backend

    assert {asked(b"x") for _ in range(5)} == {"b"}
    moved = copy.deepcopy(tree)
    moved["pools"][0]["backends"][1]["address"] = show(backends[2].endpoint)
    assert balancer.reload(moved)[1]["changed"]["backends_replaced"] == ["workers/b"]
    assert {asked(b"x") for _ in range(5)} == {"elsewhere"}
    other = copy.deepcopy(moved)
    other["listeners"][0]["rules"][0]["then"] = {"backend": "workers/a"}
    assert balancer.reload(other)[1]["changed"] == {"listeners_changed": ["rpc"]}
    assert {asked(b"x") for _ in range(5)} == {"a"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("pools: [", "is not valid YAML"),
        ({"runtime": {"max_connections": 2048}}, "runtime.max_connections: cannot be changed by a reload"),
        ({"runtime": {"max_connections": 1024, "user": "daemon"}}, "runtime.user: cannot be changed"),
    ],
)
def test_a_bad_file_changes_nothing(lab: Lab, bad: Any, said: str) -> None:
    balancer = lab.serve([lab.backend("a")])
    good = balancer.tree
    successful, at = reload_metrics(balancer)
    assert successful == 1
    code, answer = balancer.reload(bad if isinstance(bad, str) else {**good, **bad})
    assert code == 422
    (error,) = answer["errors"]
    assert error.startswith(f"{balancer.path}:")
    assert said in error
    balancer.process.stderr.wait_for("the configuration in use stays")
    assert said in balancer.log
    assert reload_metrics(balancer) == (0, at)
    assert one(lab, balancer) == "a"
    assert balancer.reload(good)[0] == 200
    successful, later = reload_metrics(balancer)
    assert (successful, later > at) == (1, True)


def test_what_cannot_be_had_changes_nothing(lab: Lab) -> None:
    """An address that is taken, and a port that only root may have: nothing of the file is applied."""
    balancer = lab.serve([lab.backend("a")])
    with lab.here.listen("127.0.0.1", 0) as taken:
        for address, said in ((show(taken.getsockname()), "in use"), ("127.0.0.1:99", "denied")):
            other = changed(balancer.tree, balance="random")
            other["listeners"].append({"name": "more", "address": address, "pool": "workers"})
            tree = balancer.tree
            code, answer = balancer.reload(other)
            balancer.tree = tree
            assert code == 422
            assert said in answer["error"]
            assert "listeners[1]" in answer["error"]
            assert balancer.status()["pools"][0]["balance"] == "least_outstanding"
    many = [{"name": f"b{number}", "address": "127.0.0.1:9"} for number in range(200)]
    code, answer = balancer.reload(changed(balancer.tree, backends=many))
    assert code == 422
    assert "needs more backends than" in answer["error"]
    assert one(lab, balancer) == "a"


def test_the_command(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    admin = show(balancer.admin)
    done = lab.run(*SOCKMAP_LB, "reload", "--admin", admin)
    assert (done.code, done.out) == (0, "nothing has changed")
    balancer.rewrite(changed(balancer.tree, batch=1))
    done = lab.run(*SOCKMAP_LB, "reload", "--admin", admin)
    assert (done.code, done.out) == (0, "pools changed: workers")
    good = balancer.tree
    balancer.rewrite("listeners: []")
    done = lab.run(*SOCKMAP_LB, "reload", "--admin", admin)
    assert done.code == 1
    assert f"{balancer.path}:1: " in done.err
    balancer.tree = good


def test_sighup(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a"), lab.backend("b")])
    balancer.rewrite(changed(balancer.tree, backends=balancer.tree["pools"][0]["backends"][1:]))
    balancer.process.signal(Signals.SIGHUP)
    eventually_equal(lambda: balancer.metrics().by("backend", "backend_up"), {"b": 1})


def test_sighup_while_it_ends(lab: Lab) -> None:
    """The shutdown goes on."""
    backend = lab.backend("a", holding=True)
    balancer = lab.serve([backend])
    client = balancer.connect()
    client.send(message(1))
    eventually(lambda: backend.received)
    balancer.process.signal(Signals.SIGTERM)
    eventually(lambda: balancer.get("/readyz")[0] == 503)
    balancer.rewrite(changed(balancer.tree, balance="random"))
    balancer.process.signal(Signals.SIGHUP)
    balancer.process.stderr.wait_for("not now: draining")
    assert balancer.get("/reload", method="POST")[0] == 409
    backend.release()
    assert len(client.answers_to_the_end()) == 1
    assert balancer.wait().code == 0


def test_two_at_once(lab: Lab) -> None:
    """Of two requests one is refused or both are done one after the other; the last file counts."""
    balancer = lab.serve([lab.backend("a"), lab.backend("b")])
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(balancer.get("/reload", method="POST")[0]))
        for _ in range(4)
    ]
    balancer.rewrite(changed(balancer.tree, backends=balancer.tree["pools"][0]["backends"][:1]))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 409}
    assert 200 in codes
    for _ in range(5):
        balancer.process.signal(Signals.SIGHUP)
    eventually_equal(lambda: balancer.metrics().by("backend", "backend_up"), {"a": 1})


def test_a_config_map_that_is_swapped(lab: Lab) -> None:
    """As Kubernetes does it: the file is a link to ..data/balancer.yaml, and ..data to a folder of a time."""
    tree = lab.tree([lab.backend("a"), lab.backend("b")], runtime={"watch": True})
    balancer = lab.balancer(tree)
    folder = balancer.path.parent
    fewer = changed(tree, backends=tree["pools"][0]["backends"][:1])

    def publish(version: str, told: Tree) -> None:
        place = folder / f"..{version}"
        place.mkdir()
        (place / balancer.path.name).write_text(dump(told), encoding="utf-8")
        swap(folder / "..data", place.name)

    def swap(link: Path, target: str) -> None:
        new = link.with_name("..new")
        new.symlink_to(target)
        new.replace(link)

    publish("first", tree)
    swap(balancer.path, f"..data/{balancer.path.name}")
    balancer.wait_ready()
    publish("second", fewer)
    eventually_equal(lambda: balancer.metrics().by("backend", "backend_up"), {"a": 1})
    assert "has changed" in balancer.log


def test_two_hundred_reloads_leak_nothing(lab: Lab) -> None:
    """Slots, descriptors, memory of the process: what is used after them is what was used before."""
    backends = [lab.backend(name) for name in "ab"]
    balancer = lab.serve(backends)
    first = balancer.tree
    second = changed(first, balance="random")
    second["pools"][0]["backends"] = [{"name": "b", "address": show(backends[1].endpoint), "weight": 3}]
    second["listeners"].append({"name": "more", "address": "127.0.0.1:0", "pool": "workers"})
    third = changed(first, connections="shared")
    client = balancer.connect()
    client.ask(message(1))
    client.close()
    balancer.clients.clear()

    def used() -> tuple[int, int]:
        return balancer.status()["sockets"], len(list(Path(f"/proc/{balancer.pid}/fd").iterdir()))

    eventually_equal(lambda: balancer.status()["sockets"], 0)
    before = used()
    for number in range(66):
        for tree in (second, third, first):
            code, answer = balancer.reload(tree)
            assert code == 200, (number, answer)
    eventually(lambda: used()[0] == before[0])
    eventually(lambda: abs(used()[1] - before[1]) <= 2, what=f"{used()} becomes {before}")
    assert one(lab, balancer) in {"a", "b"}

"""What operators change in a running balancer, by the commands and by HTTP."""

import json
import time
from typing import Any

import pytest

from lb.framing import Message
from tests.e2e.backend import Backend, echo
from tests.e2e.balancer import Balancer, show
from tests.e2e.crowd import Crowd
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import PATIENCE, eventually, eventually_equal
from tests.e2e.processes import SOCKMAP_LB, Done

FIFO = {"ordered": {"length": {"offset": 0, "width": 4, "adjust": 4}, "id": {"offset": 4, "width": 4}}}
FIFO["ordered"]["ordering"] = "fifo"  # type: ignore[assignment]
MODES: dict[str, dict[str, Any]] = {
    "per_client": {},
    "fifo": {"protocol": "ordered", "protocols": FIFO},
    "shared": {"connections": "shared"},
    "hash": {"balance": "hash", "hash": {"field": {"offset": 4, "width": 4}}},
}
SOON = 0.1 * PATIENCE  # seconds in which messages for a backend that is taken out have to stop


def command(lab: Lab, balancer: Balancer, *arguments: str) -> Done:
    return lab.run(*SOCKMAP_LB, *arguments, "--admin", show(balancer.admin))


class Recorder:
    """Answers, and notes when it was asked."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, backend: Backend, asked: Message) -> bytes:
        self.times.append(time.monotonic())
        return echo(backend, asked)

    @property
    def latest(self) -> float:
        return self.times[-1]


@pytest.mark.parametrize(
    ("mode", "state"), [*((mode, "drain") for mode in MODES), ("per_client", "maint"), ("shared", "maint")]
)
def test_a_backend_is_taken_out_under_load(lab: Lab, mode: str, state: str) -> None:
    """New messages stop at once, what it owes is answered, its connections end, and no client notices."""
    recorder = Recorder()
    backends = [lab.backend("a", respond=recorder), lab.backend("b"), lab.backend("c")]
    balancer = lab.serve(backends, **MODES[mode])
    with Crowd(balancer, 20) as crowd:
        eventually(lambda: len(recorder.times) > 200)
        since = time.monotonic()
        changed = balancer.post(f"/backends/workers/a/{state}")
        assert changed["admin"] == state
        assert (changed["effective_weight"], changed["serving"]) == (0, 2)
        eventually(lambda: not backends[0].connections, what="its connections end under load")
        empty = time.monotonic()
        eventually_equal(lambda: balancer.metrics().value("backend_connections", backend="a"), 0)
        before, others = len(recorder.times), sum(len(backend.received) for backend in backends[1:])
        eventually(lambda: sum(len(backend.received) for backend in backends[1:]) > others + 1000)
        assert len(recorder.times) == before
        stopped = recorder.latest - since
        print(  # noqa: T201 - for those who want to know how fast
            f"\n{mode}, {state}: after {before} messages the last one came {stopped * 1e3:.1f} ms"
            f" after the command; its connections had ended after {(empty - since) * 1e3:.0f} ms"
        )
        assert stopped < SOON
        balancer.post("/backends/workers/a/ready")
        eventually(lambda: len(recorder.times) > before + 100, what="it serves again")
    assert len(crowd.answers) == crowd.asked == sum(len(backend.received) for backend in backends)
    metrics = balancer.metrics()
    assert metrics.seen("reason", "dropped_messages_total") == {}
    assert metrics.value("backend_outstanding_messages") == 0
    assert [backend.resets for backend in backends] == [0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_what_it_owes_is_answered(lab: Lab, mode: str) -> None:
    slow, other = lab.backend("a", holding=True), lab.backend("b")
    balancer = lab.serve([slow, other], **MODES[mode])
    clients = [balancer.connect() for _ in range(16)]
    for number, client in enumerate(clients):
        client.send(message(number))
    eventually_equal(lambda: len(slow.received) + len(other.received), len(clients))
    held = len(slow.received)
    assert held
    answer = balancer.post("/backends/workers/a/drain")
    assert answer["outstanding"] == held
    done = command(lab, balancer, "drain", "workers/a", "--wait", "0.2")
    assert done.code == 1
    assert "not empty within 0.2 s: workers/a: drain, up, weight 1 (now 0)" in done.err
    assert slow.connections
    slow.release()
    for number, client in enumerate(clients):
        assert read_answer(client.answers(1)[0]).number == number
    eventually(lambda: not slow.connections)
    done = command(lab, balancer, "drain", "workers/a", "--wait", "10")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "workers/a: drain, up, weight 1 (now 0), 0 connections, 0 outstanding"
    for client in clients:
        assert {read_answer(data).backend for data in client.ask(*(message(n) for n in range(8)))} == {"b"}
    assert slow.resets == 0
    assert len(slow.received) == held


def test_a_fifo_client_leaves_a_backend_that_gets_nothing_new(lab: Lab) -> None:
    """It always has something outstanding, so it would stay for ever."""
    backends = [lab.backend("a", delay=0.001), lab.backend("b", delay=0.001)]
    balancer = lab.serve(backends, **MODES["fifo"])
    with Crowd(balancer, 1, depth=16) as crowd:
        mine = eventually(lambda: next((b for b in backends if len(b.received) > 50), None))
        assert mine is not None
        balancer.post(f"/backends/workers/{mine.name}/weight", {"weight": 0})
        other = next(backend for backend in backends if backend is not mine)
        eventually(lambda: len(other.received) > 50)
        eventually_equal(
            lambda: balancer.metrics().value("backend_outstanding_messages", backend=mine.name), 0
        )
        assert mine.connections, "a weight of 0 keeps the connections"
        asked = len(mine.received)
        eventually(lambda: len(other.received) > 150)
        assert len(mine.received) == asked
    numbers = [answer.number for answer in crowd.answers]
    assert numbers == list(range(len(numbers))), "answers keep the order of the requests"


def test_maintenance_is_not_disturbed(lab: Lab) -> None:
    """Nobody connects, neither clients nor checks; a backend that is gone meanwhile is not called down."""
    backends = [lab.backend("a"), lab.backend("b")]
    check = {"interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}
    balancer = lab.serve(backends, health_check=check)
    balancer.connect().ask(message(1))
    command(lab, balancer, "maint", "workers/a", "--wait", "10")
    endpoint = backends[0].endpoint
    backends[0].close()
    for number in range(20):
        assert read_answer(balancer.connect().ask(message(number))[0]).backend == "b"
    shown = balancer.status()["pools"][0]["backends"][0]
    assert (shown["admin"], shown["health"], shown["connections"]) == ("maint", "unknown", 0)
    assert shown["connect_failures"] == {}
    lab.backend("a", endpoint=endpoint)
    done = command(lab, balancer, "ready", "workers/a")
    assert done.code == 0
    eventually_equal(lambda: balancer.status()["pools"][0]["backends"][0]["health"], "up")
    client = balancer.connect()
    eventually_equal(
        lambda: {read_answer(data).backend for data in client.ask(*(message(n) for n in range(200)))},
        {"a", "b"},
    )
    assert balancer.status()["pools"][0]["backends"][0]["connect_failures"] == {}


def test_drained_backends_are_still_checked(lab: Lab) -> None:
    backend = lab.backend("a")
    check = {"interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}
    balancer = lab.serve([backend, lab.backend("b")], health_check=check)
    balancer.post("/backends/workers/a/drain")
    backend.close()
    eventually_equal(lambda: balancer.status()["pools"][0]["backends"][0]["health"], "down")


def test_ready_with_slow_start(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a"), lab.backend("b")], slow_start="10m")
    balancer.post("/backends/workers/a/drain")
    assert balancer.post("/backends/workers/a/ready")["effective_weight"] == pytest.approx(0.05)


@pytest.mark.parametrize("mode", ["per_client", "shared"])
def test_a_reserve_serves_when_all_others_are_taken_out(lab: Lab, mode: str) -> None:
    """And its own connections end when they are back."""
    tree = lab.tree([lab.backend("a"), lab.backend("b")], **MODES[mode])
    tree["pools"][0]["backends"][1]["priority"] = 1
    tree["pools"][0]["health_check"] = {"interval": "1s"}
    balancer = lab.balancer(tree).wait_ready()
    client = balancer.connect()
    for taken_out, serving in (("drain", "b"), ("ready", "a")) * 2:
        balancer.post(f"/backends/workers/a/{taken_out}")
        eventually_equal(lambda: read_answer(client.ask(message(1))[0]).backend, serving)
        idle = "a" if serving == "b" else "b"
        eventually_equal(lambda: balancer.metrics().value("backend_connections", backend=idle), 0)  # noqa: B023
    assert balancer.metrics().value("dropped_messages_total") == 0


def test_not_ready_when_all_are_taken_out(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    done = command(lab, balancer, "drain", "workers/a")
    assert done.code == 0
    assert done.err == "sockmap-lb: no backend of pool workers takes new messages now"
    code, text = balancer.get("/readyz?verbose")
    assert code == 503
    assert text.splitlines()[1].startswith("pool workers: no backend that is up is ready")
    assert command(lab, balancer, "ready", "workers/a") == Done(
        0, "workers/a: ready, up, weight 1 (now 1), 0 connections, 0 outstanding", ""
    )
    eventually_equal(lambda: balancer.get("/readyz")[0], 200)


class TestWeight:
    @pytest.mark.parametrize("mode", ["per_client", "shared"])
    def test_shares_follow_at_once(self, lab: Lab, mode: str) -> None:
        backends = [lab.backend("a"), lab.backend("b")]
        balancer = lab.serve(backends, **{"balance": "round_robin", "batch": 1} | MODES[mode])
        client = balancer.connect()
        done = command(lab, balancer, "weight", "workers/b", "9")
        assert done.code == 0
        assert done.out.startswith("workers/b: ready, up, weight 9 (now 9), ")
        for number in range(0, 2000, 10):
            client.ask(*(message(number + place) for place in range(10)))
        # A backend may be behind its turns by 64 messages on each processor.
        assert len(backends[1].received) / 2000 == pytest.approx(0.9, abs=0.07)
        assert balancer.metrics().value("backend_weight", backend="b") == 9

    def test_the_table_of_a_hashed_pool_follows(self, lab: Lab) -> None:
        """Not to 0: the keys of that backend come back to it, and no others have moved."""
        balancer = lab.serve([lab.backend(name) for name in "abc"], **MODES["hash"])
        client = balancer.connect()

        def owners() -> dict[int, str]:
            numbers = range(300)
            answers = [read_answer(data) for n in numbers for data in client.ask(message(n))]
            return {answer.number: answer.backend for answer in answers}

        def share(name: str) -> float:
            found = list(owners().values())
            return found.count(name) / len(found)

        first = owners()
        balancer.post("/backends/workers/a/weight", {"weight": 0})
        without = owners()
        assert "a" not in without.values()
        assert all(without[key] == owner for key, owner in first.items() if owner != "a")
        balancer.post("/backends/workers/a/weight", {"weight": 1})
        assert owners() == first
        balancer.post("/backends/workers/a/weight", {"weight": 8})
        eventually(lambda: share("a") > 0.7)
        balancer.post("/backends/workers/a/weight", {"weight": 1})
        eventually_equal(owners, first)

    def test_bad_values(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend("a")])
        bodies = {
            '{"weight": 257}': "257 is outside 0..256 ",
            '{"weight": -1}': "-1 is outside 0..256 ",
            **dict.fromkeys(['{"weight": true}', '{"weight": 1.5}', "[1]", "{", ""], "the body must be JSON"),
        }
        for body, why in bodies.items():
            code, text = balancer.get("/backends/workers/a/weight", method="POST", body=body)
            assert code == 422, body
            assert json.loads(text)["error"].startswith(why)
        assert balancer.metrics().value("backend_weight", backend="a") == 1

    def test_the_command_says_what_is_wrong(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend("a")])
        done = command(lab, balancer, "weight", "workers/a", "300")
        assert done.code == 1
        assert done.complaint.startswith("sockmap-lb: 300 is outside 0..256 ")
        done = command(lab, balancer, "drain", "workers/z")
        assert done.code == 1
        assert done.complaint.startswith("sockmap-lb: there is no backend workers/z; ")


class TestHttp:
    def test_no_change_by_get(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend("a")])
        for what in ("drain", "ready", "maint", "weight"):
            assert balancer.get(f"/backends/workers/a/{what}")[0] == 405
            for path in (f"/backends/workers/z/{what}", f"/backends/z/a/{what}"):
                assert balancer.get(path, method="POST")[0] == 404
        assert json.loads(balancer.get("/backends/workers/a")[1])["admin"] == "ready"
        assert balancer.get("/backends/workers/z")[0] == 404

    def test_no_change_by_pages_of_other_sites(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend("a")])
        path, own = "/backends/workers/a/drain", f"http://{show(balancer.admin)}"
        for headers in ({"Origin": "https://example.com"}, {"Origin": own, "Sec-Fetch-Site": "cross-site"}):
            code, text = balancer.get(path, method="POST", headers=headers)
            assert code == 403
            assert "error" in json.loads(text)
        assert json.loads(balancer.get("/backends/workers/a")[1])["admin"] == "ready"
        headers = {"Origin": own, "Sec-Fetch-Site": "same-origin"}
        assert balancer.get(path, method="POST", headers=headers)[0] == 200

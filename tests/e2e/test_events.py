"""What happened, by HTTP: health, commands, floods, the end."""

import json
from signal import Signals
from typing import cast

from lb.events import Event, Events
from tests.e2e.balancer import Balancer
from tests.e2e.lab import Lab
from tests.e2e.polling import eventually


def events(balancer: Balancer, after: int = 0) -> Events:
    code, text = balancer.get(f"/events?after={after}")
    assert code == 200, text
    return cast("Events", json.loads(text))


def of(balancer: Balancer, kind: str) -> list[Event]:
    return [each for each in events(balancer)["events"] if each["kind"] == kind]


def test_what_happens_to_backends(lab: Lab) -> None:
    backend = lab.backend("a")
    check = {"interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}
    balancer = lab.serve([backend, lab.backend("b")], health_check=check)
    assert {each["about"]["listener"] for each in of(balancer, "listener")} == {"rpc"}
    assert {(each["about"]["backend"], each["about"]["health"]) for each in of(balancer, "health")} == {
        ("a", "up"),
        ("b", "up"),
    }
    seen = events(balancer)["next"]
    balancer.post("/backends/workers/b/drain")
    balancer.post("/backends/workers/b/weight", {"weight": 3})
    backend.close()
    eventually(lambda: len(events(balancer, seen)["events"]) >= 3)
    news = events(balancer, seen)["events"]
    found = {each["kind"]: each for each in news}
    assert found["admin"]["about"] == {"pool": "workers", "backend": "b", "admin": "drain"}
    assert found["weight"]["about"] == {"pool": "workers", "backend": "b", "weight": 3}
    assert found["health"]["about"] == {
        "pool": "workers",
        "backend": "a",
        "health": "down",
        "before": "up",
        "reason": "refused",
    }
    assert found["health"]["level"] == "warning"
    for each in news:
        assert balancer.log.count(each["message"]) == 1, "one line of the log"
    assert [each["seq"] for each in news] == sorted(each["seq"] for each in news)


def test_floods_are_told_in_sums(lab: Lab) -> None:
    tree = lab.tree([lab.backend("a")])
    tree["listeners"][0]["limits"] = {"max_clients": 1}
    balancer = lab.balancer(tree).wait_ready()
    client = balancer.connect()
    for _ in range(50):
        assert balancer.turns_away()
    client.send(b"\xff" * 8)
    assert client.is_reset()
    eventually(lambda: of(balancer, "malformed"))
    (malformed,) = of(balancer, "malformed")
    assert malformed["about"] == {"listener": "rpc", "reason": "oversize", "count": 1}
    told = of(balancer, "refused")
    assert 1 <= len(told) <= 3
    assert told[0]["about"]["reason"] == "max_clients"
    balancer.close_clients()
    log = balancer.stop().log
    sums = [
        int(line.split(" listener rpc: ")[1].split()[0]) for line in log.splitlines() if " refused (" in line
    ]
    assert sum(sums) == 50, "what was not told yet is told at the end"


def test_the_end(lab: Lab) -> None:
    backend = lab.backend("a", holding=True)
    balancer = lab.serve([backend])
    client = balancer.connect()
    client.send(b"\0\0\0\4\0\0\0\1")
    eventually(lambda: backend.received)
    balancer.process.signal(Signals.SIGTERM)
    eventually(lambda: any("draining" in each["message"] for each in of(balancer, "process")))
    backend.release()
    client.answers(1)


def test_bad_questions(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    for query in ("after=x", "after=-1", "after=", "after=" + 5000 * "9"):
        code, text = balancer.get(f"/events?{query}")
        assert code == 422
        assert "error" in json.loads(text)
    assert events(balancer, after=10**9)["events"]
    assert balancer.get("/events")[0] == 200
    assert balancer.get("/events", method="POST")[0] == 405

"""Very many clients over very few connections."""

import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.e2e import nameserver
from tests.e2e.balancer import configuration, read_endpoint
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import LIMIT, eventually_equal

CLIENTS, TURNS = 2000, 5


def test_two_thousand_clients_over_twelve_connections(lab: Lab) -> None:
    """Each uses the ids 0, 1, 2 ... and gets the answers to what it asked."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = lab.serve(
        backends,
        connections="shared",
        connections_per_backend=4,
        runtime={"max_connections": 4096},
    )
    endpoint = balancer.listeners["rpc"]
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(lab.here.connect(endpoint))) for _ in range(CLIENTS)]
        for who, client in enumerate(clients):
            client.send(*(message(turn, f"{who}:{turn}".encode()) for turn in range(TURNS)))
        for who, client in enumerate(clients):
            answers = {read_answer(data).number: read_answer(data).asked for data in client.answers(TURNS)}
            assert answers == {turn: f"{who}:{turn}".encode() for turn in range(TURNS)}

        assert {backend.name: len(backend.connections) for backend in backends} == {"a": 4, "b": 4, "c": 4}
        metrics = balancer.metrics()
        assert metrics.value("client_connections") == CLIENTS
        assert metrics.seen("reason", "dropped_messages_total") == {}
        assert metrics.value("datapath_messages_total", path="userspace") == 0
    eventually_equal(lambda: balancer.metrics().value("client_connections"), 0)


def test_dnsperf_with_two_hundred_clients(lab: Lab, need: Callable[..., None], tmp_path: Path) -> None:
    """No id is in flight twice on a connection to a server."""
    need("nsd", "dnsperf")
    nameserver.start(lab, lab.here, "127.0.0.1")
    checkers = [lab.start(sys.executable, "-m", "tests.e2e.ids", "127.0.0.1", "53") for _ in range(3)]
    backends = [read_endpoint(checker.stdout.wait_for(r"^\S+:\d+$")[0]) for checker in checkers]
    balancer = lab.balancer(configuration(backends, protocol="dns", connections="shared")).wait_ready()
    queries = tmp_path / "queries"
    lines = [f"{nameserver.name(i)} {'TXT' if i % 2 else 'A'}" for i in range(nameserver.NAMES)]
    queries.write_text("\n".join(lines) + "\n", encoding="ascii")
    host, port = balancer.listeners["rpc"]
    asked = 3 * nameserver.NAMES

    done = lab.run(
        "dnsperf", "-m", "tcp", "-s", host, "-p", str(port), "-d", str(queries),
        "-n", "3", "-c", "200", "-q", "2000", "-t", f"{LIMIT:g}",
    )  # fmt: skip

    assert done.code == 0, done.err
    report = dict(re.findall(r"^ +([\w ()]+): +(\S.*)$", done.out, re.MULTILINE))
    assert report["Queries completed"].split()[0] == str(asked), done.out
    assert report["Response codes"] == f"NOERROR {asked} (100.00%)"
    assert balancer.metrics().value("dropped_messages_total") == 0
    assert set(balancer.metrics().by("backend", "backend_connections").values()) == {2}
    assert balancer.stop().code == 0

    def seen() -> tuple[int, int]:
        lines = "\n".join(checker.stdout.text for checker in checkers)
        found = re.findall(r"^queries (\d+) duplicates (\d+)", lines, re.MULTILINE)
        return sum(int(count) for count, _ in found), sum(int(twice) for _, twice in found)

    eventually_equal(seen, (asked, 0))

"""The admin address: what monitoring reads."""

import re
import subprocess
from collections.abc import Callable

import pytest

from tests import metrics_document
from tests.e2e.balancer import PREFIX, Metrics, configuration
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.polling import LIMIT, eventually, eventually_equal

# Every metric of the contract and its labels.
METRICS = {
    "messages_total": {"listener", "pool", "backend"},
    "responses_total": {"listener", "pool", "backend"},
    "bytes_total": {"listener", "pool", "backend", "direction"},
    "datapath_messages_total": {"path"},
    "dropped_messages_total": {"reason"},
    "pauses_total": {"reason"},
    "refusals_total": set(),
    "protocol_errors_total": {"listener", "reason"},
    "client_connections": {"listener"},
    "client_connections_total": {"listener"},
    "refused_connections_total": {"listener", "reason"},
    "backend_up": {"pool", "backend"},
    "backend_weight": {"pool", "backend"},
    "backend_connections": {"pool", "backend"},
    "backend_connect_failures_total": {"pool", "backend", "reason"},
    "backend_health_changes_total": {"pool", "backend", "to", "reason"},
    "backend_checks_total": {"pool", "backend", "result"},
    "backend_ejected": {"pool", "backend"},
    "backend_error_responses_total": {"pool", "backend"},
    "backend_outstanding_messages": {"pool", "backend"},
    "message_duration_seconds_bucket": {"pool", "backend", "le"},
    "message_duration_seconds_sum": {"pool", "backend"},
    "message_duration_seconds_count": {"pool", "backend"},
    "buffered_bytes": set(),
    "config_last_reload_successful": set(),
    "config_last_reload_success_timestamp_seconds": set(),
    "build_info": {"version", "kernel", "libbpf"},
}


def labels(metrics: Metrics) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for sample in metrics.samples:
        if sample.name.startswith(PREFIX):
            assert found.setdefault(sample.name.removeprefix(PREFIX), set(sample.labels)) == set(
                sample.labels
            )
    return found


def test_metrics(lab: Lab, need: Callable[..., None]) -> None:
    need("promtool")
    backends = [lab.backend("a"), lab.backend("b", holding=True)]
    down = lab.here.reserve("127.0.0.1")
    balancer = lab.balancer(
        configuration(
            [*(backend.endpoint for backend in backends), ("127.0.0.1", down)],
            balance="round_robin",
            batch=1,
            weights=[1, 2, 5],
            # A client takes a, b and itself.
            runtime={"max_connections": 64},
        )
    )
    eventually_equal(lambda: balancer.metrics().value("backend_up"), 2)
    eventually_equal(lambda: balancer.metrics().value("backend_weight", backend="c"), 0)
    clients = [balancer.connect() for _ in range(balancer.status()["max_sockets"] // 3)]
    eventually_equal(lambda: balancer.metrics().value("client_connections"), len(clients))
    assert balancer.turns_away()
    clients[0].send(*(message(number, bytes(92)) for number in range(9)))
    clients[0].answers(3)
    eventually(lambda: len(backends[1].received) == 6)
    clients[1].send(b"\xff" * 8)
    assert clients[1].is_reset()
    metrics = balancer.metrics()

    assert labels(metrics) == METRICS
    for name, wanted in {"a": 3, "b": 6, "c": 0}.items():
        assert metrics.value("messages_total", listener="rpc", pool="workers", backend=name) == wanted
        assert metrics.value("bytes_total", backend=name, direction="request") == 100 * wanted
    assert metrics.by("backend", "responses_total") == {"a": 3, "b": 0, "c": 0}
    assert metrics.value("bytes_total", direction="response") == 3 * 102
    assert metrics.by("path", "datapath_messages_total") == {"kernel": 12, "userspace": 0}
    assert metrics.by("backend", "backend_outstanding_messages") == {"a": 0, "b": 6, "c": 0}
    assert metrics.by("backend", "backend_up") == {"a": 1, "b": 1, "c": 0}
    assert metrics.by("backend", "backend_weight") == {"a": 1, "b": 2, "c": 0}
    assert metrics.seen("reason", "protocol_errors_total", listener="rpc") == {"oversize": 1}
    assert metrics.seen("reason", "refused_connections_total", listener="rpc") == {"max_connections": 1}
    assert metrics.value("client_connections_total") == len(clients) + 1
    assert metrics.value("backend_connect_failures_total", backend="c", reason="refused") >= 1
    assert metrics.value("message_duration_seconds_count", backend="a") == 3
    assert metrics.value("message_duration_seconds_bucket", backend="a", le="+Inf") == 3
    assert 0 < metrics.value("message_duration_seconds_sum", backend="a") < 3 * LIMIT
    assert metrics.value("config_last_reload_successful") == 1
    assert metrics.value("build_info") == 1
    backends[1].release()
    assert len(clients[0].answers(6)) == 6
    # Never a client in a label.
    ports = {str(client.sock.getsockname()[1]) for client in (clients[0], *clients[2:])}
    assert not ports & {value for sample in metrics.samples for value in sample.labels.values()}

    check = subprocess.run(
        ["promtool", "check", "metrics"],
        input=metrics.text,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_before_anything_has_happened(lab: Lab, need: Callable[..., None]) -> None:
    """Series that count from 0 are there from the start, so that a rate sees the first event."""
    balancer = lab.serve([lab.backend()])
    metrics = balancer.metrics()
    assert metrics.value("messages_total") == 0
    assert metrics.by("path", "datapath_messages_total") == {"kernel": 0, "userspace": 0}
    families = set(re.findall(rf"^# TYPE {PREFIX}(\S+) ", metrics.text, re.MULTILINE))
    assert families >= {name for name in METRICS if "duration" not in name} | {"message_duration_seconds"}


def test_the_document_has_what_a_scrape_has(lab: Lab) -> None:
    """Also the types: docs/METRICS.md is what dashboards and alarms are written from."""
    tree = lab.tree([lab.backend(), ("127.0.0.1", lab.here.reserve("127.0.0.1"))], ejection={})
    named = {"name": "n", "address": f"localhost:{lab.backend('n').endpoint[1]}"}
    tree["pools"][0]["backends"].append(named)
    balancer = lab.balancer(tree)
    eventually(lambda: balancer.metrics().value("backend_connect_failures_total") > 0)
    eventually(lambda: balancer.metrics().value("dns_addresses") > 0)
    metrics = balancer.metrics()
    kinds = dict(re.findall(rf"^# TYPE {PREFIX}(\S+) (\S+)", metrics.text, re.MULTILINE))

    assert labels(metrics) == metrics_document.labels()
    assert kinds == {family.name: family.kind for family in metrics_document.families()}


def test_durations(lab: Lab) -> None:
    """As the kernel measures them: about what the backend takes."""
    balancer = lab.serve([lab.backend("a", delay=0.02)])
    client = balancer.connect()
    for number in range(20):
        client.ask(message(number))
    metrics = balancer.metrics()
    assert metrics.value("message_duration_seconds_count") == 20
    assert metrics.value("message_duration_seconds_sum") >= 20 * 0.02
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in metrics.samples
        if sample.name == f"{PREFIX}message_duration_seconds_bucket"
    ]
    assert buckets == sorted(buckets)
    assert max(count for bound, count in buckets if bound <= 0.02) == 0
    assert buckets[-1] == (float("inf"), 20)


def test_status(lab: Lab) -> None:
    backends = [lab.backend("a"), lab.backend("b")]
    balancer = lab.serve(backends, weights=[1, 3])
    client = balancer.connect()
    client.ask(*(message(number) for number in range(8)))
    status = balancer.status()
    assert status["state"] == "serving"
    assert status["ready"]
    assert status["sockets"] == 3
    (listener,) = status["listeners"]
    assert (listener["name"], listener["pool"], listener["clients"]) == ("rpc", "workers", 1)
    (pool,) = status["pools"]
    assert [backend["weight"] for backend in pool["backends"]] == [1, 3]
    assert sum(backend["requests"] for backend in pool["backends"]) == 8
    assert sum(backend["responses"] for backend in pool["backends"]) == 8
    assert (listener["requests"], listener["responses"]) == (8, 8)
    assert 0 < listener["request_bytes"] < listener["response_bytes"]
    durations = [entry for backend in pool["backends"] for entry in backend["durations"]]
    assert sum(messages for _, _, messages in durations) == 8
    assert all(0 <= begin < end for begin, end, _ in durations)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/status"])
def test_changes_nothing_by_get_and_takes_no_post(lab: Lab, path: str) -> None:
    balancer = lab.serve([lab.backend()])
    assert balancer.get(path)[0] == 200
    assert balancer.get(path, method="POST")[0] == 405


def test_unknown_path(lab: Lab) -> None:
    assert lab.serve([lab.backend()]).get("/nothing")[0] == 404

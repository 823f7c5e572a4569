"""What is deployed for Prometheus and Grafana, with a real Prometheus that scrapes a balancer under load."""

import http.client
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.e2e.balancer import Balancer, dump, show
from tests.e2e.client import Client
from tests.e2e.conftest import need
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.namespaces import Endpoint, Namespace
from tests.e2e.polling import LIMIT, PATIENCE, eventually, eventually_equal
from tests.e2e.processes import ROOT, run

FOLDER = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads(
    (ROOT / "deploy" / "grafana" / "dashboards" / "sockmap-lb.json").read_text(encoding="utf-8")
)
SCRAPE = 0.5  # seconds
WINDOW = 5.0  # seconds, of every rate
CLIENTS = 4
RATE = 25.0  # messages a second and client
DELAY = 0.02  # seconds that a backend takes
BODY = 92  # bytes behind the header of 8
# What Grafana replaces.
VARIABLES = {"$__rate_interval": f"{WINDOW:.0f}s", "$__interval": f"{WINDOW:.0f}s"} | dict.fromkeys(
    ("$job", "$instance", "$pool"), ".*"
)

Sample = tuple[dict[str, str], float]


class Prometheus:
    """A server that scrapes one balancer, with the rules that are deployed."""

    def __init__(self, lab: Lab, target: Endpoint) -> None:
        folder = lab.folder / "prometheus"
        shutil.copytree(FOLDER, folder)
        path = folder / "prometheus.yml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings["global"] = dict.fromkeys(settings["global"], f"{SCRAPE * 1000:.0f}ms")
        (job,) = settings["scrape_configs"]
        job["static_configs"] = [{"targets": [show(target)]}]
        path.write_text(dump(settings), encoding="utf-8")
        self._where: Namespace = lab.here
        self._endpoint = "127.0.0.1", lab.here.reserve("127.0.0.1")
        listen = f"--web.listen-address={show(self._endpoint)}"
        places = (f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}")
        self._process = lab.start("prometheus", *places, listen, "--log.level=warn")
        eventually(self._is_ready, limit=3 * LIMIT, what="Prometheus is ready")

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        code, body = self._get(f"/api/v1/{path}?{urlencode(parameters)}")
        answer = json.loads(body)
        assert (code, answer["status"]) == (200, "success"), (path, parameters, answer)
        return answer["data"]

    def ask(self, query: str) -> list[Sample]:
        """The samples that a query has now, NaN left out: what Grafana could draw."""
        data = self.get("query", query=query)
        assert data["resultType"] == "vector", query
        samples = [(entry["metric"], float(entry["value"][1])) for entry in data["result"]]
        return [sample for sample in samples if sample[1] == sample[1]]

    def value(self, query: str) -> float:
        """Of a query for one number."""
        ((_, value),) = self.ask(query)
        return value

    def pending(self) -> list[str]:
        """Alerts whose condition holds."""
        return sorted(rule["name"] for rule in self._rules() if rule["state"] != "inactive")

    def broken_rules(self) -> list[tuple[str, str]]:
        """Rules that could not be evaluated, and why."""
        return [(rule["name"], rule.get("lastError", "")) for rule in self._rules() if rule["health"] != "ok"]

    def _rules(self) -> list[dict[str, Any]]:
        (group,) = self.get("rules")["groups"]
        assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in rules()]
        return list(group["rules"])

    def _is_ready(self) -> bool:
        assert self._process.running, self._process.stderr.text
        try:
            return self._get("/-/ready")[0] == 200
        except ConnectionRefusedError:
            return False

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self._endpoint)
        connection.sock = self._where.connect(self._endpoint)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def ask_in_step(client: Client, stop: threading.Event, errors: list[Exception]) -> None:
    """Ask at a steady rate; what a busy machine delays is made good."""
    due = time.monotonic()
    number = 0
    try:
        while not stop.wait(max(0.0, due - time.monotonic())):
            client.ask(message(number, bytes(BODY)))
            number += 1
            due += 1 / RATE
    except (OSError, AssertionError) as error:
        errors.append(error)


@contextmanager
def load(balancer: Balancer) -> Iterator[None]:
    """Messages at ``CLIENTS * RATE`` a second."""
    stop = threading.Event()
    errors: list[Exception] = []
    threads = [
        threading.Thread(target=ask_in_step, args=(balancer.connect(), stop, errors)) for _ in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT)
    assert not errors, errors


def resolved(expression: str) -> str:
    """As Grafana sends it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def queries() -> Iterator[tuple[str, str]]:
    """Title and expression of everything that the dashboard asks."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], resolved(target["expr"])


def title(name: str) -> str:
    """The first query of a panel."""
    return next(query for panel, query in queries() if panel == name)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    entries: list[dict[str, Any]] = group["rules"]
    return entries


@pytest.mark.timeout(240 * PATIENCE)
def test_dashboard_and_rules_under_load(lab: Lab) -> None:
    need("prometheus")
    backends = [lab.backend(name, delay=DELAY) for name in "ab"]
    down = "127.0.0.1", lab.here.reserve("127.0.0.1")
    tree = lab.tree([*backends, down], balance="round_robin")
    # One place more than the load takes, for the client with the malformed message.
    tree["listeners"][0]["limits"] = {"max_clients": CLIENTS + 1}
    balancer = lab.balancer(tree)
    eventually(lambda: balancer.metrics().value("backend_up") == 2)
    prometheus = Prometheus(lab, balancer.admin)
    with load(balancer):
        clients = f"sockmap_lb_client_connections[{WINDOW:.0f}s]"
        scrapes = int(WINDOW / SCRAPE) - 1
        enough = f"min_over_time({clients}) == {CLIENTS} and count_over_time({clients}) >= {scrapes}"
        eventually(lambda: prometheus.ask(enough), limit=6 * LIMIT, what="a window full of scrapes")
        malformed = balancer.connect()
        for _ in range(3):
            assert balancer.turns_away()
        malformed.send(b"\xff" * 8)
        assert malformed.is_reset()
        refused = 'rate(sockmap_lb_refused_connections_total{reason="max_clients"}[5s]) > 0'
        eventually(lambda: prometheus.ask(refused), what="a scrape of what has just happened")
        eventually(lambda: prometheus.ask("rate(sockmap_lb_protocol_errors_total[5s]) > 0"))

        answers = {(panel, query): prometheus.ask(query) for panel, query in queries()}
        assert not [asked for asked, samples in answers.items() if not samples]

        # Right, too: the load is known.
        total = CLIENTS * RATE
        assert prometheus.value(title("Messages a second")) == pytest.approx(total, rel=0.2)
        shares = {labels["backend"]: value for labels, value in prometheus.ask(title("Requests by backend"))}
        assert shares == {
            "a": pytest.approx(total / 2, rel=0.25),
            "b": pytest.approx(total / 2, rel=0.25),
            "c": 0,
        }
        ratio = (
            f'sum(rate(sockmap_lb_bytes_total{{direction="request"}}[{WINDOW:.0f}s]))'
            f" / sum(rate(sockmap_lb_messages_total[{WINDOW:.0f}s]))"
        )
        assert prometheus.value(ratio) == pytest.approx(8 + BODY, rel=1e-6)
        quantiles = [prometheus.value(query) for panel, query in queries() if panel == "Latency"]
        assert DELAY * 0.8 < quantiles[0] <= quantiles[1] <= quantiles[2] < LIMIT
        assert prometheus.value(title("Backends down")) == 1
        assert prometheus.value(title("Clients")) == CLIENTS
        assert prometheus.value(title("Through user space")) == 0
        assert prometheus.value(title("Last reload")) == 1

        # The variables find what there is to choose.
        for variable in DASHBOARD["templating"]["list"]:
            if found := re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", "")):
                match, label = resolved(found[1]), found[2]
                assert prometheus.get(f"label/{label}/values", **{"match[]": match}), variable["name"]

        # Each rule asks for what exists, is evaluated without an error, and sees what is wrong here.
        for name in set(re.findall(r"sockmap_lb_\w+", " ".join(rule["expr"] for rule in rules()))):
            assert prometheus.ask(f"count({name})"), name
        wrong = ["SockmapLbBackendDown", "SockmapLbProtocolErrors", "SockmapLbRefusedConnections"]
        eventually_equal(prometheus.pending, wrong)
        assert prometheus.broken_rules() == []


@pytest.mark.parametrize(
    "arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts.test.yml")], ids=" ".join
)
def test_promtool(arguments: tuple[str, ...]) -> None:
    need("promtool")
    done = run(["promtool", *arguments[:2], str(FOLDER / arguments[2])])
    assert done.code == 0, done.out + done.err


def test_each_alert_is_tested_both_ways() -> None:
    tests = yaml.safe_load((FOLDER / "alerts.test.yml").read_text(encoding="utf-8"))["tests"]
    asked = {
        (case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]
    }
    assert asked == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


def test_no_panel_covers_another() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24, "Grafana's columns"


def test_grafana_finds_the_dashboard() -> None:
    """The folder that the provider reads is where docker-compose.yml puts the dashboard."""
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "sockmap-lb.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = mounts_of(services["grafana"])
    assert list(mounts[provider["options"]["path"]].glob("*.json"))
    assert mounts["/etc/grafana/provisioning"] == provisioning
    assert source["url"] == "http://prometheus:9090"
    assert (mounts_of(services["prometheus"])["/etc/prometheus"] / "prometheus.yml").is_file()


def mounts_of(service: dict[str, Any]) -> dict[str, Path]:
    """Folders of this repository by where they are mounted."""
    mounts = (volume.split(":") for volume in service["volumes"])
    return {target: ROOT / here for here, target, *_ in mounts}

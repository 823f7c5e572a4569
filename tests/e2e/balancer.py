"""The program under test: started from a configuration, asked over HTTP, stopped by a signal."""

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, cast

import yaml
from prometheus_client.parser import text_string_to_metric_families

from lb.config import parse
from lb.framing import Framing
from lb.status import ServerStatus
from tests import metrics_document
from tests.e2e.client import Client
from tests.e2e.namespaces import Endpoint, Namespace
from tests.e2e.polling import PATIENCE, eventually, eventually_equal
from tests.e2e.processes import SOCKMAP_LB, Process

Tree = dict[str, Any]
PREFIX = "sockmap_lb_"
# What no log of a healthy balancer has.
_WRONG = re.compile(r"Traceback|because of a bug| ERROR | CRITICAL |never awaited|never retrieved")
_START = 30.0 * PATIENCE  # seconds: the imports of Python alone take several on a busy machine
_SLACK = 10.0 * PATIENCE  # seconds between the end of the drain and that of the process, on a busy machine


def configuration(
    backends: Sequence[Endpoint],
    *,
    address: str = "127.0.0.1:0",
    protocol: str = "length-prefixed",
    protocols: Tree | None = None,
    weights: Sequence[int] = (),
    runtime: Tree | None = None,
    timeouts: Tree | None = None,
    **pool: object,
) -> Tree:
    """One listener ``rpc``, one pool ``workers`` with the backends ``a``, ``b``, ``c``, ..."""
    return {
        "admin": {"address": "127.0.0.1:0"},
        "runtime": {"max_connections": 1024} | (runtime or {}),
        "protocols": protocols or {},
        "listeners": [{"name": "rpc", "address": address, "protocol": protocol, "pool": "workers"}],
        "pools": [
            {
                "name": "workers",
                "backends": [
                    {"name": name, "address": show(endpoint), "weight": weight}
                    for name, endpoint, weight in zip(
                        "abcdefgh", backends, weights or [1] * len(backends), strict=False
                    )
                ],
                "timeouts": {"drain": "5s"} | (timeouts or {}),
                **pool,
            }
        ],
    }


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def dump(tree: Tree) -> str:
    """As YAML without aliases."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def show(endpoint: Endpoint) -> str:
    """As in the configuration."""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_endpoint(text: str) -> Endpoint:
    """As in the log."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def framing_of(tree: Tree) -> Framing:
    """The framing of the first listener."""
    return parse(dump(tree), "test").listeners[0].framing


@dataclass(frozen=True, slots=True)
class Ended:
    """How the balancer ended."""

    code: int
    log: str
    seconds: float


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]
        for sample in self.samples:  # of every test: what happens is in docs/METRICS.md
            if sample.name.startswith(PREFIX) and "reason" in sample.labels:
                assert metrics_document.has_reason(
                    sample.name.removeprefix(PREFIX), sample.labels["reason"]
                ), f"add a row to docs/METRICS.md: {sample}"

    def value(self, name: str, **labels: str) -> float:
        """The sum over the samples of this name that have these labels; 0 if there is none."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
        )

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The values of a metric by one of its labels."""
        names = {sample.labels[label] for sample in self.samples if sample.name == PREFIX + name}
        return {value: self.value(name, **labels, **{label: value}) for value in sorted(names)}

    def seen(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The values of a metric by one of its labels, but for those that are 0."""
        return {value: amount for value, amount in self.by(label, name, **labels).items() if amount}


class Balancer:
    """A balancer that listens. Closing it is a test of its own: see :meth:`close`.

    ``launch`` starts the program with a configuration file in another way than from this checkout.
    """

    def __init__(
        self, where: Namespace, tree: Tree, folder: Path, launch: Callable[[Path], Process] | None = None
    ) -> None:
        self.path = path = folder / "balancer.yaml"
        path.write_text(dump(tree), encoding="utf-8")
        self.where = where
        self.tree = tree
        self._framings = {entry.name: entry.framing for entry in parse(dump(tree), "test").listeners}
        self.framing = self._framings[tree["listeners"][0]["name"]]
        self.listeners: dict[str, Endpoint] = {}
        self.clients: list[Client] = []
        self._ended: Ended | None = None
        self._drain = max(_seconds(pool["timeouts"]["drain"]) for pool in tree["pools"])
        self.process = launch(path) if launch else Process([*SOCKMAP_LB, "run", "-c", str(path)], where)
        try:
            for listener in tree["listeners"]:
                found = self._started(rf" listener {listener['name']}: (\S+),")
                self.listeners[listener["name"]] = read_endpoint(found)
            self.admin = read_endpoint(self._started(r" admin: http://(\S+)"))
        except BaseException:
            self.process.close()
            raise

    def _started(self, pattern: str) -> str:
        return self.process.stderr.wait_for(pattern, limit=_START)[1]

    @property
    def pid(self) -> int:
        """Of the one process."""
        return self.process.pid

    @property
    def log(self) -> str:
        """So far."""
        return self.process.stderr.text

    def connect(self, listener: str = "rpc", where: Namespace | None = None) -> Client:
        """A client; it is closed before the balancer is."""
        sock = (where or self.where).connect(self.listeners[listener])
        client = Client(sock, self._framings[listener])
        self.clients.append(client)
        return client

    def connect_while_it_stands_still(self, *messages: bytes, listener: str = "rpc") -> Client:
        """A client that has sent all this and FIN before it is accepted."""
        with self.standing_still():
            client = self.connect(listener)
            client.send(*messages)
            client.half_close()
        return client

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stops the process meanwhile; the kernel goes on."""
        self.process.signal(Signals.SIGSTOP)
        try:
            eventually_equal(self._thread_states, {"T"})
            yield
        finally:
            self.process.signal(Signals.SIGCONT)

    def _thread_states(self) -> set[str]:
        stats = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return {stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] for stat in stats}

    def turns_away(self, listener: str = "rpc") -> bool:
        """Whether a new client is reset before it has said a word."""
        try:
            return self.connect(listener).is_reset()
        except ConnectionResetError:  # it was faster than the return of connect()
            return True

    def get(
        self,
        path: str,
        *,
        method: str = "GET",
        body: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Status and body of what the admin address answers; its side of the connection is closed then."""
        connection = http.client.HTTPConnection(*self.admin)
        connection.sock = self.where.connect(self.admin)
        with connection.sock.dup() as other:
            try:
                connection.request(method, path, body, {"Connection": "close"} | (headers or {}))
                answer = connection.getresponse()
                code, text = answer.status, answer.read().decode()
            finally:
                connection.close()
            assert other.recv(1) == b""
        return code, text

    def post(self, path: str, body: object = None) -> Tree:
        """What it answers to a change that it makes."""
        code, text = self.get(path, method="POST", body=None if body is None else json.dumps(body))
        assert code == 200, text
        return cast("Tree", json.loads(text))

    def metrics(self) -> Metrics:
        """A scrape."""
        code, text = self.get("/metrics")
        assert code == 200, text
        return Metrics(text)

    def status(self) -> ServerStatus:
        """What ``/status`` says."""
        code, text = self.get("/status")
        assert code == 200, text
        return cast("ServerStatus", json.loads(text))

    def rewrite(self, tree: Tree | str) -> None:
        """Another configuration file, as a whole, in the place of the one that is there."""
        new = self.path.with_suffix(".new")
        new.write_text(tree if isinstance(tree, str) else dump(tree), encoding="utf-8")
        new.rename(self.path)
        if isinstance(tree, dict):
            self.tree = tree

    def reload(self, tree: Tree | str) -> tuple[int, Tree]:
        """Rewrite the file, and reload it: code and answer. Listeners that came are known afterwards."""
        self.rewrite(tree)
        code, text = self.get("/reload", method="POST")
        if code == 200 and isinstance(tree, dict):
            self._framings = {entry.name: entry.framing for entry in parse(dump(tree), "test").listeners}
            self.listeners = {
                entry["name"]: read_endpoint(entry["address"]) for entry in self.status()["listeners"]
            }
        return code, json.loads(text)

    def wait_ready(self) -> "Balancer":
        """Wait until every backend is up, which is more than ``/readyz`` asks."""
        backends = sum(len(pool.get("backends", ())) for pool in self.tree["pools"])
        eventually(lambda: self.metrics().value("backend_up") == backends, what="every backend is up")
        assert self.get("/readyz") == (200, "ready\n")
        return self

    def stop(self, number: Signals = Signals.SIGTERM) -> Ended:
        """Send a signal and wait for the end, which a drain may delay."""
        self.process.signal(number)
        return self.wait()

    def wait(self) -> Ended:
        """Wait for the end."""
        since = time.monotonic()
        code = self.process.wait(self._drain + _SLACK)
        self._ended = Ended(code, self.log, time.monotonic() - since)
        return self._ended

    def close_clients(self) -> None:
        """Close those that the test left open."""
        for client in self.clients:
            client.close()
        self.clients.clear()

    def close(self) -> None:
        """Close the clients, drain, and fail if the balancer did not end well or logged a bug."""
        self.close_clients()
        try:
            ended = self._ended or self.stop()
        finally:
            self.process.close()
        assert ended.code == 0, f"exit code {ended.code}:\n{ended.log}"
        assert not _WRONG.search(ended.log), ended.log


def _seconds(duration: str) -> float:
    return float(duration[:-2]) / 1e3 if duration.endswith("ms") else float(duration[:-1])

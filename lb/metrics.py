"""The metrics of the contract, read from the kernel's counters at each scrape."""

import os
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

import lb
from lb import abi
from lb.backends import Backend, Health
from lb.dataplane import Durations, bucket_limit
from lb.libbpf import libbpf_version
from lb.server import Server
from lb.server.context import Pool
from lb.server.reload import Reloader

_PREFIX = "sockmap_lb_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The kernel counts four buckets for each power of two; a scrape shows the powers from 16 us to 67 s.
_BOUNDS = tuple(
    index for index in range(abi.BUCKETS - 8) if index % 4 == 3 and 16e-6 <= bucket_limit(index) < 70
)


class Metrics:
    """The exposition of one server."""

    def __init__(self, server: Server, reloader: Reloader) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_ServerCollector(server, reloader))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def render(self) -> bytes:
        """The text of a scrape, of content type :data:`CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _ServerCollector(Collector):
    def __init__(self, server: Server, reloader: Reloader) -> None:
        self._server = server
        self._reloader = reloader

    def collect(self) -> Iterator[Metric]:
        yield from self._messages()
        yield from self._losses()
        yield from self._clients()
        yield from self._backends()
        yield from self._durations()
        yield from self._process()

    def _messages(self) -> Iterator[Metric]:
        labels = ("listener", "pool", "backend")
        requests = _counter("messages", "Requests sent to a backend.", labels)
        responses = _counter("responses", "Responses sent to clients.", labels)
        size = _counter("bytes", "Bytes of messages sent on.", (*labels, "direction"))
        path = _counter("datapath_messages", "Messages by who carried them.", ("path",))
        everything, userspace = self._server.departed.all, self._server.departed.relayed
        for listening, backend in self._server.departing():
            row = self._server.traffic(listening, backend)
            everything += row.requests + row.responses
            userspace += listening.carried(backend)
        for listening in self._server.listenings:
            for backend in (backend for pool in listening.pools for backend in pool.backends):
                row = self._server.traffic(listening, backend)
                everything += row.requests + row.responses
                where = (listening.config.name, backend.pool, backend.name)
                requests.add_metric(where, row.requests)
                responses.add_metric(where, row.responses)
                size.add_metric((*where, "request"), row.request_bytes)
                size.add_metric((*where, "response"), row.response_bytes)
                userspace += listening.carried(backend)
        userspace += self._server.plane.counters.messages(abi.Counter.FORWARDED)
        path.add_metric(("kernel",), everything - userspace)
        for passed in (abi.Counter.PASSED_NO_UPSTREAM, abi.Counter.PASSED_NO_FLIGHT):
            userspace += self._server.plane.counters.messages(passed)
        path.add_metric(("userspace",), userspace)
        yield from (requests, responses, size, path)

    def _losses(self) -> Iterator[Metric]:
        dropped = _counter("dropped_messages", "Messages that were not delivered.", ("reason",))
        for reason, messages in self._server.dropped_messages().items():
            dropped.add_metric((reason,), messages)
        yield dropped
        refusals = _counter("refusals", "Dropped messages that the protocol's refusal answered.", ())
        refusals.add_metric((), self._server.refusals())
        yield refusals
        pauses = _counter("pauses", "Times that a connection was stopped in front of a message.", ("reason",))
        for name, counter in abi.Counter.__members__.items():
            if name.startswith("PAUSES_"):
                reason = name.removeprefix("PAUSES_").lower()
                pauses.add_metric((reason,), self._server.plane.counters.messages(counter))
        yield pauses

    def _clients(self) -> Iterator[Metric]:
        now = _gauge("client_connections", "Clients that are connected.", ("listener",))
        total = _counter("client_connections", "Clients that were accepted.", ("listener",))
        refused = _counter("refused_connections", "Clients that were turned away.", ("listener", "reason"))
        errors = _counter(
            "protocol_errors", "Connections closed because of a malformed message.", ("listener", "reason")
        )
        for listening in self._server.listenings:
            name = listening.config.name
            now.add_metric((name,), self._server.client_count(name))
            total.add_metric((name,), listening.accepted)
            for reason, count in listening.refused.items():
                refused.add_metric((name, reason), count)
            for reason, count in listening.protocol_errors.items():
                errors.add_metric((name, reason), count)
        for pool in self._server.pools:
            if pool.workers is not None:  # a pool's own door, told from listeners by what no name can hold
                for reason, count in pool.workers.refused.items():
                    refused.add_metric((f"{pool.config.name}/accept", reason), count)
        yield from (now, total, refused, errors)

    def _backends(self) -> Iterator[Metric]:
        labels = ("pool", "backend")
        up = _gauge("backend_up", "Whether the backend works, as far as is known.", labels)
        weight = _gauge("backend_weight", "Effective weight; 0: no new messages.", labels)
        connections = _gauge("backend_connections", "Connections to the backend.", labels)
        outstanding = _gauge("backend_outstanding_messages", "Requests without a response yet.", labels)
        failures = _counter(
            "backend_connect_failures", "Connections that could not be made.", (*labels, "reason")
        )
        changes = _counter(
            "backend_health_changes", "Times that a backend's health changed.", (*labels, "to", "reason")
        )
        checks = _counter("backend_checks", "Health checks by how they ended.", (*labels, "result"))
        ejected = _gauge("backend_ejected", "Whether the backend gets no messages for a while.", labels)
        ejections = _counter(
            "backend_ejections", "Ejections by the reason of the last failure.", (*labels, "reason")
        )
        errors = _counter("backend_error_responses", "Responses that were errors, where these count.", labels)
        for backend in self._all_backends():
            where = (backend.pool, backend.name)
            up.add_metric(where, backend.health is Health.UP)
            for (to, reason), count in backend.changes.items():
                changes.add_metric((*where, to, reason), count)
            for result, count in backend.checks.items():
                checks.add_metric((*where, result), count)
            ejected.add_metric(where, backend.ejected)
            for reason, count in backend.ejections.items():
                ejections.add_metric((*where, reason), count)
            counted = self._server.plane.answers(backend.index).errors
            errors.add_metric(where, counted - backend.errors_before if backend.witness else 0)
            weight.add_metric(where, backend.effective_weight)
            connections.add_metric(where, backend.connections)
            outstanding.add_metric(where, self._server.plane.outstanding(backend.index))
            for reason, count in backend.connect_failures.items():
                failures.add_metric((*where, reason), count)
        yield from (up, weight, connections, outstanding, failures, changes, checks)
        yield from (ejected, ejections, errors)
        yield from self._names()

    def _names(self) -> Iterator[Metric]:
        lookups = _counter("dns_lookups", "Looks at a name, by result.", ("pool", "backend", "result"))
        addresses = _gauge("dns_addresses", "Backends that a name stands for.", ("pool", "backend"))
        for pool in self._pools():
            for followed in pool.members.names.followed:
                where = (pool.config.name, followed.name.name)
                addresses.add_metric(where, len(followed.backends))
                for result, count in followed.lookups.items():
                    lookups.add_metric((*where, result), count)
        yield from (lookups, addresses)

    def _durations(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            _PREFIX + "message_duration_seconds",
            "From a request's redirect to its response's, measured in the kernel.",
            labels=("pool", "backend"),
        )
        for backend in self._all_backends():
            durations = self._server.plane.counters.durations(backend.index)
            family.add_metric((backend.pool, backend.name), list(_buckets(durations)), durations.sum)
        yield family

    def _process(self) -> Iterator[Metric]:
        yield _gauge(
            "buffered_bytes", "Bytes redirected to sockets and not yet in their send queue.", ()
        ).add(self._server.buffered_bytes())
        yield _gauge(
            "config_last_reload_successful", "Whether the configuration in use is the last one read.", ()
        ).add(self._reloader.successful)
        yield _gauge(
            "config_last_reload_success_timestamp_seconds", "When the configuration in use was read.", ()
        ).add(self._reloader.succeeded_at)
        build = _gauge("build_info", "What is running.", ("version", "kernel", "libbpf"))
        build.add_metric((lb.__version__, os.uname().release, libbpf_version()), 1)
        yield build

    def _all_backends(self) -> Iterable[Backend]:
        return (backend for pool in self._pools() for backend in pool.backends)

    def _pools(self) -> list[Pool]:
        return self._server.pools


class _Gauge(GaugeMetricFamily):
    def add(self, value: float) -> "_Gauge":
        self.add_metric((), value)
        return self


def _counter(name: str, text: str, labels: tuple[str, ...]) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, labels=labels)


def _gauge(name: str, text: str, labels: tuple[str, ...]) -> _Gauge:
    return _Gauge(_PREFIX + name, text, labels=labels)


def _buckets(durations: Durations) -> Iterator[tuple[str, float]]:
    counted = total = 0
    for bound in _BOUNDS:
        total += sum(durations.buckets[counted : bound + 1])
        counted = bound + 1
        yield repr(bucket_limit(bound)), total
    yield "+Inf", sum(durations.buckets)

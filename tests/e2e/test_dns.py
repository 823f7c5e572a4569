"""Unmodified DNS programs: dnsperf, kdig and dnspython through the balancer to three ``nsd``."""

import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from tests.e2e import nameserver
from tests.e2e.balancer import Balancer, configuration
from tests.e2e.lab import Lab
from tests.e2e.namespaces import Namespace, join
from tests.e2e.polling import LIMIT

QUERIES = 3000


@dataclass(frozen=True, slots=True)
class Site:
    """Clients, balancer and servers, each in a network of its own: client | balancer | backends."""

    lab: Lab
    clients: Namespace
    backends: Namespace
    balancer: Balancer

    def endpoint(self, listener: str) -> tuple[str, int]:
        """Where clients reach a listener."""
        host = {"rpc": "10.1.0.2", "ipv6": "fd00:1::2"}[listener]
        return host, self.balancer.listeners[listener][1]

    def connect(self, listener: str) -> socket.socket:
        return self.clients.connect(self.endpoint(listener))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Iterator[Site]:
    need("nsd", "dnsperf", "kdig")
    with ExitStack() as stack:
        lab = Lab(tmp_path_factory.mktemp("dns"), stack)
        clients, middle, backends = lab.namespace("client"), lab.here, lab.namespace("backend")
        join(clients, middle, 1)
        join(middle, backends, 2)
        hosts = ["10.2.0.2", "10.2.0.3", "fd00:2::2"]
        backends.add_address("10.2.0.3/24", "to-l2")
        for host in hosts:
            nameserver.start(lab, backends, host)
        tree = configuration([(host, 53) for host in hosts], address="0.0.0.0:0", protocol="dns")
        tree["listeners"].append({"name": "ipv6", "address": "[::]:0", "protocol": "dns"})
        balancer = lab.balancer(tree, where=middle).wait_ready()
        yield Site(lab, clients, backends, balancer)


def per_backend(site: Site, listener: str) -> Counter[str]:
    return Counter(
        {
            name: int(count)
            for name, count in site.balancer.metrics()
            .by("backend", "responses_total", listener=listener)
            .items()
        }
    )


LISTENERS = pytest.mark.parametrize("listener", ["rpc", "ipv6"])


@LISTENERS
def test_dnsperf(site: Site, listener: str, tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    lines = [f"{nameserver.name(i)} {'TXT' if i % 2 else 'A'}" for i in range(QUERIES)]
    queries.write_text("\n".join(lines) + "\n", encoding="ascii")
    host, port = site.endpoint(listener)
    before = per_backend(site, listener)
    done = site.lab.run(
        "dnsperf", "-m", "tcp", "-s", host, "-p", str(port), "-d", str(queries),
        "-n", "3", "-c", "20", "-q", "200", "-t", f"{LIMIT:g}", where=site.clients
    )  # fmt: skip
    assert done.code == 0, done.err
    report = dict(re.findall(r"^ +([\w ()]+): +(\S.*)$", done.out, re.MULTILINE))
    assert report["Queries sent"] == str(3 * QUERIES), done.out
    assert report["Queries completed"].split()[0] == str(3 * QUERIES), done.out
    assert report["Queries lost"].split()[0] == "0"
    assert report["Response codes"] == f"NOERROR {3 * QUERIES} (100.00%)"
    answered = per_backend(site, listener) - before
    assert answered.total() == 3 * QUERIES
    assert set(answered) == {"a", "b", "c"}
    assert site.balancer.metrics().value("datapath_messages_total", path="userspace") == 0
    assert site.balancer.metrics().value("dropped_messages_total") == 0


@LISTENERS
def test_one_connection_with_many_queries(site: Site, listener: str) -> None:
    """Every answer is that of its question, and all three servers worked for the one client."""
    before = per_backend(site, listener)
    queries = {}
    for number in range(QUERIES):
        kind = dns.rdatatype.TXT if number % 2 else dns.rdatatype.A
        queries[number] = dns.message.make_query(nameserver.name(number), kind, id=number)
    with site.connect(listener) as sock:
        answers: dict[int, dns.message.Message] = {}
        for number, query in queries.items():
            dns.query.send_tcp(sock, query)
            while number - len(answers) > 500:
                take(sock, answers)
        while len(answers) < QUERIES:
            take(sock, answers)
    for number, answer in answers.items():
        assert queries[number].is_response(answer)
        assert answer.rcode() == dns.rcode.NOERROR
        assert answer.flags & dns.flags.AA
        (records,) = answer.answer
        (record,) = records
        assert records.name.to_text() == nameserver.name(number)
        if number % 2:
            assert b"".join(record.strings).decode() == nameserver.text(number)
        else:
            assert record.address == nameserver.address(number)
    answered = per_backend(site, listener) - before
    assert answered.total() == QUERIES
    assert set(answered) == {"a", "b", "c"}


def take(sock: socket.socket, answers: dict[int, dns.message.Message]) -> None:
    answer, _ = dns.query.receive_tcp(sock, one_rr_per_rrset=False)
    assert answer.id not in answers
    answers[answer.id] = answer


@LISTENERS
def test_kdig(site: Site, listener: str) -> None:
    host, port = site.endpoint(listener)
    done = site.lab.run(
        "kdig", "+tcp", "+short", f"@{host}", "-p", str(port), nameserver.name(7), "TXT", where=site.clients
    )
    assert (done.code, done.out) == (0, f'"{nameserver.text(7)}"')


def test_kdig_that_keeps_the_connection_open(site: Site) -> None:
    before = site.balancer.metrics().value("client_connections_total", listener="rpc")
    host, port = site.endpoint("rpc")
    numbers = range(100, 120)
    questions = [argument for number in numbers for argument in (nameserver.name(number), "A")]
    done = site.lab.run(
        "kdig", "+tcp", "+keepopen", "+short", f"@{host}", "-p", str(port), *questions, where=site.clients
    )
    assert done.code == 0
    assert done.out.split() == [nameserver.address(number) for number in numbers]
    after = site.balancer.metrics().value("client_connections_total", listener="rpc")
    assert after == before + 1


def test_unknown_name(site: Site) -> None:
    query = dns.message.make_query(f"nothing.{nameserver.ZONE}", "A")
    with site.connect("rpc") as sock:
        answer = dns.query.tcp(query, "", timeout=LIMIT, sock=sock)
    assert answer.rcode() == dns.rcode.NXDOMAIN


def test_zone_transfer(site: Site) -> None:
    """Many responses to one request: all of them come back."""
    with site.connect("rpc") as sock:
        dns.query.send_tcp(sock, dns.message.make_query(nameserver.ZONE, "AXFR"))
        records = 0
        ends = 0
        while ends < 2:
            answer, _ = dns.query.receive_tcp(sock)
            assert answer.rcode() in (dns.rcode.NOERROR, dns.rcode.REFUSED)
            if answer.rcode() is dns.rcode.REFUSED:
                pytest.fail("the servers do not give the zone away")
            for group in answer.answer:
                records += len(group)
                ends += group.rdtype is dns.rdatatype.SOA
    assert records == 2 * nameserver.NAMES + 4

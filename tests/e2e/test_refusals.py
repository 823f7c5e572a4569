"""DNS queries that are denied: each is answered by REFUSED. Unmodified ``nsd`` behind the balancer."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from lb.framing import PRESETS
from tests.e2e import nameserver
from tests.e2e.balancer import Balancer, Tree, configuration
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.namespaces import join
from tests.e2e.polling import eventually, eventually_equal

HOST = "10.2.0.2"
COUNT = 2000
RATE = {"messages_per_second": 100, "burst": 50, "over": "deny"}


@dataclass(frozen=True, slots=True)
class Site:
    """A network with a balancer, and one with a server."""

    lab: Lab

    def balancer(self, limits: Tree | None = None, **pool: Any) -> Balancer:
        tree = configuration([(HOST, 53)], protocol="dns", **pool)
        tree["listeners"][0]["limits"] = limits or {}
        return self.lab.balancer(tree).wait_ready()

    def connect(self, balancer: Balancer) -> socket.socket:
        return self.lab.here.connect(balancer.listeners["rpc"])


@pytest.fixture
def site(lab: Lab, need: Callable[..., None]) -> Site:
    need("nsd")
    backends = lab.namespace("backend")
    join(lab.here, backends, 2)
    nameserver.start(lab, backends, HOST)
    return Site(lab)


SHARING = pytest.mark.parametrize("connections", ["per_client", "shared"])


def query(number: int, kind: str = "A") -> dns.message.Message:
    return dns.message.make_query(nameserver.name(number), kind, id=number)


def take(sock: socket.socket, answers: dict[int, dns.message.Message], count: int) -> None:
    """The next answers."""
    for _ in range(count):
        answer, _ = dns.query.receive_tcp(sock)
        assert answer.id not in answers
        answers[answer.id] = answer


def dropped(balancer: Balancer) -> dict[str, float]:
    return balancer.metrics().seen("reason", "dropped_messages_total")


@SHARING
@pytest.mark.parametrize("limit", ["rate", "rate_per_address"])
def test_what_is_over_a_rate_is_refused(site: Site, connections: str, limit: str) -> None:
    """Every query has one answer, of its own: from the server, or REFUSED."""
    started = time.monotonic()
    balancer = site.balancer({limit: RATE}, connections=connections)
    queries: dict[int, dns.message.Message] = {}
    answers: dict[int, dns.message.Message] = {}
    with site.connect(balancer) as sock:
        for first in range(0, COUNT, 100):
            batch = {number: query(number) for number in range(first, first + 100)}
            queries |= batch
            wire = [asked.to_wire() for asked in batch.values()]
            sock.sendall(b"".join(len(data).to_bytes(2, "big") + data for data in wire))
            take(sock, answers, len(batch))
    most = RATE["burst"] + RATE["messages_per_second"] * (time.monotonic() - started) + 1  # type: ignore[operator]

    assert sorted(answers) == list(range(COUNT))
    codes = Counter(answer.rcode() for answer in answers.values())
    assert set(codes) == {dns.rcode.NOERROR, dns.rcode.REFUSED}
    assert 50 <= codes[dns.rcode.NOERROR] <= most
    for number, answer in answers.items():
        assert queries[number].is_response(answer)
        if answer.rcode() == dns.rcode.REFUSED:
            assert not answer.answer
            assert not answer.flags & dns.flags.AA
        else:
            assert answer.answer[0][0].address == nameserver.address(number)
    metrics = balancer.metrics()
    assert dropped(balancer) == {"rate_limited": codes[dns.rcode.REFUSED]}
    assert metrics.value("refusals_total") == codes[dns.rcode.REFUSED]
    assert metrics.value("messages_total") == metrics.value("responses_total") == codes[dns.rcode.NOERROR]
    assert metrics.value("backend_outstanding_messages") == 0
    assert metrics.value("datapath_messages_total", path="userspace") == 0


@SHARING
def test_who_does_not_read_refusals_gets_all_of_them_later(site: Site, connections: str) -> None:
    balancer = site.balancer(
        {"rate": {"messages_per_second": 1, "burst": 1, "over": "deny"}},
        connections=connections,
        runtime={"buffer_budget": "64KiB"},
    )
    with site.connect(balancer) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        wire = query(1).to_wire() + bytes(8000)  # nobody looks behind the question
        one = len(wire).to_bytes(2, "big") + wire
        sender = threading.Thread(target=sock.sendall, args=(one * COUNT,))
        sender.start()
        eventually(lambda: balancer.metrics().value("pauses_total", reason="full") > 0)
        replies = Client(sock, PRESETS["dns"]).answers(COUNT)
        sender.join()
    codes = Counter(dns.rcode.Rcode(reply[5] & 0xF) for reply in replies)
    assert dropped(balancer) == {"rate_limited": codes[dns.rcode.REFUSED]}
    assert codes[dns.rcode.REFUSED] >= COUNT - 30
    assert balancer.metrics().value("buffered_bytes") == 0


def test_one_that_half_closes_before_it_is_served_is_refused_too(site: Site) -> None:
    balancer = site.balancer({"rate": {"messages_per_second": 1, "burst": 5, "over": "deny"}})
    wire = [query(number).to_wire() for number in range(30)]
    sent = [len(data).to_bytes(2, "big") + data for data in wire]
    client = balancer.connect_while_it_stands_still(*sent)
    replies = [dns.message.from_wire(reply[2:]) for reply in client.answers_to_the_end()]
    assert sorted(reply.id for reply in replies) == list(range(30))
    refused = sum(reply.rcode() == dns.rcode.REFUSED for reply in replies)
    assert 20 <= refused <= 25
    assert dropped(balancer) == {"rate_limited": refused}
    assert balancer.metrics().value("refusals_total") == refused


@pytest.mark.parametrize("kind", ["AXFR", "IXFR"])
def test_shared_connections_refuse_transfers(site: Site, kind: str) -> None:
    balancer = site.balancer(connections="shared")
    with site.connect(balancer) as sock:
        for turn in range(10):
            asked = dns.message.make_query(nameserver.ZONE, kind, id=turn)
            if kind == "IXFR":
                asked.authority.append(
                    dns.rrset.from_text(nameserver.ZONE, 0, "IN", "SOA", "a. b. 0 1 1 1 1")
                )
            wire = [message.to_wire() for message in (query(100 + turn), asked, query(200 + turn))]
            sock.sendall(b"".join(len(data).to_bytes(2, "big") + data for data in wire))
            answers: dict[int, dns.message.Message] = {}
            take(sock, answers, 3)
            assert {number: answer.rcode() for number, answer in answers.items()} == {
                100 + turn: dns.rcode.NOERROR,
                turn: dns.rcode.REFUSED,
                200 + turn: dns.rcode.NOERROR,
            }
            assert asked.is_response(answers[turn])
    assert dropped(balancer) == {"transfer": 10}
    assert balancer.metrics().value("refusals_total") == 10
    eventually_equal(lambda: balancer.metrics().value("backend_outstanding_messages"), 0)


def test_a_clients_own_connections_carry_transfers(site: Site) -> None:
    """The whole zone, while others ask on the same connection's backend."""
    balancer = site.balancer()
    records: list[tuple[str, str]] = []
    with site.connect(balancer) as sock:
        asked = dns.message.make_query(nameserver.ZONE, "AXFR", id=7)
        dns.query.send_tcp(sock, asked)
        messages = ends = 0
        while ends < 2:
            answer, _ = dns.query.receive_tcp(sock, one_rr_per_rrset=True)
            assert answer.id == 7
            assert answer.rcode() == dns.rcode.NOERROR
            messages += 1
            for group in answer.answer:
                ends += group.rdtype is dns.rdatatype.SOA
                records += [(group.name.to_text(), record.to_text()) for record in group]
    assert messages > 1
    assert len(records) == len(set(records)) + 1 == 2 * nameserver.NAMES + 4  # SOA first and last
    seen = set(records)
    for number in range(nameserver.NAMES):
        assert (nameserver.name(number), nameserver.address(number)) in seen
    assert dropped(balancer) == {}
    assert balancer.metrics().value("backend_outstanding_messages") == 0


def test_kdig_transfers_a_zone(site: Site, need: Callable[..., None]) -> None:
    need("kdig")
    for connections, wanted in (("per_client", 2 * nameserver.NAMES + 4), ("shared", 0)):
        host, port = site.balancer(connections=connections).listeners["rpc"]
        done = site.lab.run(
            "kdig", "+tcp", "+noall", "+answer", f"@{host}", "-p", str(port), nameserver.ZONE, "AXFR"
        )
        records = [line for line in done.out.splitlines() if line and not line.startswith(";")]
        assert len(records) == wanted
        assert ("REFUSED" in done.out + done.err) == (not wanted)

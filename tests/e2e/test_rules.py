"""Rules: what a message says, or who sends it, decides on its pool, its backend, or that it is denied."""

import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import dns.message
import dns.query
import dns.rcode
import pytest
from thriftpy2.rpc import client_context
from thriftpy2.transport import TFramedTransportFactory

from lb.framing import PRESETS
from tests.e2e import nameserver
from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.namespaces import Endpoint, join
from tests.e2e.polling import LIMIT, eventually, eventually_equal
from tests.e2e.test_presets import LONG, start
from tests.e2e.thrift_server import demo

SHARING = pytest.mark.parametrize("connections", ["per_client", "shared"])
ORDERED = {
    "length": {"offset": 0, "width": 4, "adjust": 4},
    "id": {"offset": 4, "width": 4},
    "ordering": "fifo",
}
# Of what stands behind the header, the first byte says where a message goes.
MAIN, CANARY, SECOND, EVIL = b"m", b"c", b"s", b"e"
BY_BODY: list[Tree] = [
    {"match": {"offset": 8, "prefix": "c"}, "then": {"pool": "canary"}},
    {"match": {"offset": 8, "width": 1, "equals": ord("s")}, "then": {"backend": "b"}},
    {"match": {"offset": 8, "width": 1, "mask": 0xFF, "in": [ord("e"), ord("E")]}, "then": "deny"},
]
CHECKS = {"interval": "100ms", "timeout": "100ms", "rise": 2, "fall": 2}


def configured(
    main: Sequence[Backend | Endpoint],
    canary: Sequence[Backend | Endpoint],
    rules: Sequence[Tree],
    **settings: Any,
) -> Tree:
    """A listener with rules and two pools, `workers` and `canary`; the second one's backends are x, y, ..."""
    tree = Lab.tree(main, **settings)
    other = Lab.tree(canary, **settings)["pools"][0]
    for backend, name in zip(other["backends"], "xyz", strict=False):
        backend["name"] = name
    tree["pools"].append(other | {"name": "canary"})
    tree["listeners"][0]["rules"] = list(rules)
    return tree


def serve(lab: Lab, **settings: Any) -> tuple[Balancer, list[Backend]]:
    """`workers` has a and b, `canary` has x."""
    backends = [lab.backend(name) for name in "abx"]
    return lab.balancer(configured(backends[:2], backends[2:], BY_BODY, **settings)).wait_ready(), backends


def ask(client: Client, number: int, body: bytes) -> str:
    """Who answers."""
    (answer,) = client.ask(message(number, body))
    return read_answer(answer).backend


def test_a_listeners_traffic_is_that_of_all_its_pools(lab: Lab) -> None:
    balancer, _ = serve(lab)
    client = balancer.connect()
    client.ask(*(message(number, body) for number, body in enumerate([MAIN, CANARY, SECOND, CANARY])))
    (listener,) = balancer.status()["listeners"]
    assert (listener["requests"], listener["responses"]) == (4, 4)


@SHARING
def test_messages_go_where_the_first_rule_that_matches_says(lab: Lab, connections: str) -> None:
    balancer, _ = serve(lab, connections=connections)
    bodies = [MAIN, CANARY, SECOND, EVIL, MAIN + CANARY, CANARY + EVIL, b"", b"E"]
    clients = [balancer.connect() for _ in range(3)]
    for client in clients:
        client.send(*(message(number, bodies[number % 8]) for number in range(400)))
    for client in clients:
        answers = {(got := read_answer(data)).number: got.backend for data in client.answers(300)}
        by_body = {
            body: {answers.get(number) for number in range(place, 400, 8)}
            for place, body in enumerate(bodies)
        }
        assert by_body[CANARY] == by_body[CANARY + EVIL] == {"x"}
        assert by_body[SECOND] == {"b"}
        assert by_body[EVIL] == by_body[b"E"] == {None}
        assert by_body[MAIN] | by_body[MAIN + CANARY] | by_body[b""] == {"a", "b"}
    metrics = balancer.metrics()
    assert metrics.seen("reason", "dropped_messages_total") == {"rule": 300}
    assert metrics.value("refusals_total") == 0
    assert metrics.value("messages_total", pool="canary", backend="x") == 300
    assert metrics.value("messages_total", pool="workers") == 600
    assert metrics.value("responses_total") == 900
    assert metrics.value("backend_outstanding_messages") == 0
    assert metrics.value("datapath_messages_total", path="userspace") == 0
    status = balancer.status()
    assert status["listeners"][0]["rules"] == 3
    assert [sum(backend["requests"] for backend in pool["backends"]) for pool in status["pools"]] == [
        600,
        300,
    ]


def test_answers_keep_their_order_although_rules_send_messages_elsewhere(lab: Lab) -> None:
    balancer, _ = serve(lab, protocol="ordered", protocols={"ordered": ORDERED})
    bodies = [MAIN, MAIN, CANARY, SECOND, EVIL]
    client = balancer.connect()
    client.send(*(message(number, bodies[number % 5]) for number in range(200)))
    answers = list(map(read_answer, client.answers(160)))
    assert [answer.number for answer in answers] == [number for number in range(200) if number % 5 != 4]
    assert {answer.backend for answer in answers if answer.asked == CANARY} == {"x"}
    assert {answer.backend for answer in answers if answer.asked == SECOND} == {"b"}
    assert balancer.metrics().value("pauses_total", reason="order") > 0


@SHARING
def test_what_a_paused_client_sent_before_it_left_goes_by_the_rules_too(lab: Lab, connections: str) -> None:
    """User space carries it: the same places, and what is denied is dropped for the same reason."""
    backends = [lab.backend(name) for name in "abx"]
    tree = configured(backends[:2], backends[2:], BY_BODY, connections=connections)
    for entry in (entry for pool in tree["pools"] for entry in pool["backends"]):
        entry["max_outstanding"] = 1
    balancer = lab.balancer(tree).wait_ready()
    bodies = [MAIN, CANARY, SECOND, EVIL]
    client = balancer.connect()
    ask(client, 1000, MAIN)  # it is mapped
    client.send(*(message(number, bodies[number % 4]) for number in range(200)))
    client.half_close()
    answers = {(got := read_answer(data)).number: got.backend for data in client.answers_to_the_end()}
    assert sorted(answers) == [number for number in range(200) if number % 4 != 3]
    assert {answers[number] for number in range(1, 200, 4)} == {"x"}
    assert {answers[number] for number in range(2, 200, 4)} == {"b"}
    metrics = balancer.metrics()
    assert metrics.seen("reason", "dropped_messages_total") == {"rule": 50}
    assert metrics.value("datapath_messages_total", path="userspace") > 0


@SHARING
def test_a_client_that_half_closed_early_is_decided_on_by_user_space(lab: Lab, connections: str) -> None:
    balancer, _ = serve(lab, connections=connections)
    for body, wanted in ((CANARY, {"x"}), (SECOND, {"b"})):
        sent = [message(number, EVIL if number % 3 == 0 else body) for number in range(30)]
        early = balancer.connect_while_it_stands_still(*sent)
        answers = list(map(read_answer, early.answers_to_the_end()))
        assert sorted(answer.number for answer in answers) == [n for n in range(30) if n % 3]
        assert {answer.backend for answer in answers} == wanted
    mixed = balancer.connect_while_it_stands_still(message(1, CANARY), message(2, SECOND))
    assert mixed.is_reset()
    metrics = balancer.metrics()
    assert metrics.seen("reason", "dropped_messages_total") == {"rule": 20, "half_closed": 2}


@SHARING
def test_while_one_pool_is_down_messages_for_the_other_go_on(lab: Lab, connections: str) -> None:
    """Those for the pool that is down wait for `queue`, and then their client is told; others are served."""
    balancer, backends = serve(
        lab, connections=connections, health_check=CHECKS, timeouts={"drain": "5s", "queue": "500ms"}
    )
    client = balancer.connect()
    assert ask(client, 1, CANARY) == "x"
    backends[2].close()
    eventually_equal(lambda: balancer.metrics().value("backend_up", backend="x"), 0)
    for number in range(20):
        assert ask(client, number, MAIN) in "ab"
    client.send(message(50, EVIL), message(51, MAIN))
    assert read_answer(client.answers(1)[0]).number == 51
    client.send(message(52, CANARY))
    assert client.is_reset()
    assert balancer.metrics().seen("reason", "dropped_messages_total") == {"rule": 1, "no_backend": 1}
    with balancer.connect() as another:
        assert ask(another, 1, MAIN) in "ab"


def test_a_backend_that_a_rule_names_comes_back(lab: Lab) -> None:
    balancer, backends = serve(lab, health_check=CHECKS)
    client = balancer.connect()
    assert ask(client, 1, SECOND) == "b"
    backends[1].close()
    eventually_equal(lambda: balancer.metrics().value("backend_up", backend="b"), 0)
    assert ask(client, 2, MAIN) == "a"
    client.send(message(3, SECOND))
    lab.backend("b", endpoint=backends[1].endpoint)
    assert read_answer(client.answers(1)[0]).backend == "b"


def test_who_sends_decides(lab: Lab) -> None:
    """IPv4 and IPv6, two listeners that share pools; one of them has no rules."""
    clients = lab.namespace("client")
    join(clients, lab.here, 1)
    clients.add_address("10.1.0.77/24", "to-r1")
    backends = [lab.backend(name) for name in "ax"]
    rules: list[Tree] = [
        {"match": {"client": ["10.1.0.1", "10.1.0.64/26"], "offset": 8, "prefix": "e"}, "then": "deny"},
        {"match": {"client": "10.1.0.77"}, "then": {"pool": "canary"}},
        {"match": {"client": "fd00:1::/64"}, "then": {"backend": "canary/x"}},
    ]
    tree = configured(backends[:1], backends[1:], rules, address="0.0.0.0:0")
    tree["listeners"].append(tree["listeners"][0] | {"name": "ipv6", "address": "[::]:0"})
    tree["listeners"].append({"name": "plain", "address": "0.0.0.0:0", "pool": "canary"})
    balancer = lab.balancer(tree).wait_ready()

    def connect(listener: str, host: str, source: str) -> Client:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with clients.entered():
            sock = socket.socket(family)
        sock.settimeout(LIMIT)
        sock.bind((source, 0))
        sock.connect((host, balancer.listeners[listener][1]))
        client = Client(sock)
        balancer.clients.append(client)
        return client

    assert ask(connect("rpc", "10.1.0.2", "10.1.0.1"), 1, MAIN) == "a"
    assert ask(connect("rpc", "10.1.0.2", "10.1.0.77"), 1, MAIN) == "x"
    assert ask(connect("ipv6", "fd00:1::2", "fd00:1::1"), 1, EVIL) == "x"
    assert ask(connect("plain", "10.1.0.2", "10.1.0.1"), 1, EVIL) == "x"
    denied = connect("rpc", "10.1.0.2", "10.1.0.77")
    denied.send(message(1, EVIL), message(2, MAIN))
    assert read_answer(denied.answers(1)[0]).number == 2
    metrics = balancer.metrics()
    assert metrics.seen("reason", "dropped_messages_total") == {"rule": 1}
    assert metrics.seen("listener", "messages_total", backend="x") == {"ipv6": 1, "plain": 1, "rpc": 2}
    assert metrics.seen("listener", "messages_total", backend="a") == {"rpc": 1}


def test_listeners_that_share_a_shared_pool_count_for_themselves(lab: Lab) -> None:
    """Rows of the counters: one reaches both pools, another the second only."""
    backends = [lab.backend(name) for name in "abxy"]
    tree = configured(backends[:2], backends[2:], BY_BODY, connections="shared", balance="round_robin")
    tree["listeners"].append({"name": "direct", "address": "127.0.0.1:0", "pool": "canary"})
    balancer = lab.balancer(tree).wait_ready()
    with balancer.connect() as client, balancer.connect("direct") as direct:
        for number in range(40):
            ask(client, number, CANARY if number % 4 else MAIN)
            ask(direct, number, MAIN)
    metrics = balancer.metrics()
    assert metrics.value("messages_total", listener="rpc", pool="canary") == 30
    assert metrics.value("messages_total", listener="rpc", pool="workers") == 10
    assert metrics.value("messages_total", listener="direct", pool="canary") == 40
    assert metrics.value("responses_total") == 80


# --- DNS -------------------------------------------------------------------------------------------------


class Site:
    """Two name servers, each the only one of a pool, and one that no name is for."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        where = lab.namespace("backend")
        join(lab.here, where, 2)
        where.add_address("10.2.0.3/24", "to-l2")
        for host in ("10.2.0.2", "10.2.0.3"):
            nameserver.start(lab, where, host)

    def balancer(self, rules: Sequence[Tree], **settings: Any) -> Balancer:
        tree = configured([("10.2.0.2", 53)], [("10.2.0.3", 53)], rules, protocol="dns", **settings)
        return self.lab.balancer(tree).wait_ready()


@pytest.fixture
def site(lab: Lab, need: Callable[..., None]) -> Site:
    need("nsd")
    return Site(lab)


DNS_RULES: list[Tree] = [
    {"match": {"dns-name": "n2.Example.Test."}, "then": {"pool": "canary"}},
    {"match": {"dns-name": ["evil.example", "n3.example.test"]}, "then": "deny"},
]


@SHARING
def test_names_are_sent_to_another_pool_or_refused(site: Site, connections: str) -> None:
    """Asked by dnspython; REFUSED comes from the balancer, with the id and the question of the query."""
    balancer = site.balancer(DNS_RULES, connections=connections)
    host, port = balancer.listeners["rpc"]
    asked = {
        "n1.example.test.": dns.rcode.NOERROR,
        "N2.example.TEST.": dns.rcode.NOERROR,
        "n3.example.test.": dns.rcode.REFUSED,
        "deep.below.evil.example.": dns.rcode.REFUSED,
        "n33.example.test.": dns.rcode.NOERROR,
    }
    with site.lab.here.entered():
        for name, code in asked.items():
            query = dns.message.make_query(name, "A")
            answer = dns.query.tcp(query, host, port=port, timeout=LIMIT)
            assert query.is_response(answer)
            assert answer.rcode() == code, name
            assert bool(answer.answer) == (code == dns.rcode.NOERROR)
    metrics = balancer.metrics()
    assert metrics.seen("backend", "messages_total") == {"a": 2, "x": 1}
    assert metrics.seen("reason", "dropped_messages_total") == {"rule": 2}
    assert metrics.value("refusals_total") == 2
    assert metrics.value("datapath_messages_total", path="userspace") == 0


def test_dig_is_told_that_it_is_refused(site: Site, need: Callable[..., None]) -> None:
    need("kdig")
    host, port = site.balancer(DNS_RULES).listeners["rpc"]
    command = ("kdig", "+tcp", f"@{host}", "-p", str(port))
    assert "status: REFUSED" in site.lab.run(*command, "www.evil.example", "A").out
    assert "status: NOERROR" in site.lab.run(*command, "n5.example.test", "A").out


@SHARING
def test_who_does_not_read_refusals_hangs_nobody(site: Site, connections: str) -> None:
    """Also in front of a message whose name has not arrived, and while its pool has no server at all.

    With nothing to wait for but room of its own it goes on as soon as it reads.
    """
    balancer = site.balancer(
        DNS_RULES,
        connections=connections,
        runtime={"buffer_budget": "64KiB"},
        timeouts={"drain": "5s", "queue": "60s"},
        health_check=CHECKS,
    )
    count = 2000
    wire = dns.message.make_query("www.evil.example.", "A", id=1).to_wire() + bytes(8000)
    one = len(wire).to_bytes(2, "big") + wire
    with site.lab.here.connect(balancer.listeners["rpc"]) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        # Cut behind each length: most pauses are in front of a message that nobody can decide on yet.
        pieces = [one[i : i + 1311] for i in range(0, len(one), 1311)]

        def send() -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                for piece in pieces:
                    sock.sendall(piece)

        sender = threading.Thread(target=send)
        sender.start()
        eventually(lambda: balancer.metrics().value("pauses_total", reason="full") > 0)
        replies = Client(sock, PRESETS["dns"]).answers(count)
        sender.join()
    assert all(reply[5] & 0xF == dns.rcode.REFUSED for reply in replies)
    assert balancer.metrics().seen("reason", "dropped_messages_total") == {"rule": count}
    assert balancer.metrics().value("buffered_bytes") == 0


def test_a_client_that_half_closes_before_it_is_served_is_refused_too(site: Site) -> None:
    balancer = site.balancer(DNS_RULES)
    wire = [
        dns.message.make_query(name, "A", id=number).to_wire()
        for number, name in enumerate(["n1.example.test.", "evil.example.", "n4.example.test."])
    ]
    client = balancer.connect_while_it_stands_still(*(len(data).to_bytes(2, "big") + data for data in wire))
    replies = {(reply := dns.message.from_wire(data[2:])).id: reply for data in client.answers_to_the_end()}
    assert [replies[number].rcode() for number in range(3)] == [0, dns.rcode.REFUSED, 0]
    assert balancer.metrics().value("refusals_total") == 1


# --- Thrift ----------------------------------------------------------------------------------------------


@SHARING
def test_methods_have_a_backend_of_their_own(lab: Lab, connections: str) -> None:
    """With thriftpy2 on both sides; a oneway method too."""
    servers, endpoints = start(
        lab, lambda name, port: [sys.executable, "-m", "tests.e2e.thrift_server", name, str(port)]
    )
    rules: list[Tree] = [
        {"match": {"method": ["note", LONG]}, "then": {"backend": "b"}},
        {"match": {"method": "refuse"}, "then": {"pool": "canary"}},
    ]
    tree = configured(endpoints[:2], endpoints[2:], rules, protocol="thrift-framed", connections=connections)
    balancer = lab.balancer(tree).wait_ready()
    host, port = balancer.listeners["rpc"]
    told, told_long, refused = set(), set(), set()
    with (
        lab.here.entered(),
        client_context(
            demo.Demo, host, port, trans_factory=TFramedTransportFactory(), socket_timeout=int(LIMIT * 1000)
        ) as client,
    ):
        for number in range(20):
            told.add(client.told(number)[-1])
            told_long.add(getattr(client, LONG)(number)[-1])
            client.note(number)
            with pytest.raises(demo.Refused) as caught:
                client.refuse()
            refused.add(caught.value.why)
    assert told <= {"a", "b"}
    assert (told_long, refused) == ({"b"}, {"c"})
    eventually_equal(
        lambda: [len(server.stdout.text.splitlines()) for server in servers],
        [0, 20, 0],
    )
    assert balancer.metrics().value("dropped_messages_total") == 0

"""PROXY headers: from proxies in front, to backends behind, written by hand and by real proxies."""

import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address

import pytest

from lb.config import Address, ProxyVersion
from lb.proxy import LONGEST, Endpoints, build
from tests.e2e import proxies
from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.namespaces import Endpoint, Namespace, join
from tests.e2e.polling import eventually, eventually_equal

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 1111 2222\r\n"
V2 = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c c0000201 c6336401 0457 08ae")
V2_INET6 = bytes.fromhex(
    "0d0a0d0a000d0a515549540a 21 21 0024 20010db8000000000000000000000001 20010db8000000000000000000000002"
    "0457 08ae"
)
LONG = V2[:14] + struct.pack("!H", LONGEST - 16) + V2[16:] + b"\4" + struct.pack("!H", LONGEST - 31)
LONG += bytes(LONGEST - len(LONG))
LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")
UNKNOWN = b"PROXY UNKNOWN\r\n"
THEIRS = {"V1": V1, "V2": V2, "V2_INET6": V2_INET6, "LONG": LONG}
OURS = {"LOCAL": LOCAL, "UNKNOWN": UNKNOWN}


def serve(
    lab: Lab, backend: Backend | Endpoint | None = None, listener: Tree | None = None, **how: object
) -> Balancer:
    """A balancer behind proxies of this machine, with one backend."""
    tree = lab.tree([lab.backend() if backend is None else backend], **how)
    tree["listeners"][0] |= {"proxy_protocol": True} | (listener or {})
    return lab.balancer(tree).wait_ready()


def ask(client: Client, header: bytes = b"", number: int = 1) -> str:
    """Introduces a client and asks one question; the name of the backend that answers."""
    client.send(header, message(number, b"?"))
    answer = read_answer(client.answers(1)[0])
    assert (answer.number, answer.asked) == (number, b"?")
    return answer.backend


def refused(balancer: Balancer) -> dict[str, float]:
    return balancer.metrics().seen("reason", "refused_connections_total")


def all_slots_are_free(balancer: Balancer) -> bool:
    return balancer.status()["sockets"] == 0


class TestInFront:
    @pytest.mark.parametrize("header", [*THEIRS.values(), *OURS.values()], ids=[*THEIRS, *OURS])
    def test_a_header_and_messages_in_one_segment(self, lab: Lab, header: bytes) -> None:
        balancer = serve(lab)
        client = balancer.connect()
        client.send(header, *(message(number, b"?") for number in range(50)))
        answers = [read_answer(data) for data in client.answers(50)]
        assert [answer.number for answer in answers] == list(range(50))
        client.half_close()
        assert client.answers_to_the_end() == []
        assert balancer.metrics().value("datapath_messages_total", path="userspace") == 0
        assert refused(balancer) == {}

    @pytest.mark.parametrize("header", [V1, V2], ids=["V1", "V2"])
    def test_a_header_byte_by_byte(self, lab: Lab, header: bytes) -> None:
        balancer = serve(lab)
        client = balancer.connect()
        for byte in header + message(1, b"?"):
            client.send(bytes([byte]))
            time.sleep(0.002)  # segments of their own
        assert read_answer(client.answers(1)[0]).number == 1

    def test_a_client_that_waits_for_nothing(self, lab: Lab) -> None:
        """Header, messages and FIN are there before the connection is accepted."""
        backend = lab.backend()
        balancer = serve(lab, backend)
        client = balancer.connect_while_it_stands_still(V2, *(message(number, b"?") for number in range(9)))
        answers = client.answers_to_the_end()
        assert [read_answer(data).number for data in answers] == list(range(9))

    def test_the_end_does_not_wait_for_bytes_of_the_header(self, lab: Lab) -> None:
        balancer = serve(lab, timeouts={"drain": "60s"})
        client = balancer.connect()
        ask(client, LONG)
        since = time.monotonic()
        client.half_close()
        assert client.answers_to_the_end() == []
        assert time.monotonic() - since < 10

    @pytest.mark.parametrize(
        "data",
        [
            message(1, b"?"),
            b"\0",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1111\r\n",
            b"PROXY UNKNOWN " + b"x" * 100,
            V2[:12] + b"\x31" + V2[13:],
            V2[:14] + b"\xff\xff",
        ],
        ids=["none", "a byte", "malformed", "endless", "version 3", "too long"],
    )
    def test_what_is_no_header(self, lab: Lab, data: bytes) -> None:
        backend = lab.backend()
        balancer = serve(lab, backend)
        client = balancer.connect()
        client.send(data)
        assert client.is_reset()
        assert refused(balancer) == {"proxy_header": 1}
        eventually(lambda: all_slots_are_free(balancer))
        assert not backend.received

    def test_one_that_ends_within_its_header(self, lab: Lab) -> None:
        balancer = serve(lab)
        client = balancer.connect()
        client.send(V1[:20])
        client.half_close()
        assert client.is_reset()
        assert refused(balancer) == {"proxy_header": 1}

    def test_one_that_does_not_say(self, lab: Lab) -> None:
        balancer = serve(lab, timeouts={"half_message": "300ms"})
        silent, halfway = balancer.connect(), balancer.connect()
        halfway.send(V2[:20])
        assert silent.is_reset()
        assert halfway.is_reset()
        assert refused(balancer) == {"proxy_timeout": 2}
        eventually(lambda: all_slots_are_free(balancer))
        client = balancer.connect()
        ask(client, V1)
        time.sleep(0.6)  # the clock of its header is stopped
        ask(client)

    @pytest.mark.parametrize("leave", [Client.close, Client.reset], ids=["close", "reset"])
    def test_one_that_only_looks_whether_the_port_is_open(
        self, lab: Lab, leave: Callable[[Client], None]
    ) -> None:
        balancer = serve(lab)
        leave(balancer.connect())
        eventually(lambda: all_slots_are_free(balancer))
        assert refused(balancer) == {}
        assert balancer.metrics().value("client_connections_total") == 1

    def test_only_proxies_that_are_trusted(self, lab: Lab) -> None:
        neighbour = lab.namespace("neighbour")
        join(lab.here, neighbour, 7)
        balancer = serve(lab, address="0.0.0.0:0")
        there = "10.7.0.1", balancer.listeners["rpc"][1]
        try:
            with Client(neighbour.connect(there)) as stranger:
                assert stranger.is_reset()
        except ConnectionResetError:  # it was faster than the return of connect()
            pass
        assert refused(balancer) == {"untrusted_proxy": 1}
        ask(balancer.connect(), V1)

    def test_others_are_trusted_by_network(self, lab: Lab) -> None:
        neighbour = lab.namespace("neighbour")
        join(lab.here, neighbour, 7)
        balancer = serve(lab, listener={"trusted": ["10.7.0.0/24"]}, address="0.0.0.0:0")
        there = "10.7.0.1", balancer.listeners["rpc"][1]
        with Client(neighbour.connect(there)) as client:
            ask(client, V1)
        assert balancer.turns_away(), "this machine is not in the list"
        assert refused(balancer) == {"untrusted_proxy": 1}

    def test_limits_count_those_whom_it_stands_for(self, lab: Lab) -> None:
        balancer = serve(lab, listener={"limits": {"max_clients_per_address": 2}})
        first, second = balancer.connect(), balancer.connect()
        ask(first, V1)
        ask(second, V2)
        third = balancer.connect()
        third.send(V1)
        assert third.is_reset()
        other = balancer.connect()
        ask(other, V2_INET6)
        (status,) = balancer.status()["listeners"]
        assert (status["clients"], status["addresses"]) == (3, 2)
        assert refused(balancer) == {"max_clients_per_address": 1}
        first.close()
        eventually(lambda: balancer.status()["listeners"][0]["clients"] == 2)
        ask(balancer.connect(), V1)

    def test_who_has_not_said_counts_as_a_client(self, lab: Lab) -> None:
        balancer = serve(lab, listener={"limits": {"max_clients": 2}})
        waiting = [balancer.connect(), balancer.connect()]
        waiting[0].send(V1[:9])
        assert balancer.turns_away()
        waiting[0].send(V1[9:])
        ask(waiting[0])
        ask(waiting[1], V1)
        assert refused(balancer) == {"max_clients": 1}

    def test_rates_and_hashes_are_by_the_address_in_the_header(self, lab: Lab) -> None:
        """Each address has its own bucket of two messages, and its own backend."""
        names = "abcdefgh"
        tree = lab.tree([lab.backend(name) for name in names], balance="hash", hash="client-address")
        rate = {"messages_per_second": 1, "burst": 2, "over": "deny"}
        tree["listeners"][0] |= {"proxy_protocol": True, "limits": {"rate_per_address": rate}}
        balancer = lab.balancer(tree).wait_ready()
        chosen: dict[int, set[str]] = {}
        for host in range(1, 20):
            header = f"PROXY TCP4 192.0.2.{host} 198.51.100.1 1111 2222\r\n".encode()
            chosen[host] = {ask(balancer.connect(), header), ask(balancer.connect(), header)}
        assert all(len(backends) == 1 for backends in chosen.values())
        assert len(set().union(*chosen.values())) > 3
        assert balancer.metrics().value("dropped_messages_total", reason="rate_limited") == 0
        late = balancer.connect()
        late.send(b"PROXY TCP4 192.0.2.1 198.51.100.1 1111 2222\r\n", message(1), message(2), message(3))
        eventually(lambda: balancer.metrics().value("dropped_messages_total", reason="rate_limited") >= 2)

    def test_the_drain_does_not_wait_for_headers(self, lab: Lab) -> None:
        balancer = serve(lab, timeouts={"drain": "30s"})
        waiting = balancer.connect()
        waiting.send(V1[:9])
        eventually(lambda: balancer.status()["sockets"] == 1)
        ended = balancer.stop()
        assert ended.code == 0
        assert ended.seconds < 10
        assert waiting.is_reset()

    def test_logs_name_the_client(self, lab: Lab) -> None:
        balancer = serve(lab)
        client = balancer.connect()
        client.send(V1, b"\xff" * 8)
        assert client.is_reset()
        balancer.process.stderr.wait_for(r"client \('192\.0\.2\.1', 1111\) of rpc: closed: oversize")


def ends(client: Client, balancer: Balancer) -> Endpoints:
    """Of a client's connection, which may have ended."""
    return Endpoints(_address(client.sock.getsockname()), _address(balancer.listeners["rpc"]))


def _address(sockaddr: tuple[str, int]) -> Address:
    return Address(ip_address(sockaddr[0]), sockaddr[1])


def has_heard(backend: Backend, headers: int) -> bool:
    return len(backend.headers) == headers


def forget_look(backend: Backend) -> None:
    """The balancer looks once whether it can connect, and says that it is the one."""
    eventually(partial(has_heard, backend, 1), what="the balancer has looked")
    assert [header.endpoints for header in backend.headers] == [None]
    backend.headers.clear()


class TestBehind:
    @pytest.mark.parametrize("version", ["v1", "v2"])
    @pytest.mark.parametrize("host", ["127.0.0.1:0", "[::1]:0"], ids=["v4", "v6"])
    def test_each_connection_begins_with_its_client(self, lab: Lab, version: str, host: str) -> None:
        backends = [lab.backend(name, proxied=True) for name in "ab"]
        balancer = lab.serve(backends, address=host, send_proxy=version, balance="round_robin")
        for backend in backends:
            forget_look(backend)
        clients = [balancer.connect() for _ in range(3)]
        for client in clients:
            ask(client)
        for backend in backends:
            eventually(partial(has_heard, backend, len(clients)))
            assert {header.endpoints for header in backend.headers} == {
                ends(client, balancer) for client in clients
            }
            assert len(backend.headers) == len(clients)

    def test_a_connection_that_replaces_another_says_it_too(self, lab: Lab) -> None:
        backend = lab.backend(proxied=True)
        balancer = lab.serve([backend], send_proxy="v2")
        forget_look(backend)
        client = balancer.connect()
        ask(client)
        backend.headers.clear()
        backend.finish()
        ask(client)
        assert [header.endpoints for header in backend.headers] == [ends(client, balancer)]

    @pytest.mark.parametrize("header", [V1, V2, V2_INET6], ids=["V1", "V2", "V2_INET6"])
    @pytest.mark.parametrize("version", list(ProxyVersion))
    def test_what_was_received_is_passed_on(self, lab: Lab, header: bytes, version: ProxyVersion) -> None:
        backend = lab.backend(proxied=True)
        balancer = serve(lab, backend, send_proxy=version.value)
        forget_look(backend)
        ask(balancer.connect(), header)
        (got,) = backend.headers
        hosts = ("2001:db8::1", "2001:db8::2") if header is V2_INET6 else ("192.0.2.1", "198.51.100.1")
        assert got.endpoints == Endpoints(_address((hosts[0], 1111)), _address((hosts[1], 2222)))
        assert got.length == len(build(version, got.endpoints))

    def test_who_stands_for_himself(self, lab: Lab) -> None:
        backend = lab.backend(proxied=True)
        balancer = serve(lab, backend, send_proxy="v1")
        forget_look(backend)
        client = balancer.connect()
        ask(client, LOCAL)
        assert [header.endpoints for header in backend.headers] == [ends(client, balancer)]

    def test_a_client_that_user_space_serves(self, lab: Lab) -> None:
        backend = lab.backend(proxied=True)
        balancer = lab.serve([backend], send_proxy="v2")
        forget_look(backend)
        client = balancer.connect_while_it_stands_still(message(1, b"?"))
        assert len(client.answers_to_the_end()) == 1
        assert [header.endpoints for header in backend.headers] == [ends(client, balancer)]
        assert balancer.metrics().value("datapath_messages_total", path="userspace") == 2

    def test_outstanding_requests_are_counted_as_before(self, lab: Lab) -> None:
        """Bytes that were sent before the first message are no part of the backlog, nor of what arrived."""
        backend = lab.backend(proxied=True, holding=True)
        balancer = lab.serve([backend], send_proxy="v1")
        client = balancer.connect()
        client.send(*(message(number, b"?") for number in range(7)))
        eventually(lambda: len(backend.received) == 7)
        eventually_equal(lambda: balancer.metrics().value("buffered_bytes"), 0)
        backend.reset()
        assert client.is_reset()
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {"backend_reset": 7}


def connect(where: Namespace, source: str, endpoint: Endpoint) -> Client:
    """A connection from an address."""
    sock = where.open(source)
    sock.bind((source, 0))
    sock.connect(endpoint)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Client(sock)


FRONTS: dict[str, Callable[[Lab, Endpoint, str], proxies.Proxy]] = {
    "haproxy-v1": lambda lab, target, host: proxies.haproxy(lab, target, host=host, send="send-proxy"),
    "haproxy-v2": lambda lab, target, host: proxies.haproxy(
        lab, target, host=host, send="send-proxy-v2 proxy-v2-options crc32c,unique-id"
    ),
    "nginx": lambda lab, target, host: proxies.nginx(lab, target, host=host, send=True),
}


def knows(proxy: proxies.Proxy, connections: set[tuple[Endpoint, Endpoint]]) -> bool:
    return connections <= set(proxy.connections())


class TestChains:
    """Client, proxy, balancer, proxy, backend: the last proxy knows the client, and whom it connected to."""

    @pytest.mark.parametrize(
        ("front", "version"), [("haproxy-v1", "v2"), ("haproxy-v2", "v1"), ("nginx", "v2")]
    )
    @pytest.mark.parametrize(
        ("host", "source"), [("127.0.0.1", "127.0.0.5"), ("::1", "::1")], ids=["v4", "v6"]
    )
    def test_from_end_to_end(
        self, lab: Lab, need: Callable[..., None], front: str, version: str, host: str, source: str
    ) -> None:
        need("haproxy", "nginx")
        backend = lab.backend(endpoint=(host, 0))
        behind = [
            proxies.haproxy(lab, backend.endpoint, host=host, accept="accept-proxy"),
            proxies.nginx(lab, backend.endpoint, host=host, accept=True),
        ]
        tree = lab.tree(
            [proxy.endpoint for proxy in behind],
            address=f"[{host}]:0" if ":" in host else f"{host}:0",
            send_proxy=version,
            balance="round_robin",
        )
        tree["listeners"][0]["proxy_protocol"] = True
        balancer = lab.balancer(tree).wait_ready()
        entrance = FRONTS[front](lab, balancer.listeners["rpc"], host)
        clients = [connect(lab.here, source, entrance.endpoint) for _ in range(3)]
        expected = []
        for client in clients:
            expected.append((client.sock.getsockname()[:2], client.sock.getpeername()[:2]))
            for number in range(20):
                assert read_answer(client.ask(message(number, b"?"))[0]).number == number
            client.close()
        for proxy in behind:
            eventually(partial(knows, proxy, set(expected)), what=f"{proxy} has logged {expected}")
            assert "waiting for PROXY" not in proxy.log.read_text(encoding="ascii")
        assert balancer.metrics().value("datapath_messages_total", path="userspace") == 0
        assert refused(balancer) == {}

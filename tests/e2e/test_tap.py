"""``sockmap-lb tap`` and ``GET /tap/LISTENER``: what goes through a listener, for somebody who looks."""

import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lb.abi import MAX_TAPS
from lb.server.tapping import PATIENCE
from tests.e2e.balancer import Balancer, show
from tests.e2e.lab import Lab
from tests.e2e.load import pipeline
from tests.e2e.messages import message
from tests.e2e.polling import LIMIT, eventually
from tests.e2e.processes import SOCKMAP_LB, Process

Line = dict[str, Any]


class Tap:
    """A viewer by HTTP; open when it is made."""

    def __init__(self, balancer: Balancer, path: str = "/tap/rpc") -> None:
        self._connection = http.client.HTTPConnection(*balancer.admin)
        self._connection.sock = balancer.where.connect(balancer.admin)
        self._connection.sock.settimeout(2 * PATIENCE + LIMIT)
        self._connection.request("GET", path)
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()
        assert self._answer.getheader("Content-Type") == "application/x-ndjson"

    def line(self) -> Line:
        """The next one."""
        text = self._answer.readline()
        assert text, "the tap has ended"
        line: Line = json.loads(text)
        return line

    def lines_to_the_end(self) -> list[Line]:
        return [json.loads(text) for text in self._answer]

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


@contextmanager
def tap(balancer: Balancer, path: str = "/tap/rpc") -> Iterator[Tap]:
    viewer = Tap(balancer, path)
    try:
        yield viewer
    finally:
        viewer.close()


def refusal(balancer: Balancer, path: str) -> tuple[int, str]:
    code, text = balancer.get(path)
    return code, json.loads(text)["error"]


def command(lab: Lab, balancer: Balancer, *arguments: str) -> Process:
    return lab.start(*SOCKMAP_LB, "tap", "rpc", "--admin", show(balancer.admin), *arguments)


@pytest.mark.parametrize("connections", ["per_client", "shared"])
def test_a_line_for_each_message(lab: Lab, connections: str) -> None:
    balancer = lab.serve([lab.backend("a", delay=0.02)], connections=connections)
    client = balancer.connect()
    with tap(balancer) as viewer:
        before = time.time()
        client.ask(message(7, b"hello"), message(8, b"x" * 1000))
        after = time.time()
        line = viewer.line()
    assert before - 0.1 < line.pop("time") < after + 0.1
    assert 0.02 < line.pop("duration_seconds") < after - before + 0.1
    assert line == {
        "client": show(client.sock.getsockname()),
        "pool": "workers",
        "backend": "a",
        "size": 13,
        "batch": 2,
        "outcome": "answered",
        "bytes": message(7, b"hello").hex(),
    }


def test_a_client_behind_a_proxy_is_shown_by_its_own_address(lab: Lab) -> None:
    tree = lab.tree([lab.backend("a")])
    tree["listeners"][0]["proxy_protocol"] = True
    balancer = lab.balancer(tree).wait_ready()
    client = balancer.connect()
    client.send(b"PROXY TCP6 2001:db8::7 2001:db8::1 1111 2222\r\n")
    with tap(balancer) as viewer:
        client.ask(message(1))
        assert viewer.line()["client"] == "[2001:db8::7]:1111"


def test_where_order_tells_responses_apart(lab: Lab) -> None:
    plain = {"length": {"offset": 0, "width": 4, "adjust": 4}, "ordering": "fifo", "max_message": "1KiB"}
    backend = lab.backend("a", delay=0.02)
    balancer = lab.serve([backend], protocol="plain", protocols={"plain": plain})
    client = balancer.connect()
    with tap(balancer) as viewer:
        for number in range(2):
            client.ask(message(number, b"hello"))
            line = viewer.line()
            assert (line["outcome"], line["size"]) == ("answered", 13)
            assert 0.02 < line["duration_seconds"] < LIMIT


def test_a_message_that_is_denied(lab: Lab) -> None:
    tree = lab.tree([lab.backend("a")])
    tree["listeners"][0]["limits"] = {"rate": {"messages_per_second": 1, "burst": 1, "over": "deny"}}
    balancer = lab.balancer(tree).wait_ready()
    client = balancer.connect()
    with tap(balancer) as viewer:
        client.ask(message(1))
        client.send(message(2))
        lines = {line["outcome"]: line for line in (viewer.line(), viewer.line())}
    assert lines["answered"]["backend"] == "a"
    assert lines["denied"]["backend"] is None
    assert lines["denied"]["bytes"] == message(2).hex()


def test_messages_that_rules_send_elsewhere_or_deny(lab: Lab) -> None:
    tree = lab.tree([lab.backend("a")])
    tree["pools"].append(lab.tree([lab.backend("a")])["pools"][0] | {"name": "canary"})
    tree["listeners"][0]["rules"] = [
        {"match": {"offset": 8, "prefix": "c"}, "then": {"pool": "canary"}},
        {"match": {"offset": 8, "prefix": "e"}, "then": "deny"},
    ]
    balancer = lab.balancer(tree).wait_ready()
    client = balancer.connect()
    with tap(balancer) as viewer:
        client.ask(message(1, b"m"))
        client.ask(message(2, b"c"))
        client.send(message(3, b"e"))
        lines = [viewer.line() for _ in range(3)]
    assert [(line["pool"], line["outcome"]) for line in lines] == [
        ("workers", "answered"),
        ("canary", "answered"),
        (None, "denied"),
    ]


def test_a_message_without_an_answer(lab: Lab) -> None:
    backend = lab.backend("a", holding=True)
    balancer = lab.serve([backend])
    client = balancer.connect()
    with tap(balancer) as viewer:
        client.send(message(1))
        began = time.monotonic()
        line = viewer.line()
        assert (line["outcome"], line["duration_seconds"]) == ("unanswered", None)
        assert time.monotonic() - began >= PATIENCE - 1
        backend.release()
        client.answers(1)
        client.ask(message(2))
        assert viewer.line()["bytes"] == message(2).hex()


def test_the_rate_and_the_count(lab: Lab) -> None:
    """Under a load that is a thousand times what is shown, and that loses nothing by it."""
    balancer = lab.serve([lab.backend("a")])
    began = time.monotonic()
    with tap(balancer, "/tap/rpc?rate=20&count=8") as viewer:
        answers = pipeline(
            lambda: balancer.where.connect(balancer.listeners["rpc"]),
            (message(number) for number in range(20_000)),
            depth=16,
        )
        assert len(answers) == 20_000
        client = balancer.connect()
        number = 0

        def ask() -> bool:
            nonlocal number
            number += 1
            client.ask(message(number))
            return time.monotonic() - began > 0.5

        eventually(ask)
        lines = viewer.lines_to_the_end()
    assert len(lines) == 8
    assert all(line["outcome"] == "answered" for line in lines)
    times = [line["time"] for line in lines]
    assert max(times) - min(times) >= 0.05, "5 may come at once, the others when it is their time"


@pytest.mark.parametrize(
    ("path", "code", "why"),
    [
        ("/tap/nothing", 404, "there is no listener nothing; there are: rpc"),
        ("/tap/rpc?rate=0", 400, "rate must be a number from 1 to 1000, not '0'"),
        ("/tap/rpc?rate=1001", 400, "rate must be a number from 1 to 1000, not '1001'"),
        ("/tap/rpc?rate=many", 400, "rate must be a number from 1 to 1000, not 'many'"),
        ("/tap/rpc?count=-1", 400, "count must be a number from 1, not '-1'"),
    ],
)
def test_refused(lab: Lab, path: str, code: int, why: str) -> None:
    balancer = lab.balancer(lab.tree([lab.backend("a")]))
    assert refusal(balancer, path) == (code, why)
    assert balancer.get("/tap/rpc", method="POST")[0] == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://elsewhere.example"},
        {"Sec-Fetch-Site": "same-origin", "Host": "elsewhere.example"},
    ],
    ids=" ".join,
)
def test_pages_of_other_sites_see_nothing(lab: Lab, headers: dict[str, str]) -> None:
    balancer = lab.balancer(lab.tree([lab.backend("a")]))
    connection = http.client.HTTPConnection(*balancer.admin)
    connection.sock = balancer.where.connect(balancer.admin)
    connection.request("GET", "/tap/rpc", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, "error" in json.loads(answer.read())) == (403, True)
    connection.close()


def test_no_more_than_a_few_and_who_leaves_makes_room(lab: Lab) -> None:
    """Also when there is nothing to see, by which the balancer would notice."""
    balancer = lab.serve([lab.backend("a")])
    viewers = [Tap(balancer) for _ in range(MAX_TAPS)]
    code, why = refusal(balancer, "/tap/rpc")
    assert (code, why) == (429, f"{MAX_TAPS} taps are open, and there cannot be more: close one")
    for viewer in viewers:
        viewer.close()
    eventually(lambda: has_room(balancer))


def has_room(balancer: Balancer) -> bool:
    try:
        viewer = Tap(balancer)
    except AssertionError:
        return False
    viewer.close()
    return True


def test_ends_when_the_balancer_does(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    client = balancer.connect()
    with tap(balancer) as viewer:
        client.ask(message(1))
        viewer.line()
        balancer.close_clients()
        assert balancer.stop().seconds < 3.0
        assert viewer.lines_to_the_end() == []


def test_no_client_address_in_a_metric(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    client = balancer.connect()
    with tap(balancer) as viewer:
        client.ask(message(1))
        host, port = viewer.line()["client"].split(":")
    assert host == "127.0.0.1"
    assert f":{port}" not in balancer.metrics().text


class TestCommand:
    def test_lines_for_people(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend("a")])
        client = balancer.connect()
        process = command(lab, balancer, "--count", "1", "--bytes", "12")
        process.stdout.wait_for(r"^TIME +CLIENT +BACKEND +BYTES +DURATION +START")
        client.ask(message(5, b"hello\x1b[31m"))
        assert process.wait() == 0
        line = process.stdout.text.splitlines()[1]
        address = re.escape(show(client.sock.getsockname()))
        assert re.fullmatch(
            rf"\d\d:\d\d:\d\d\.\d{{6}}  {address} +workers/a +18 +[\d.]+ (us|ms)"
            r"  0000000e 00000005 68656c6c  \.\.\.\.\.\.\.\.hell",
            line,
        ), line

    def test_lines_for_machines(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend("a")])
        client = balancer.connect()
        process = command(lab, balancer, "--json", "--count", "2", "--rate", "1000")
        number = 0

        def ask() -> bool:
            nonlocal number
            number += 1
            client.ask(message(number))
            return not process.running

        eventually(ask)
        assert process.wait() == 0
        lines = [json.loads(line) for line in process.stdout.text.splitlines()]
        assert [line["backend"] for line in lines] == ["a", "a"]

    def test_the_balancer_ends_first(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend("a")])
        process = command(lab, balancer, "--count", "1")
        process.stdout.wait_for("^TIME")
        balancer.stop()
        assert process.wait() == 1
        assert process.stderr.text == "sockmap-lb: the balancer has ended"

    def test_unknown_listener(self, lab: Lab) -> None:
        balancer = lab.balancer(lab.tree([lab.backend("a")]))
        done = lab.run(*SOCKMAP_LB, "tap", "a/b c", "--admin", show(balancer.admin))
        assert (done.code, done.complaint) == (
            1,
            "sockmap-lb: there is no listener a/b c; there are: rpc",
        )

    def test_nobody_there(self, lab: Lab) -> None:
        done = lab.run(*SOCKMAP_LB, "tap", "rpc", "--admin", "127.0.0.1:1")
        assert done.code == 1
        assert done.complaint.startswith("sockmap-lb: nobody answers at 127.0.0.1:1: ")
